"""Graders that cannot be cheated: policies without an answer earn nothing, honest ones earn all, priors earn chance."""

import re
import statistics
import time
from decimal import Decimal, InvalidOperation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards import REWARDS, Reply
from tests.support import cheats


def score(question, reply):
    reward = REWARDS[question.reward]
    answer = reward.gold(question.gold)
    assert answer is not None
    return reward(reply, answer)


def test_there_are_enough_of_them():
    assert len(cheats.CHEATS) >= 50


@pytest.mark.parametrize("name", cheats.CHEATS)
def test_a_cheat_earns_nothing(name):
    for question in cheats.ALL:
        assert score(question, cheats.CHEATS[name](question)) == 0, question


@pytest.mark.parametrize("letter", "ABCD")
def test_always_the_same_letter_earns_its_share(letter):
    assert statistics.mean(score(q, cheats.always(letter)(q)) for q in cheats.LETTER) == 0.25
    assert not any(score(q, cheats.always(letter)(q)) for q in cheats.EXACT + cheats.NUMBER + cheats.THOUGHT)


def test_guessing_earns_chance():
    policy = cheats.uniform(0)
    asked = [q for _ in range(500) for q in (*cheats.LETTER, *cheats.EXACT, *cheats.NUMBER)]
    mean = statistics.mean(score(q, policy(q)) for q in asked)
    assert abs(mean - 0.25) < 4 * (0.25 * 0.75 / len(asked)) ** 0.5
    assert not any(score(q, policy(q)) for q in cheats.THOUGHT), "a guess without the form"


def test_the_commonest_answer_earns_its_share():
    assert statistics.mean(score(q, cheats.always("巴黎")(q)) for q in cheats.EXACT) == 0.25


def test_a_remembered_place_earns_chance_when_the_options_are_moved():
    order = "ABCD"
    moved = [order[(order.index(q.gold) + k) % 4] for q in cheats.LETTER for k in range(4)]
    for letter in order:
        assert statistics.mean(REWARDS["letter"](Reply(letter, True), gold) for gold in moved) == 0.25


@pytest.mark.parametrize("question", cheats.ALL, ids=lambda q: f"{q.reward}-{q.gold}")
def test_honest_variants_earn_all(question):
    for form in cheats.HONEST[question.reward]:
        text = form.format(*[question.gold] * form.count("{}"))
        assert score(question, Reply(text, True)) == 1, text
    full_width = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in question.gold)
    form = cheats.HONEST[question.reward][0]
    if "<" not in form:
        assert score(question, Reply(form.format(full_width), True)) == 1, "declared equal"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("1,234", "1234"),
        ("1234.0", "1234"),
        ("0.50", "0.5"),
        ("-0.5", "-0.5"),
        ("12,345,678", "12345678"),
        ("−7", "-7"),
        ("-7", "−7"),
        ("#### −1,234.50", "-1234.5"),
    ],
)
def test_numbers_that_are_declared_equal(said, right):
    assert REWARDS["arithmetic"](Reply(said, True), REWARDS["arithmetic"].gold(right)) == 1


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("42.000000000000000000000000000001", "42"),
        ("41.999999999999999999999999999999", "42"),
        ("99999999999999999999999999999.9", "100000000000000000000000000000"),
        ("123456789012345678901234567891", "123456789012345678901234567890"),
        ("0.3333333333333333333333333333", "0.333333333333333333333333333333"),
        ("-0.000000000000000000000000000001", "0"),
    ],
)
def test_numbers_that_differ_in_their_last_digit_are_not_equal(said, right):
    reward = REWARDS["arithmetic"]
    assert reward(Reply(said, True), reward.gold(right)) == 0
    assert reward(Reply(right, True), reward.gold(right)) == 1


@pytest.mark.parametrize(
    "said", ["12,34", "1,2345", "042", "-0", ".5", "5.", "1e3", "½", "0x2a", "1_000", "-", "1 234"]
)
def test_what_is_no_number_does_not_parse(said):
    parsed = REWARDS["arithmetic"].parse(said)
    assert parsed is None or said == "5."  # the full stop of a sentence


def test_the_letter_may_stand_with_its_own_option():
    reward = REWARDS["letter"]
    answer = reward.gold("B. Beijing")
    for said in ("B", "B.", "B. Beijing", "B. Beijing."):
        assert reward(Reply(said, True), answer) == 1
    for said in ("B. Paris", "A. Beijing", "Beijing", "B Beijing", "B. Beijing or A", "B. Beijing\nA"):
        assert reward(Reply(said, True), answer) == 0


def second(question, reply):
    """A grader written another way."""
    if not reply.ended or len(reply.text) > 100_000:
        return 0
    text, gold = reply.text.strip(), question.gold
    if question.reward == "format":
        if not text.startswith("<think>") or text.count("<think>") + text.count("</think>") != 2:
            return 0
        parts = text[7:].split("</think>")
        if len(parts) != 2 or not re.search(r"[^\W\u115f\u1160\u3164\uffa0]|[!-~]", parts[0]):
            return 0
        text = parts[1].strip()
    if question.reward == "arithmetic" and "####" in text:
        lines = text.splitlines()
        if sum(line.count("####") for line in lines) != 1 or not lines[-1].startswith("####"):
            return 0
        text = lines[-1][4:].strip()
    text = "".join(chr(ord(c) - 0xFEE0) if "\uff01" <= c <= "\uff5e" else c for c in text)
    if text.endswith((".", "。")) and not re.search(r"[.。]\s*[.。]\Z", text):
        text = text[:-1].strip()
    if question.reward != "arithmetic":
        return int(text == gold)
    if not text or text[0] == "+" or set(text) - set("0123456789.-,") or text != text.strip():
        return 0
    digits = text.lstrip("-").split(".")[0]
    if "," in text:
        head, *groups = digits.split(",")
        if not 1 <= len(head) <= 3 or any(len(g) != 3 for g in groups):
            return 0
    if len(digits) > 1 and digits[0] == "0":
        return 0
    try:
        return int(Decimal(text.replace(",", "")) == Decimal(gold))
    except InvalidOperation:
        return 0


def test_another_grader_agrees():
    replies = 0
    for question in cheats.ALL:
        honest = [
            Reply(f.format(*[question.gold] * f.count("{}")), True) for f in cheats.HONEST[question.reward]
        ]
        wrong = [Reply(other, True) for other in question.others]
        for reply in (*(policy(question) for policy in cheats.CHEATS.values()), *honest, *wrong):
            assert score(question, reply) == second(question, reply), reply.text[:80]
            replies += 1
    assert replies > 1000


def test_a_grader_takes_no_time():
    texts = ["1," * 49_999, "0" * 100_000, "<think>" * 14_000, "#" * 100_000, "\n" * 100_000, "。" * 100_000]
    begin = time.process_time()
    for reward in REWARDS.values():
        for text in texts:
            assert reward(Reply(text, True), "1") == 0
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("reward", "text", "normal"),
    [
        ("letter", "B. 北京。", "B. 北京"),
        ("letter", "B", "B"),
        ("letter", "Because", None),
        ("letter", "B.C", None),
        ("arithmetic", "48 / 2 = 24\n#### 24", "24"),
        ("arithmetic", "twenty", None),
        ("exact", "巴黎。", "巴黎"),
        ("exact", "等等...", "等等..."),
        ("exact", "是。。", "是。。"),
        ("exact", "x. .", "x. ."),
        ("letter", "B. etc...", "B. etc..."),
        ("exact", "Cafe\u0301", "Café"),
        ("arithmetic", "−7", "-7"),
        ("arithmetic", "−0", None),
        ("arithmetic", "--7", None),
        ("format", "巴黎。", "巴黎"),
        ("format", "<think>因为</think>巴黎", None),
        ("format", "＜think＞巴黎", None),
        ("exact", " ", None),
        ("exact", "a\nb", None),
    ],
)
def test_right_answers_as_data_sets_write_them(reward, text, normal):
    assert REWARDS[reward].gold(text) == normal


@pytest.mark.parametrize("reward", ["exact", "format"])
def test_composed_and_decomposed_characters_are_the_same(reward):
    """A tokenizer with NFC gives back `é` for `e\u0301`."""
    for right, said in (("Cafe\u0301", "Café"), ("Café", "Cafe\u0301")):
        answer = REWARDS[reward].gold(right)
        assert REWARDS[reward](wrapped(reward, said), answer) == 1


@pytest.mark.parametrize(
    "thought", ["\u200b", "\ufeff", "\0", "\u2060\n", "\u3164", "\u2800", "\ufe0f", "\u202e"]
)
def test_what_is_not_seen_is_no_thought(thought):
    assert REWARDS["format"](Reply(f"<think>{thought}</think>巴黎", True), "巴黎") == 0
    assert REWARDS["format"](Reply(f"<think>{thought}x</think>巴黎", True), "巴黎") == 1


def wrapped(reward, answer):
    """An honest reply: the answer as its reward wants it said."""
    return Reply(f"<think>a</think>{answer}" if reward == "format" else answer, True)


@pytest.mark.parametrize("reward", REWARDS)
@given(text=st.text(st.sampled_from("AB. .。．<>/think\n\u3000x7,-−#é\u0301ｅ≯\u0338")))
def test_a_right_answer_is_its_own_normal_form_and_can_be_earned(reward, text):
    for said in (text, f"B. {text}", f"#### {text}", f"7{text}"):
        answer = REWARDS[reward].gold(said)
        if answer is not None:
            assert REWARDS[reward].gold(answer) == answer
            assert REWARDS[reward](wrapped(reward, answer), answer) == 1
