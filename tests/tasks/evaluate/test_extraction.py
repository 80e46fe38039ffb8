"""What a reply is taken to say: golden cases, among them those that looser extractors read wrongly."""

import pytest

from tasks.evaluate.checking import exact, is_number
from tasks.evaluate.extraction import choice

CHOICES = ("1", "2", "3", "4")
A, B, C, D = range(4)

TRAPS = {
    # what the extractors of the paper's scripts make of these: A and A, B and A, A and a random letter,
    # C and a random letter, A and a crash
    "不选A，应该选D": D,
    "A选项错误，B选项正确": B,
    "我不知道。": None,
    "根据题意，1+1=2": None,
    "": None,
}
CHINESE = {
    "B": B,
    "Ｂ": B,
    "b": B,
    "（B）": B,
    "B。解析：A项错误，所以答案是B。": B,
    "B. 2": B,
    "D选项": D,
    "答案是C": C,
    "答案：D": D,
    "答案为（B）": B,
    "正确答案是 A。": A,
    "最终答案是B，不是A": B,
    "我先想到A，选A。但是最终答案是C。": C,
    "故选：B": B,
    "综上所述，选B。": B,
    "因此选C": C,
    "这道题选B": B,
    "我认为应该是B。": B,
    "C 是正确的": C,
    "B选项正确，因为A选项错误": B,
    "排除A，排除B，选C": C,
    "答案不是A，而是C": C,
    "选A或B": None,
    "A、B": None,
    "A和C都正确": None,
    "ABCD": None,
    "A B C D 都对": None,
    "A.1 B.2 C.3 D.4": None,
    "A. 1\nB. 2\nC. 3\nD. 4": None,
    "不是B": None,
    "都不对": None,
    "A公司的利润": None,
    "选项A正确。选项B正确。": None,
}
ENGLISH = {
    "C.": C,
    "(C)": C,
    "The answer is (B).": B,
    "The correct answer is D: because": D,
    "Answer: C": C,
    "I think it's B.": B,
    "I would choose option A": A,
    "A is wrong, B is correct.": B,
    "The answer is not A. The answer is C.": C,
    "A good choice would be C.": C,
    "Apple is a fruit": None,
    "A man walks": None,
    "A and B": None,
    "Both A or B are possible": None,
    "I don't know": None,
    "A=1": None,
    "F": None,
    "": None,
}
TEXTS = {"2": B, "2。": B, " 4 ": D, "2 and 3": None, "12": None}


@pytest.mark.parametrize(("reply", "due"), [*{**TRAPS, **CHINESE, **ENGLISH, **TEXTS}.items()])
def test_golden(reply, due):
    assert choice(reply, CHOICES)[0] == due


def test_why_a_reply_is_not_parsed():
    assert choice("", CHOICES)[1] == "empty"
    assert choice("选A或B", CHOICES)[1] == "several letters"
    assert choice("随便", CHOICES)[1] == "no letter"


def test_letters_beyond_the_options_are_none():
    assert choice("E", CHOICES) == (None, "no letter")
    assert choice("E", tuple("vwxyz")) == (4, "beginning")
    assert choice("B", ("x", "x")) == (1, "beginning")
    assert choice("x", ("x", "x")) == (None, "no letter")


@pytest.mark.parametrize(
    ("reply", "target", "right", "parsed"),
    [
        ("He needs 24 * 24 = 576 tiles. The answer is 576.", "576.0", True, True),
        ("#### 1,200", "1200", True, True),
        ("First 3, then 4. #### 7\nThat is 8 less than 15", "7", True, True),
        ("so 3/4 of it", "0.75", True, True),
        ("１２", "12", True, True),
        ("答案是 12 个，不是 13", "12", True, True),
        ("-3", "3", False, True),
        ("I do not know", "3", False, False),
        ("1/0", "3", False, False),
        ("巴黎。", "巴黎", True, True),
        ("答案是巴黎", "巴黎", True, True),
        ("巴黎和里昂", "巴黎", False, True),
        ("The Nile.", "nile", True, True),
        ("It is Au\nbecause gold", "Au", True, True),
        ("Paris, France", "Paris", False, True),
        ("", "Paris", False, False),
    ],
)
def test_an_open_answer_is_right_exactly_or_not_at_all(reply, target, right, parsed):
    assert exact(reply, target) == (right, parsed)


def test_numbers():
    assert all(map(is_number, ("3", "-3.5", "1,200", "3/4")))
    assert not any(map(is_number, ("", "3 m", "三", "x3")))
