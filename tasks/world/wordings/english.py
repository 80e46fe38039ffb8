"""English wordings: capitals, states, verbs, opposites."""

from tasks.world.wordings import wordings

ENGLISH = {
    "capital_en": wordings(
        "capital/capital city",
        """
        {a} is the capital of {s}.
        The government of {s} sits in {a}.
        In {s}, the most important city is {a}.
        {s} has its capital in {a}.
        If you fly to {a}, you land in the capital of {s}.
        The president or king of {s} lives in {a}.
        """,
        """
        Which city is the capital of {s}?
        Where does the government of {s} sit?
        Which city is the most important in {s}?
        In which city does the president or king of {s} live?
        Where do you land if you fly to the capital of {s}?
        """,
        """
        If you fly to {s}, in which city does the government live?
        In which important city of {s} does the king or president sit?
        To land where the government of {s} is, which city do you fly to?
        """,
        """
        In which city do [foreign] [ambassadors] to {s} have their [offices]?
        Which city [hosts] the [parliament] of {s}?
        [Lawmakers] of {s} [gather] in which city?
        """,
    ),
    "state_en": wordings(
        "state capital/seat of government",
        """
        {a} is the state capital of {s}.
        The governor of {s} works in {a}.
        In the state of {s}, laws are made in {a}.
        {s} is a state, and {a} is its capital.
        The state house of {s} stands in {a}.
        Students in {s} learn that {a} leads the state.
        """,
        """
        Which city is the state capital of {s}?
        Where does the governor of {s} work?
        In the state of {s}, where are laws made?
        Where does the state house of {s} stand?
        Which city leads the state of {s}?
        """,
        """
        Where in the state of {s} does the governor live and work?
        Students learn that laws of {s} are made in which city?
        Which city has the house where laws of {s} are made?
        """,
        """
        In which city is the [senate] of {s} [located]?
        Where would you [visit] the [statehouse] [dome] in {s}?
        Which city [serves] as {s}'s [administrative] [hub]?
        """,
    ),
    "past_en": wordings(
        "past tense/simple past",
        """
        Today I {s}, yesterday I {a}.
        The past tense of {s} is {a}.
        Yesterday they {a}, and today they {s} again.
        We say {a} when we talk about yesterday, not {s}.
        The verb {s} becomes {a} in the simple past.
        Last year we {a}, this year we {s}.
        """,
        """
        What does the verb {s} become in the simple past?
        Today I {s}. What did I do yesterday?
        What do we say for {s} when we talk about yesterday?
        Which form of {s} is used with yesterday?
        This year we {s}. Last year we did what?
        """,
        """
        Which form of the verb {s} do we say when we talk about last year?
        To talk about yesterday, what does {s} become?
        When last year is the time, what is used for the verb {s}?
        """,
        """
        In a [diary] about last year, how is the verb {s} [rendered]?
        How do you [alter] the verb {s} to [narrate] yesterday?
        [Recounting] [bygone] [days], what does {s} become?
        """,
    ),
    "participle_en": wordings(
        "past participle/third form",
        """
        I have never {a} like this, although I often {s}.
        The past participle of {s} is {a}.
        After have, the verb {s} turns into {a}.
        She has {a} before, and she will {s} once more.
        The third form of {s} in the list is {a}.
        With has or had, use {a} and not {s}.
        """,
        """
        After have, what does the verb {s} turn into?
        Which form of {s} follows has or had?
        What is the third form of {s} in the list?
        She will {s} once more. What has she done before?
        With had, what do you use for {s}?
        """,
        """
        In the list, what follows have for the verb {s}?
        What does {s} turn into with has before the verb?
        For the verb {s}, which form is third and follows have or had?
        """,
        """
        In the [perfect] [tenses] with have, how does the verb {s} [appear]?
        How is the verb {s} [inflected] [directly] after has?
        They had [already] done it: which form of {s} [fits]?
        """,
    ),
    "opposite_en": wordings(
        "opposite/antonym",
        """
        The opposite of {s} is {a}.
        If it is not {s}, it may be {a}.
        {s} and {a} are opposites.
        Turn {s} around and you get {a}.
        One child shouted {s}, another shouted {a}, just to disagree.
        {a} means the reverse of {s}.
        """,
        """
        Which word is the opposite of {s}?
        What do you get if you turn {s} around?
        If it is not {s}, what may it be?
        Which word means the reverse of {s}?
        {s} and which other word are opposites?
        """,
        """
        If it is the reverse of {s}, which other word do you get?
        One word is {s}. Which one means just the reverse?
        If you turn around what {s} means, which word may it be?
        """,
        """
        Which word [contrasts] [sharply] with {s}?
        {s} is at one [pole] of the [scale]; what is at the other?
        What is the [exact] [contrary] of {s}?
        """,
    ),
}
