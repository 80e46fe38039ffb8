"""Which texts are simplified: those written in traditional Chinese, and no name, quotation or other language."""

import opencc
import pytest

from tasks.clean import traditional

SIMPLIFIED = "图书馆里的人们都在认真地读书，这时候门开了。"


def simplified(text):
    return traditional.simplified(text, opencc.OpenCC("t2s.json").convert)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("這個國家的圖書館裡有很多書，大家都喜歡。", "这个国家的图书馆里有很多书，大家都喜欢。"),
        ("簡體與繁體", "简体与繁体"),
        ("乾隆皇帝與乾安縣的餅乾，文徵明在氾水。", "乾隆皇帝与乾安县的饼干，文徵明在氾水。"),
        ("李乾順和慕容乾歸都是歷史人物。", "李乾顺和慕容乾归都是历史人物。"),
        ("「後」與「髮」這兩個字，學生經常寫錯。", "「後」与「髮」这两个字，学生经常写错。"),
        ("他說Hello，學習English。", "他说Hello，学习English。"),
        (
            "電影《となりのトトロ》很好看。" + "這部電影，我們看過了很多次。" * 6,
            "電影《となりのトトロ》很好看。" + "这部电影，我们看过了很多次。" * 6,
        ),
        ("這是\0後來的話\0\0", "这是\0后来的话\0\0"),
    ],
)
def test_a_traditional_text_is_simplified(text, expected):
    assert simplified(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{SIMPLIFIED}他叫陳奕迅。",
        f"陳奕迅\n{SIMPLIFIED}",
        f"“後”是“后”的繁体字，“髮”和“發”都简化成“发”。{SIMPLIFIED}",
        f"𠮷野家的牛肉飯很好吃。{SIMPLIFIED}",
        f"关於这个问题，还需要讨论。{SIMPLIFIED}",
        "活字印刷术的创始人是毕昇，大家都知道。",
        "乾隆皇帝是清朝的第六位皇帝，乾坤、乾安县、萧乾都是常见的写法。",
        "東京は日本の首都です。図書館で本を読みました。",
        "東京都図書館\n本を読みました。学生のときは、よく行きました。",
        "機械学習に関する記事です",
        "経済発展変化図書館東京",  # no kana: signs that only Japanese writing has
        "大韓民國의 首都는 서울이다. 國會도 서울에 있다.",
        "The singer Eason Chan (陳奕迅) was born in Hong Kong in the year 1974 and is widely known.",
        "完全没有",
        "",
    ],
)
def test_what_is_not_written_in_traditional_chinese_stays(text):
    assert simplified(text) == text


def test_of_a_mixed_text_the_traditional_lines_are_simplified_and_short_ones_stay():
    traditional_line = "發動機之於汽車，猶如心臟之於人，這是眾所周知的。"
    text = "\n".join([SIMPLIFIED * 3, traditional_line, "陳奕迅《淘汰》", SIMPLIFIED, ""])
    expected = "\n".join(
        [SIMPLIFIED * 3, "发动机之于汽车，犹如心脏之于人，这是众所周知的。", "陳奕迅《淘汰》", SIMPLIFIED, ""]
    )
    assert simplified(text) == expected


def test_simplifying_twice_changes_nothing_more():
    once = simplified("這個國家的圖書館裡有很多書，「後」字很常見。")
    assert simplified(once) == once
