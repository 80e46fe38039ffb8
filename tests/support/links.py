"""Links of the Markdown files that lead nowhere, without the network: `python -m tests.support.links` (make lint).

A link into the repository names a file or folder that is there; an anchor names a heading of its page, spelled
as GitHub spells it. Links to other hosts are not followed.
"""

from __future__ import annotations

import re
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
_PARSER = MarkdownIt("commonmark").enable("table")


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files that people read."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob(".github/**/*.md")])


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The complaint about each link of a page that leads nowhere."""
    return [
        f"{page.relative_to(root)}: {link}: {wrong}" for link in links(page) if (wrong := _wrong(page, link))
    ]


def links(page: Path) -> list[str]:
    """Targets of links and images, in their order."""
    return [
        str(token.attrs.get("href") or token.attrs["src"])
        for token in _tokens(page)
        if token.type in ("link_open", "image")
    ]


def anchors(page: Path) -> set[str]:
    """What may stand behind `#` for a page: its headings, a repeated one with a number."""
    seen: Counter[str] = Counter()
    names = set()
    tokens = _PARSER.parse(page.read_text("utf-8"))
    for token, content in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open":
            text = "".join(part.content for part in content.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return names


def _tokens(page: Path) -> Iterator[Token]:
    for token in _PARSER.parse(page.read_text("utf-8")):
        yield from token.children or ()


def _wrong(page: Path, link: str) -> str:
    url = urllib.parse.urlsplit(link)
    if url.scheme or url.netloc:
        return ""
    target = page.parent / urllib.parse.unquote(url.path) if url.path else page
    if not target.exists():
        return "there is no such file"
    if url.fragment and (target.suffix != ".md" or url.fragment not in anchors(target)):
        return "there is no such heading"
    return ""


if __name__ == "__main__":
    complaints = [line for page in pages() for line in broken(page)]
    print("\n".join(complaints), file=sys.stderr, end="\n" if complaints else "")
    sys.exit(bool(complaints))
