"""Baidu Baike: JSON lines `{"title", "summary", "sections": [{"title", "content"}], "tags", "url"}`.

Two thirds of the entries have a null summary, so title and sections alone make a text; an entry
with neither summary nor section content is empty. Parts are separated by lines, never glued.
"""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import Malformed, optional, small, text


def convert(item, options, file):
    title, summary = text(item, "title"), optional(item, "summary")
    sections = _sections(item)
    if not summary and not sections:
        raise Malformed("empty text", "summary and sections")
    head = f"{title}\n{summary}" if summary else title
    return {"kind": "text", "text": "\n\n".join([head, *sections]), "meta": small(item, "url")}


def _sections(item):
    sections = item.get("sections")
    if sections is None:
        return []
    if type(sections) is not list or not all(type(s) is dict for s in sections):
        raise Malformed("wrong type", "sections")
    parts = []
    for section in sections:
        heading, content = optional(section, "title"), optional(section, "content")
        if content:
            parts.append(f"{heading}\n{content}" if heading else content)
    return parts


READER = Reader(convert)
