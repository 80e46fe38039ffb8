"""A program that converts slowly, to be killed: `python -m tests.support.slow_convert ROOT`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tasks.convert.source import at_once
from tasks.work import partitions, pool
from tests.support.convert import in_node


def main(root: Path) -> None:
    made = partitions.make

    def slowly(*args):
        made(*args)
        time.sleep(0.3)

    partitions.make = slowly
    pool.submit = at_once
    in_node(root, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
