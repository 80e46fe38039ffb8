"""Links and IP addresses: where they end, what goes with them, and which dotted numbers are none."""

import pytest

from tasks.clean.addresses import without_addresses, without_links


@pytest.mark.parametrize("pair", ["《》", "『』", "“”", "〔〕", "（）", "【】"])
def test_brackets_around_nothing_but_a_link_go_with_it(pair):
    assert without_links(f"详见{pair[0]}https://a.example/x_(y){pair[1]}，很好。") == "详见，很好。"
    kept = f"详见{pair[0]}入门 https://a.example/x{pair[1]}，很好。"
    assert without_links(kept) == f"详见{pair[0]}入门{pair[1]}，很好。"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("详情请看https://example.com/a?b=1。后文还有", "详情请看。后文还有"),
        ("详情请看 http://example.com/a，谢谢", "详情请看，谢谢"),
        ("见http://a.example/b；再看ftp://c.example/d！好", "见；再看！好"),
        ("见“一，http://a.example/b”一文", "见“一，”一文"),
        ("见《http://a.example/b》", "见"),
        ("见http://a.example/b、http://c.example/d", "见、"),
        (
            "见http://a.example/b后来人们常常说起这件事，大家都知道。",
            "见后来人们常常说起这件事，大家都知道。",
        ),
        ("www.example.com（请收藏）", "（请收藏）"),
        ("见https：//www.example.com/x 一文", "见 一文"),
        (
            "See http://a.example/b. Then go on, http://a.example/?q=1, and stop.",
            "See. Then go on,, and stop.",
        ),
        ("见http://a.example/#!/x/y?z=1;w=2 一文", "见 一文"),
    ],
)
def test_a_link_ends_before_the_sentence_goes_on(text, expected):
    assert without_links(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("参见https://en.wikipedia.org/wiki/Mercury_(planet)的英文条目", "参见的英文条目"),
        ("参见https://a.example/x_(b_(c))_d一文", "参见一文"),
        ("参见http://a.example/q?ids[]=1&ids[2]=3一文", "参见一文"),
        ("（参见http://a.example/x_(y)）一文", "（参见）一文"),
        ("(see http://a.example/x) and", "(see) and"),
        ("(see http://a.example/x_(y)) and", "(see) and"),
        ("平台(http://a.example/b)上", "平台上"),
        ("平台（www.example.com）上", "平台上"),
        ("投稿<https://a.example/b>即可", "投稿即可"),
        ("官网【 http://a.example 】里", "官网里"),
        ("[官网](https://a.example/b)很好", "官网很好"),
        ('[官网](https://a.example/x_(y) "标题")很好', "官网很好"),
        ("![图一](https://a.example/b.png)\n正文", "图一\n正文"),
        ("[![图](http://a.example/i.png)](http://a.example)", "图"),
        ("[http://a.example](http://a.example)一", "一"),
    ],
)
def test_brackets_are_taken_in_pairs(text, expected):
    assert without_links(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("条目在https://zh.wikipedia.org/wiki/北京市，欢迎补充", "条目在，欢迎补充"),
        ("条目在https://zh.wikipedia.org/wiki/苹果_(公司)。", "条目在。"),
        ("见https://baike.example.com/item/北京市/历史?from=1 一文", "见 一文"),
        ("搜http://a.example/s?wd=天气预报&p=2 看看", "搜 看看"),
        ("见http://a.example/后来大家都去了，很好", "见后来大家都去了，很好"),  # no title: the site itself
        (
            "见http://a.example/wiki/后来人们常常说起这件事并且一直说到了今天，",
            "见后来人们常常说起这件事并且一直说到了今天，",
        ),
    ],
)
def test_a_title_in_han_belongs_to_its_link(text, expected):
    assert without_links(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "他在12:30到，名字:值，foo.bar/baz",
        "[链接](/a/b)和[注](#x)",
        "数组a[0](x)",
        "http协议和www万维网",
        "http://",
        "www.",
        "比分3://2",
    ],
)
def test_what_is_no_link_stays(text):
    assert without_links(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("服务器的地址是192.168.10.254，请记住", "服务器的地址是，请记住"),
        ("发布者地址：10.23.45.67", "发布者地址："),
        ("IP:223.104.63.12发表于昨天", "IP:发表于昨天"),
        ("连接10.1.2.30:8080端口", "连接端口"),
        ("网段10.0.0.0/8和192.168.0.0/16", "网段和"),
        ("升级后服务器的地址是10.20.30.40", "升级后服务器的地址是"),
        ("In step 3, connect to host 10.20.30.40.", "In step 3, connect to host ."),
        ("新版本已发布。来自223.104.63.12的网友", "新版本已发布。来自的网友"),
        ("223.104.63.12 网友\n223.104.63.13 楼主", " 网友\n 楼主"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334上线", "上线"),
    ],
)
def test_an_address_goes_with_its_port(text, expected):
    assert without_addresses(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "请参阅第12.3.4.1节的说明",
        "请参阅§12.3.4.1",
        "请参阅12.3.4.1节和12.3.4.12小节",
        "见第 12.3.4.1、12.3.4.2 和 12.3.4.13 条",
        "见4.12.3.1，另见附录 10.2.3.4",
        "see Section 10.2.3.4 and Fig. 10.2.3.5",
        "如图10.2.3.4所示，由式 10.2.3.5 得",
        "4.2 总则\n4.2.1 范围\n4.2.10.31 系统要求",
        "## 112.3.4 概述\n正文\n### 112.3.4.50 细节",
        "12.10.3.4 概述",
        "本软件的当前版本是10.0.19.3，请到官网下载",
        "从版本 10.0.19.3 升级到 10.0.20.11",
        "Version: 10.0.19.3",
        "v10.0.19.3、ver.10.0.19.3、10.0.19.3版、10.0.19.3-beta",
        "Chrome/96.0.46.110 Safari/53.7.36.12",
        "10.0.0.256和300.1.1.1和12.03.04.01",
        "12.13.14.15.16",
        "1.2.3.4",
        "127.0.0.1",
        "比分是10.5，日期是2024.10.11",
    ],
)
def test_numbers_of_sections_and_versions_are_no_addresses(text):
    assert without_addresses(text) == text
