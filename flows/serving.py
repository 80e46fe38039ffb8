"""`python -m flows.cli serve`: a profile's models, or any folder, as a server with a chat page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from flows import preflight


def register(
    command: Callable[..., argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    request: Callable[[argparse.Namespace], preflight.Request],
) -> None:
    """Add the command; `request` makes a request of its options."""
    from serve.options import add_options

    def serve(options: argparse.Namespace) -> int:
        from serve.run import Refused, run

        try:
            run(_offers(options, request(options)), options)
        except Refused as error:
            raise preflight.Wrong(str(error)) from error
        return 0

    parser = command("serve", serve, "an OpenAI-compatible server with a chat page", parents=[common])
    what = "dpo, sft, sft:VARIANT, base or a folder; several with commas; all: every one of the profile"
    parser.add_argument("--model", default="", help=f"{what} (default: the last)")
    add_options(parser)


def _offers(options: argparse.Namespace, asked: preflight.Request) -> dict:
    """Name -> serve.models.Offer, in the order asked for."""
    from serve.run import offers
    from tasks import dag
    from tasks.figures.history import exports
    from tasks.inspect import models
    from tasks.inspect.artifacts import newest
    from tasks.settings import profiles
    from tasks.settings.errors import NodeError
    from tasks.stage.store import Store

    try:  # as for chat: only what there is counts
        config = profiles.load(asked.profile, asked.overrides)
        store = Store(preflight.resolve(config.runtime.artifacts))
        nodes = {**newest(store, dag.build(config)), **models.last_run(store, asked.profile)}
        wanted = [part.strip() for part in options.model.split(",") if part.strip()] or [""]
        if wanted == ["all"]:
            wanted = [name for name in ("rl", "dpo", "sft", "base") if name in exports(nodes)] or [""]
        chosen = dict(models.find(name, asked.profile, nodes) for name in wanted)
    except NodeError as error:
        raise preflight.Wrong(str(error)) from error
    folders = [name for name in chosen if os.path.isdir(name)]
    named = [f"{name}={folder}" for name, folder in chosen.items() if name not in folders]
    return offers([*named, *folders], plain=["base"])
