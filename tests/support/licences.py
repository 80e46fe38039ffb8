"""The licences of the pinned dependencies, as their own metadata say: `python -m tests.support.licences [--check]`.

Writes docs/licences.md; --check says whether it is that of requirements.lock (exit code 1 where it is not).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata

from tests.support.links import ROOT

PAGE, LOCK = ROOT / "docs/licences.md", ROOT / "requirements.lock"
HEAD = """# Licences of the dependencies

Every package of `requirements.lock` with the licence that its own metadata name; made by
`python -m tests.support.licences`. What is not said there is "not said": look at the project. Steel's own licence: [LICENSE](../LICENSE).
Licences of data sets: `make sources`. Known weaknesses of the packages: `make audit`, where the network allows it.
"""


def pinned(text: str) -> Iterator[tuple[str, str]]:
    """(name, version) of each line of a lock file."""
    for line in text.splitlines():
        name, equals, rest = line.partition("==")
        if equals and not line.startswith("#"):
            yield name.partition("[")[0].strip(), rest.split()[0].rstrip(";")


def licence(name: str) -> str:
    """By the package's metadata, in one line."""
    found = metadata.metadata(name)
    if expression := found.get("License-Expression"):
        return expression
    classes = [
        c.split("::")[-1].strip() for c in found.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    if classes:
        return ", ".join(classes)
    words = (found.get("License") or "").strip().splitlines()
    return words[0].strip() if words else "not said"


def page() -> str:
    """The Markdown."""
    rows = [(name, version, licence(name)) for name, version in pinned(LOCK.read_text("utf-8"))]
    counts = Counter(row[2] for row in rows)
    totals = ", ".join(f"{name} {n}" for name, n in counts.most_common(6))
    table = [
        "| package | version | licence |",
        "|---|---|---|",
        *(f"| {n} | {v} | {text} |" for n, v, text in rows),
    ]
    return "\n".join([HEAD, f"{len(rows)} packages; most of them: {totals}.", "", *table, ""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.licences", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args(arguments).check:
        return PAGE.read_text("utf-8") != page()
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
