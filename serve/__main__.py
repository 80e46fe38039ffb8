"""`python -m serve FOLDER`: an export, or any model folder of transformers, as a server on loopback.

`python -m serve sft=FOLDER base=FOLDER` offers several under names of their own; each is loaded when it is first asked for.
The API key comes from the environment (STEEL_API_KEY) or from a file, never from the command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from serve.options import add_options


def main(arguments: Sequence[str] | None = None) -> int:
    summary = "A model folder as an OpenAI-compatible server with a chat page."
    parser = argparse.ArgumentParser(prog="python -m serve", description=summary)
    parser.add_argument("model", nargs="+", metavar="[NAME=]FOLDER", help="model folders")
    parser.add_argument(
        "--plain", action="append", default=[], metavar="NAME", help="a base model: knows no turns"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    from serve.run import Refused, offers, run  # torch: seconds, for those who ask for no help

    try:
        run(offers(options.model, options.plain), options)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
