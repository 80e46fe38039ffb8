"""StarCoderData: parquet per language folder, `content` and the file's origin.

A head such as `<reponame>a/b<filename>c.py<gh_stars>0` is the data set's own annotation and no code:
it is moved to meta. The programming language is the name of the file's folder.
"""

import math
import re
from pathlib import PurePosixPath

from tasks.convert.readers import Reader
from tasks.convert.tabular import parquet_rows
from tasks.convert.verdicts import Malformed, small, text

HEAD = re.compile(r"(?:<(?:reponame|filename|gh_stars)>[^\n<]*)+(?:\n|\Z)")


def convert(item, options, file):
    content = text(item, "content")
    body = content[head.end() :] if (head := HEAD.match(content)) else content
    if not body or body.isspace():
        raise Malformed("empty text", "content")
    meta = small(item, "max_stars_repo_name", "max_stars_repo_path")
    stars = item.get("max_stars_count")
    if isinstance(stars, int | float) and math.isfinite(stars):
        meta["stars"] = int(stars)
    meta["language"] = PurePosixPath(file).parent.name
    return {"kind": "code", "language": "code", "text": body, "meta": meta}


READER = Reader(convert, items=parquet_rows, suffixes=(".parquet",))
