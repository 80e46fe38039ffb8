"""Links and IP addresses in running text: what is one, how far it goes, and what goes with it."""

from __future__ import annotations

import re

import regex

# ------------------------------------------------------------------------------------ links
_SIGNS = r"a-z0-9\-._~:/?#@&+,=%!$;"
# a page's title in Han, after a folder's or a parameter's name and up to the next sign: …/wiki/北京市，
_TITLE = (
    r"(?<=/[\p{Han}a-z_\-]{1,30}/|[=#_])\p{Han}[\p{Han}·a-z0-9_%\-]{0,15}"
    r"(?=[\s\p{P}\p{S}]|\Z)"
)
_INSIDE = rf"[{_SIGNS}]|(?<=_\()\p{{Han}}{{1,30}}"


def _pairs(inside: str) -> str:
    """A pair of round or square brackets; bounded and possessive, so that an open one costs little."""
    return rf"\((?:{inside}){{0,200}}+\)|\[(?:{inside}){{0,200}}+\]"


_PAIRS = _pairs(rf"{_INSIDE}|{_pairs(_INSIDE)}")
_URL = (
    rf"(?<![a-z0-9])(?:(?:https?|ftps?)[:：]//(?=[^\s\p{{P}}])|www\d{{0,3}}\.(?=[a-z0-9]))"
    rf"(?:[{_SIGNS}]|{_TITLE}|{_PAIRS})*(?:[a-z0-9/_~#&=%\-]|{_TITLE}|{_PAIRS})"
)
_FLAGS = regex.IGNORECASE | regex.V0
_LINK_SIGN = re.compile(r"(?i)[:：]//|www")
_BRACKETS = (r"\(\)", "（）", "<>", "＜＞", r"\[\]", "【】", "〈〉", "「」", "『』", "《》", "〔〕", "“”")
_ENCLOSED = "|".join(
    rf"{open_}\s*{_URL}\s*{close}" for open_, close in (re.findall(r"\\?.", pair) for pair in _BRACKETS)
)
_LINK = regex.compile(rf" ?(?:{_ENCLOSED}|{_URL})", _FLAGS)
_MARKDOWN = regex.compile(
    rf"!?\[(?P<label>[^\[\]\n]{{0,200}})\]\(\s*<?{_URL}>?(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'))?\s*\)",
    _FLAGS,
)


def without_links(text: str) -> str:
    """The text without its links; of a Markdown link the label stays.

    A link begins with a scheme or `www`. Brackets are part of it in pairs, punctuation at its end and all
    that is not ASCII is not, except a title in Han as the sites of encyclopedias write it. A pair of brackets
    that holds nothing but the link goes with it.
    """
    if not _LINK_SIGN.search(text):
        return text
    if "](" in text:
        for _ in range(2):  # a linked image is one link inside another
            text = _MARKDOWN.sub(lambda link: link["label"], text)
    return _LINK.sub("", text)


# -------------------------------------------------------------------------------- addresses
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP = regex.compile(
    # four numbers up to 255, with the port or the width of the network after them
    rf"(?<![0-9A-Za-z.])(?P<v4>{_OCTET}(?:\.{_OCTET}){{3}})(?![0-9A-Za-z_]|\.\d|-[A-Za-z])"
    r"(?::\d{1,5}(?![0-9A-Za-z.:])|/(?:3[0-2]|[12]?\d)(?![0-9A-Za-z./]))?"
    r"|(?<![0-9A-Za-z:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![0-9A-Za-z:])",
    regex.ASCII,
)
_IP_SIGN = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|:(?:[0-9A-Fa-f]{1,4}:){6}")
_PLACE_WORD = re.compile(
    r"(?i)\bip(?:v4)?\b|地址|位址|主机|主機|网关|網關|服务器|伺服器|\b(?:host|address|gateway|server|dns|ping)\b"
)
_VERSION_WORD = re.compile(
    r"(?i)版本|版号|升级|更新到|固件|内核|驱动|补丁|韌體|軟體版"
    r"|(?<![a-z])(?:v|ver|versions?|release|build|firmware|kernel|driver|upgrade|patch)(?![a-z])"
)
_MORE = r"\s*(?:[、，,和及与與至到~–—\-]|and|to)\s*"
"""Between the numbers of a list."""
_SECTION_BEFORE = re.compile(
    r"(?i)(?:§|[第章节節条條款项項附录錄图圖表式例题題见見]|编号|編號|序号|序號|(?<![a-z])(?:see|sections?|sec|chapters?|ch"
    r"|clauses?|articles?|art|appendix|figures?|fig|tables?|eq|equations?|steps?|items?|paragraphs?|para|no|nr))"
    rf"[\s.:：#]*(?:[\d.]+{_MORE})*\Z"
)
_SECTION_AFTER = re.compile(
    rf"(?:{_MORE}[\d.]+)*\s{{0,2}}(?:新?版|[章节節条條款项項目]|小[节節]|部分|号标准|標準)"
)
_CLAUSE = re.compile(r"[^。；;！!？?\n]*\Z")
_LINE_START = re.compile(r"(?:^|\n)[\s#*>\-+(（\[【]*\Z")


def without_addresses(text: str) -> str:
    """The text without its IP addresses.

    A dotted number is no address when it counts sections, versions or figures: all four numbers of one digit,
    a word of that kind in the clause before it or right behind, a product's name and a slash, or a line's
    start with the number of an upper section elsewhere in the text. 127.0.0.1 is nobody's address.
    """
    if not _IP_SIGN.search(text):
        return text
    return _IP.sub(lambda found: found[0] if _is_number(text, found) else "", text)


def _is_number(text: str, found: regex.Match[str]) -> bool:
    number = found["v4"]
    if number is None:
        return False
    if number == "127.0.0.1" or len(number) == len("1.2.3.4"):
        return True
    before = text[max(0, found.start() - 60) : found.start()]
    if re.search(r"[A-Za-z]/\Z", before) or _SECTION_AFTER.match(text, found.end()):
        return True
    if _SECTION_BEFORE.search(before):
        return True
    clause = _CLAUSE.search(before)[0]
    words = [word.start() for word in _VERSION_WORD.finditer(clause)]
    places = [word.start() for word in _PLACE_WORD.finditer(clause)]
    if words and (not places or words[-1] > places[-1]):
        return True
    return bool(_LINE_START.search(before)) and _counts(text, number)


def _counts(text: str, number: str) -> bool:
    """Whether a number at a line's start is one of a numbering: small ones, or below a section that is there."""
    octets = number.split(".")
    if octets[0] != "10" and max(map(int, octets)) <= 30:
        return True
    above = rf"(?:^|\n)[\s#*>\-+(（\[【]*{octets[0]}\.\d{{1,3}}(?:\.\d{{1,3}})?(?![.\d])"
    return bool(re.search(above, text, re.ASCII))
