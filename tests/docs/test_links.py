"""Links between the pages lead somewhere; the check sees those that do not."""

from __future__ import annotations

import pytest

from tests.support.links import anchors, broken, links, pages


def test_every_link_of_every_page_leads_somewhere():
    assert [line for page in pages() for line in broken(page)] == []
    assert sum(len(links(page)) for page in pages()) > 20


@pytest.fixture
def page(tmp_path):
    (tmp_path / "other.md").write_text("# The `other` page: here\n\n## Twice\n\n## Twice\n")

    def write(text):
        (tmp_path / "page.md").write_text("# Page\n\n" + text)
        return broken(tmp_path / "page.md", tmp_path)

    return write


@pytest.mark.parametrize(
    "link",
    ["other.md", "other.md#the-other-page-here", "other.md#twice-1", "#page", "https://example.org/x#y", "."],
)
def test_good_links(page, link):
    assert page(f"See [this]({link}).") == []


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("missing.md", "file"),
        ("other.md#nothing", "heading"),
        ("other.md#twice-2", "heading"),
        ("#nothing", "heading"),
        ("images/none.png", "file"),
    ],
)
@pytest.mark.parametrize(
    "form", ["See [this]({}).", "![picture]({})", "| a |\n|---|\n| [this]({}) |", "> [this]({})"]
)
def test_broken_links(page, link, reason, form):
    (line,) = page(form.format(link))
    assert line == f"page.md: {link}: there is no such {reason}"


def test_code_holds_no_links(page):
    assert page("`[a](b)`\n\n```\n[a](b)\n```\n") == []


def test_chinese_headings(tmp_path):
    (tmp_path / "a.md").write_text("# 数据 and data\n")
    assert anchors(tmp_path / "a.md") == {"数据-and-data"}
