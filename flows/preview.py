"""`python -m flows.cli preview`: a source's first records before and after its reader."""

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

    def preview(options: argparse.Namespace) -> int:
        from tasks.inspect.preview import lines
        from tasks.settings.errors import NodeError

        config = preflight.sources(request(options))
        try:
            print("\n".join(lines(config, options.source, options.records)))
        except NodeError as error:
            raise preflight.Wrong(str(error)) from error
        return 0

    what = "the first records of a source, raw and converted, and what would be quarantined"
    parser = command("preview", preview, what, parents=[common])
    parser.add_argument("--records", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument("source", metavar="SOURCE", help="a source of the profile")
