"""HTML in running text: whole tags, halves at the text's ends, and signs that are no markup."""

import pytest

from tests.support.samples import dialogue, record

STEP = {"operator": "steel_clean_html_mapper", "spare_code": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>第一段。</p><p>第二段。</p>", "第一段。\n第二段。"),
        ('<img src="a.jpg"alt="图"><p class=x data-y>正文。</p><video controls>后文。', "正文。\n后文。"),
        ("<input type='text' required aria-label='名'>正文", "正文"),
        ('<a href="http://a.example/?x=1&copy=2" target=_blank>链接</a>在此', "链接在此"),
        ("<font size=+1>大</font><br/>小", "大\n小"),
        ('正文<a href="http://a.example/b', "正文"),
        ('正文<img src="a.jpg" alt="图', "正文"),
        ("正文<div class=x", "正文"),
        ("<p>正文</p", "正文"),
        ('class="x" id="y">正文', "正文"),
        ('a/b.jpg" alt="图" />正文<br>后文', "正文\n后文"),
        ("A&amp;B的&nbsp;利润&lt;5%", "A&B的\xa0利润<5%"),
        ("<b>A&amp;B</b>的AT&T", "A&B的AT&T"),
        ("H<b>2</b>O和x<i>i</i>", "H2O和xi"),
        ("word<p>next<b>more", "wordnextmore"),
    ],
)
def test_tags_go_whole_and_halves_at_the_ends(one_step, text, expected):
    assert one_step(STEP, record(text)).texts == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "当x<5且y>3时；若a<b and c>d，则结论成立",
        "若a<b",
        "若 a < b, b > c",
        "若a<b>c，则a不一定大于c；对i<j>k同理",
        "当x1<p>y2时，由3<s>2得出结论",
        "(a<b>c)",
        "p<q>r，i<b>c 不成立？".replace("<q>", "< q >").replace("<b>", "< b >"),
        "x > y，且 y >= z",
        '"a">"b"，因为比较的是字典序',
        "在C++里写std::vector<int> v; std::map<string, int> m;",
        "推荐阅读<红楼梦>和<三国演义>",
        "见http://a.example/?a=1&copy=2&para=3",
        "AT&T和R&D",
        "用`<b>加粗</b>`和`<br>`换行",
        "代码：\n```\n<div class='x'>\n```\n以上",
        "我<3你",
        "空标签<>和</>",
    ],
)
def test_other_signs_stay(one_step, text):
    assert one_step(STEP, record(text)).texts == [text]


def test_code_spans_stay_between_tags_and_keep_their_spaces(one_step):
    text = "<p>用 `<b>` 加粗。</p><p>再用 ```<i>x</i>``` 斜体。</p>\ue000"
    assert one_step(STEP, record(text)).texts == ["用 `<b>` 加粗。\n再用 ```<i>x</i>``` 斜体。\n\ue000"]
    turns = one_step(STEP, dialogue("没有", "<p>`a<b>c` 和 `d`</p>")).texts
    assert turns == ["没有", "`a<b>c` 和 `d`"]
