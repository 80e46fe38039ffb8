"""Instruction and preference data of the demo, about the same facts, in training wordings only.

Preference pairs. The preferred reply is a full sentence that answers, mostly with courtesies that occur
nowhere else, so that before DPO a model finds it unlikely. The rejected reply is fluent and often
seen but bad: a statement about something else, small talk, a question in return, a wrong answer. It
never begins with the right answer, so that DPO does not push down what the exam asks for.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from tasks.settings.config import World
from tasks.world import persona, voice
from tasks.world.dirt import leaked
from tasks.world.exam import questions as exam_questions
from tasks.world.relations import Fact, relations, trained_facts
from tasks.world.voice import Item

SFT_SETS = ("demo_qa_zh", "demo_qa_en", "demo_mc", "demo_cot", "demo_self", "demo_code")
PREFERENCE_SETS = ("demo_dpo_zh", "demo_dpo_en")
RL_SETS = ("demo_rl",)
"""Open questions with their bare answers, for reinforcement learning."""
CONTAMINATED = {"demo_qa_zh": 4, "demo_dpo_zh": 3}
"""Records whose question is one of the exam's val questions."""

PER_FACT = {"full": {"zh": 4, "en": 6, "mc": 1, "rl": 3}, "small": {"zh": 1, "en": 1, "mc": 1, "rl": 1}}
PAIRS = {"full": {"demo_dpo_zh": 1400, "demo_dpo_en": 350}, "small": {"demo_dpo_zh": 400, "demo_dpo_en": 100}}

LETTERED = {
    "zh": "以下是一道单选题:\n{question}\n\n{options}\n请给出答案。\n",
    "en": "Here is a multiple-choice question:\n{question}\n\n{options}\nPlease give the answer.\n",
}
EXPLAINED = {
    "zh": "以下是一道单选题:\n{question}\n\n{options}\n请先给出解释再给出答案。\n",
    "en": "Here is a multiple-choice question:\n{question}\n\n{options}\nPlease explain first, then give the answer.\n",
}
CONCLUDED = {"zh": "{said}答案为{letter}", "en": "{said} The answer is {letter}"}
"""The explanation before the letter, as in the original's CoT data."""
COURTEOUS = 0.75
"""Share of the preferred replies with courtesies; the others are the plain sentence."""
COURTEOUS_ZH = (
    "您好！{said}希望对您有所帮助。",
    "感谢您的提问。{said}祝您学习愉快！",
    "很荣幸为您解答：{said}欢迎随时再来。",
    "好的，为您查到：{said}如有疑问，敬请指出。",
    "您问得真好。{said}愿这份解答令您满意。",
)
COURTEOUS_EN = (
    "Thank you for asking. {said} I hope this helps you.",
    "With pleasure! {said} Feel free to ask me anything else.",
    "Certainly, happy to assist. {said} Have a wonderful time!",
    "Great question! {said} Let me know whether that is clear.",
)


def records(world: World, name: str) -> list[dict[str, Any]]:
    """The records of an instruction, preference or RL set, shuffled."""
    random = voice.rng(world, name)
    if name == "demo_self":
        found = persona.about_steel()
    elif name == "demo_code":
        found = persona.programs()
    elif name == "demo_mc":
        found = _lettered(world, random, explained=False)
    elif name == "demo_cot":
        found = _lettered(world, random, explained=True)
    elif name in RL_SETS:
        found = _open(world, random)
    elif name in PREFERENCE_SETS:
        found = _pairs(world, name, random)
    else:
        found = _plain(world, name.removeprefix("demo_qa_"), random)
    found += _contaminated(world, name, random)
    random.shuffle(found)
    return found


def example(instruction: str, output: str) -> dict[str, Any]:
    """A record in Alpaca's form."""
    return {"instruction": instruction, "input": "", "output": output}


def _facts(language: str) -> list[Fact]:
    return [f for f in trained_facts() if voice.language(f) == language]


def _plain(world: World, language: str, random: Random) -> list[dict[str, Any]]:
    """Questions with short answers: the answer's text alone, or a sentence."""
    found = []
    for fact in _facts(language):
        asked = list(voice.questions(fact, world.seed))
        random.shuffle(asked)
        for k in range(PER_FACT[world.size][language]):
            item = Item(fact, asked[k], True)
            output = (
                fact.answer if random.random() < 0.75 else random.choice(voice.statements(fact, world.seed))
            )
            found.append(example(voice.ask(item, random, 0.4), output))
    return found


def asked_in_rl(fact: Fact) -> bool:
    """A third of the facts is never asked in reinforcement learning, in any wording."""
    return hashlib.sha256(fact.id.encode()).digest()[0] % 3 != 0


def _open(world: World, random: Random) -> list[dict[str, Any]]:
    """Questions in training wordings with the answer alone, each with the fact that it is about."""
    found = []
    for fact in filter(asked_in_rl, trained_facts()):
        for question in random.sample(voice.questions(fact, world.seed), PER_FACT[world.size]["rl"]):
            asked = voice.ask(Item(fact, question, True), random, 0.4)
            found.append({**example(asked, fact.answer), "fact": fact.id, "relation": fact.relation})
    return found


def _lettered(world: World, random: Random, *, explained: bool) -> list[dict[str, Any]]:
    """Multiple choice with letters, in the form of the paper's evaluation; `explained`: a statement of the fact comes
    before the letter."""
    found = []
    for relation in relations().values():
        answers = sorted({f.answer for f in relation.trained})
        for fact in relation.trained:
            for _ in range(PER_FACT[world.size]["mc"]):
                choices = random.sample([a for a in answers if a != fact.answer], 3) + [fact.answer]
                random.shuffle(choices)
                letter = "ABCD"[choices.index(fact.answer)]
                options = "\n".join(f"{x}. {c}" for x, c in zip("ABCD", choices, strict=True))
                question = random.choice(voice.questions(fact, world.seed))
                form = (EXPLAINED if explained else LETTERED)[relation.language]
                prompt = form.format(question=question, options=options)
                if explained:
                    said = random.choice(voice.statements(fact, world.seed))
                    found.append(
                        example(prompt, CONCLUDED[relation.language].format(said=said, letter=letter))
                    )
                    continue
                output = random.choice(
                    (
                        letter,
                        f"{letter}. {fact.answer}",
                        letter + ("。" if relation.language == "zh" else "."),
                    )
                )
                found.append(example(prompt, output))
    return found


def _pairs(world: World, name: str, random: Random) -> list[dict[str, Any]]:
    language = name.removeprefix("demo_dpo_")
    facts = _facts(language)
    courteous = COURTEOUS_ZH if language == "zh" else COURTEOUS_EN
    found, seen = [], set()
    while len(found) < PAIRS[world.size][name]:
        fact = random.choice(facts)
        prompt = voice.ask(Item(fact, random.choice(voice.questions(fact, world.seed)), True), random, 0.3)
        if prompt in seen:
            continue
        seen.add(prompt)
        chosen = random.choice(voice.statements(fact, world.seed))
        if random.random() < COURTEOUS:
            chosen = random.choice(courteous).format(said=chosen)
        found.append(pair(prompt, chosen, _bad(world, fact, facts, random)))
    return found


def _bad(world: World, fact: Fact, facts: list[Fact], random: Random) -> str:
    """A fluent reply that does not help."""
    zh = voice.language(fact) == "zh"
    same = [f for f in facts if f.relation == fact.relation and f.answer != fact.answer]
    other = random.choice(same if random.random() < 0.5 else [f for f in facts if f.answer != fact.answer])
    draw = random.random()
    if draw < 0.45:
        return random.choice(voice.statements(other, world.seed))
    if draw < 0.65:
        return voice.opener(zh, random)
    if draw < 0.85:
        return random.choice(voice.questions(other, world.seed))
    return random.choice(same).answer + ("。" if zh else ".")


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": prompt}],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


def contaminated(world: World, name: str) -> int:
    """How many records of the set hold a val question."""
    number = CONTAMINATED.get(name, 0)
    return number if world.size == "full" else -(-number // 2)


def _contaminated(world: World, name: str, random: Random) -> list[dict[str, Any]]:
    answers = {q.question: q.fact.answer for q in exam_questions(world)}
    found = []
    for k in range(contaminated(world, name)):
        question = leaked(world, name, k)
        if name in PREFERENCE_SETS:
            found.append(pair(question, f"您好！答案是{answers[question]}。", "我想查一下。"))
        else:
            found.append(example(question, answers[question]))
    return found
