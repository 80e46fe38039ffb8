"""What the steel recipes repair: each case here is damaged or lost under the paper's parameters."""

import pytest

from tests.support.samples import dialogue, real_text, record, shuffled

SENTENCES = {part + "。" for seed in range(300) for part in real_text(seed).split("。") if part}
LONG = "".join(sorted(SENTENCES))
assert len(LONG) > 2000  # without a line break and without a repeated sentence


def only_text(row):
    assert not row.gone, (row.dropped_by, row.why)
    return "\n".join(row.texts)


def test_an_unwrapped_chinese_paragraph_is_kept_as_it_is(clean):
    assert only_text(clean("steel", record(LONG))) == LONG
    assert clean("paper", record(LONG)).dropped_by == "alphanumeric_filter"


def test_chinese_punctuation_stays(clean):
    text = "“你在哪里？”老师问。他说：“我在图书馆看《红楼梦》（上册），大家都知道！”"
    assert only_text(clean("steel", record(text))) == text


def test_traditional_becomes_simplified(clean):
    assert (
        only_text(clean("steel", record("這個國家的圖書館裡有很多書，大家都喜歡。")))
        == "这个国家的图书馆里有很多书，大家都喜欢。"
    )


@pytest.mark.parametrize(
    "text", ["活字印刷术的创始人是毕昇，大家都知道。", "周顗是晋朝人，精通乾坤之理，大家都知道。"]
)
def test_simplified_text_is_not_simplified_further(clean, text):
    assert only_text(clean("steel", record(text))) == text


def test_full_width_letters_and_digits_become_narrow(clean):
    assert only_text(
        clean("steel", record("他在２０２４年买了一台ＰＣ，大家都觉得这是一件好事。"))
    ).startswith("他在2024年买了一台PC，")


def test_mojibake_is_repaired(one_step):
    row = one_step({"operator": "steel_fix_encoding_mapper"}, record("The cafÃ© was closed â€” “really”."))
    assert row.texts == ["The café was closed — “really”."]


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        (
            "请写信到 someone@example.com 联系老师，大家都觉得这是一件好事。",
            "请写信到  联系老师，大家都觉得这是一件好事。",
        ),
        (
            "<p>小学生在院子里种了三棵苹果树。</p><p>这让他感到&nbsp;非常高兴。</p>",
            "小学生在院子里种了三棵苹果树。\n这让他感到 非常高兴。",
        ),
        (
            "更多内容见https://a.example.com/x?y=1，后来人们常常说起这件事。",
            "更多内容见，后来人们常常说起这件事。",
        ),
        ("服务器的地址是192.168.10.254，这让他感到非常高兴。", "服务器的地址是，这让他感到非常高兴。"),
    ],
)
def test_dirt_goes_and_its_sentence_stays(clean, dirty, expected):
    assert only_text(clean("steel", record(dirty))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "若 a<b 且 c>d，则他在12:30和1.2.3.4节里说的都对，大家都觉得这是一件好事。",
        "# 第一章 春天来的时候一切都变了样。\n小学生在院子里种了三棵苹果树，这让他感到非常高兴。",
    ],
)
def test_what_only_looks_like_dirt_stays(clean, text):
    assert only_text(clean("steel", record(text))) == text


def test_repeated_long_sentences_go_and_short_lines_stay(clean):
    text = "答案：甲\n小学生每天早上都在院子里给三棵苹果树浇很多的水。\n答案：甲\n小学生每天早上都在院子里给三棵苹果树浇很多的水。后来人们常常说起这件事。"
    cleaned = only_text(clean("steel", record(text)))
    assert cleaned.count("三棵苹果树") == 1
    assert cleaned.count("答案：甲") == 2


@pytest.mark.parametrize(
    "text",
    [
        "锟斤拷烫烫烫屯屯屯锟斤拷烫烫烫屯屯屯锟斤拷拷斤锟屯屯烫烫锟拷斤",
        "$$%%^^&&**(())__++==--##@@!!~~||;;::,,..??//\\\\",
        "1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7",
    ],
)
def test_gibberish_is_dropped(clean, text):
    assert clean("steel", record(text)).dropped_by


def test_perplexity_lets_real_text_pass_and_stops_the_same_characters_in_disorder(one_step):
    step = {"operator": "perplexity_filter", "parameters": {"lang": "zh", "max_ppl": 300}}
    unseen = [real_text(seed) for seed in range(5000, 5100)]
    assert not any(one_step(step, record(text)).gone for text in unseen)
    stopped = [one_step(step, record(shuffled(text, seed))) for seed, text in enumerate(unseen)]
    assert all(row.dropped_by == "perplexity_filter" and row.why["perplexity"] > 300 for row in stopped)


def test_a_dialogue_keeps_its_turns_and_its_repetitions(clean):
    turns = [
        "你好。",
        "你好。",
        "再说一遍：大家都觉得这是一件好事。",
        "大家都觉得这是一件好事。",
        "你好。",
        "你好。",
    ]
    row = clean("steel", dialogue(*turns))
    assert not row.gone
    assert [m["content"] for m in row.result()["messages"]] == turns
    assert [m["role"] for m in row.result()["messages"]] == ["user", "assistant"] * 3


def test_a_short_question_and_answer_are_kept(clean):
    assert not clean("steel", dialogue("1+1=?", "2。")).gone
    assert not clean("steel", dialogue("氢的符号是？", "H")).gone


def test_code_in_a_message_keeps_tabs_and_markup(clean):
    answer = "可以这样写：\n```html\n<div>\n\t<p>你好</p>\n</div>\n```\n\tfor x in y:\n\t\tprint(x)"
    row = clean("steel", dialogue("怎么用HTML写一个页面？", answer))
    assert row.texts[1] == answer


def test_addresses_in_an_example_program_stay_and_in_prose_they_go(clean):
    program = "```\nfetch('http://a.example/b', '10.20.30.40')\n```"
    row = clean(
        "steel",
        dialogue("怎么下载文件？", f"看http://c.example/d，运行{program}或者`ping 10.20.30.40`都可以。"),
    )
    assert row.texts[1] == f"看，运行{program}或者`ping 10.20.30.40`都可以。"


def test_each_message_is_cleaned(clean):
    row = clean("steel", dialogue("這是什麼？", "<b>大家都觉得</b>这是一件好事。"))
    assert row.texts == ["这是什么？", "大家都觉得这是一件好事。"]


def test_a_dialogue_with_an_emptied_message_is_dropped_by_who_emptied_it(clean):
    row = clean("steel", dialogue("请给我老师的网址，谢谢你。", "https://example.com/teacher"))
    assert (row.dropped_by, row.why) == ("steel_clean_links_mapper", {"emptied": True})


C_PROGRAM = '#include <iostream>\n// prints a greeting\nint main() {\n\tstd::map<int, int> m;\n\tstd::cout << "see http://a.example/b" << a.b@c << std::endl;\n\treturn 0;\n}\n'
PY_PROGRAM = "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n\ndef f(nums: list, a=1):\n\tif nums:\n\t    return {'k:v': '，。'}\n"


@pytest.mark.parametrize("program", [C_PROGRAM, PY_PROGRAM])
def test_code_is_left_as_written(clean, program):
    assert only_text(clean("steel", record(program, "code"))) == program


def test_mail_addresses_and_inline_labels_leave_code(clean):
    program = "<reponame>some/repo<gh_stars>10-100\n# Author: A. Person <a.person@example.org>\nx = obj@other.method(y)\n"
    assert (
        only_text(clean("steel", record(program, "code")))
        == "# Author: A. Person <>\nx = obj@other.method(y)\n"
    )


def test_cleaning_twice_changes_nothing_more(clean):
    texts = [
        "<p>這是a&amp;b。</p>见http://a.example/b。" + real_text(1),
        LONG,
        "第一行\n\n\n第二行在这里，大家都知道。",
    ]
    for text in texts:
        once = only_text(clean("steel", record(text)))
        assert only_text(clean("steel", record(once))) == once


def test_a_nul_does_not_end_a_traditional_text(one_step):
    """OpenCC stops there, and what follows would be lost."""
    step = {"operator": "steel_chinese_convert_mapper", "parameters": {"mode": "t2s"}}
    assert only_text(one_step(step, record("這是\0後來的話"))) == "这是\0后来的话"
