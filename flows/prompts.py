"""`python -m flows.cli prompts`: the exact prompt of every protocol."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from flows import preflight


def register(
    command: Callable[..., argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    request: Callable[[argparse.Namespace], preflight.Request],
) -> None:
    """Add the command; `request` makes a request of its options."""

    def prompts(options: argparse.Namespace) -> int:
        from tasks.evaluate.protocols import PROTOCOLS
        from tasks.inspect.prompts import lines
        from tasks.settings.errors import NodeError

        config = preflight.sources(request(options))
        names = options.protocol.split(",") if options.protocol else list(PROTOCOLS)
        try:
            print("\n".join(lines(config, names, options.benchmark)))
        except NodeError as error:
            raise preflight.Wrong(str(error)) from error
        return 0

    what = "the exact prompt of a protocol for a question of each benchmark, with version and digest"
    parser = command("prompts", prompts, what, parents=[common])
    parser.add_argument(
        "--protocol", default="", metavar="NAME", help="one, or several with commas (default: all)"
    )
    parser.add_argument("--benchmark", default="", metavar="NAME", help="only this one")
