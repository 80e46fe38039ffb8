"""`python -m flows.cli push`: a model of a profile, or any export folder, to a hub."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flows import preflight
from flows.preflight import Wrong
from model.export.forms import FORMS


def register(
    command: Callable[..., argparse.ArgumentParser],
    common: argparse.ArgumentParser,
    request: Callable[[argparse.Namespace], preflight.Request],
) -> None:
    """Add the command; `request` makes a request of its options."""

    def push(options: argparse.Namespace) -> int:
        from tasks.push.target import PushFailed
        from tasks.settings.errors import NodeError

        try:
            return _push(options, request(options))
        except NodeError as error:
            raise Wrong(str(error)) from error
        except PushFailed as error:
            print(error, file=sys.stderr)
            return 1

    parser = command(
        "push", push, "a model with its card to a hub; only listed without --apply", parents=[common]
    )
    parser.add_argument(
        "--to", required=True, metavar="HUB:OWNER/NAME", help="hf:owner/name or modelscope:owner/name"
    )
    parser.add_argument("--form", default="", help=f"{', '.join(FORMS)} (default: steel)")
    what = "dpo, rl, sft, sft:VARIANT, base or an export folder"
    parser.add_argument("--model", default="", help=f"{what} (default: the last)")
    parser.add_argument("--licence", default="", help="of the weights, if the card names none or another")
    parser.add_argument("--public", action="store_true", help="everybody may see it (default: private)")
    parser.add_argument("--apply", action="store_true", help="send it; else it is only listed")


def _push(options: argparse.Namespace, asked: preflight.Request) -> int:
    from tasks.push import folder as folders
    from tasks.push import huggingface, modelscope, target

    to = target.parse(options.to)
    hub: Any = huggingface if to.hub == "hf" else modelscope
    with _exported(options, asked) as (name, folder):
        parcel = folders.gather(folder, options.licence)
        seen = "public" if options.public else "private"
        print(f"{name}, in {folder}")
        print(f"to {to} at {hub.endpoint()}, branch {hub.BRANCH}, {seen}, licence {parcel.licence}")
        print("\n".join(folders.lines(parcel)))
        print(f"{len(parcel.files)} files, {parcel.size / 1e6:,.1f} MB", flush=True)
        if not options.apply:
            print("nothing was sent: GO=1 sends it")
            return 0
        print(hub.push(parcel, to, public=options.public, message=f"{name}, by Steel"))
    return 0


@contextlib.contextmanager
def _exported(options: argparse.Namespace, asked: preflight.Request) -> Iterator[tuple[str, Path]]:
    """(what it is, its folder). A form that the stage export has not made of this model is made for the time being."""
    from tasks import dag
    from tasks.inspect import models
    from tasks.inspect.artifacts import newest
    from tasks.settings import profiles
    from tasks.settings.errors import NodeError
    from tasks.stage.store import Store

    form = options.form
    if form and form not in FORMS:
        raise NodeError(f"there is no form {form!r}; choose one of: {', '.join(FORMS)}")
    if "/" in options.model or (options.model and _is_export(Path(options.model))):
        folder = Path(options.model).resolve()
        made = _form_of(folder)
        if form and form != made:
            raise NodeError(
                f"{folder} goes as it is{f', as {made}' if made else ''}: FORM is for a profile's model"
            )
        yield folder.name, folder
        return
    config = profiles.load(asked.profile, asked.overrides)
    store = Store(preflight.resolve(config.runtime.artifacts))
    nodes = {**newest(store, dag.build(config)), **models.last_run(store, asked.profile)}
    name, source = models.find(options.model, asked.profile, nodes)
    form = form or "steel"
    if ready := _of_the_stage(nodes, form, source):
        yield f"{name} as {form}", ready
        return
    print(f"{name} as {form} is made now: the stage export has not made it of this model", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="steel-push-") as work:
        from tasks.export import body, card
        from tasks.settings.differences import assignments

        folder = Path(work) / "export"
        dtypes: list[str] = list(config.export.gguf)
        certificate = body.write(source, folder, form, dtypes, config.export.fold_cosine)
        text = card.write(config.recipe, nodes, name, form, certificate, assignments(config.recipe))
        (folder / "README.md").write_text(text, "utf-8")
        yield f"{name} as {form}", folder


def _is_export(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _form_of(folder: Path) -> str:
    """By its certificate; "" without one."""
    try:
        return str(json.loads((folder / "parity.json").read_text("utf-8")).get("form", ""))
    except (OSError, ValueError):
        return ""


def _of_the_stage(nodes: Any, form: str, source: Path) -> Path | None:
    """The export that the stage has made of just this model."""
    made = nodes.get(f"export:{form}")
    training = next((one for one in nodes.values() if one.path / "export" == source), None)
    if made is None or training is None:
        return None
    same = made.manifest.get("identity", {}).get("inputs", {}).get(training.node) == training.digest
    model = {"pretrain": "base", "dpo:train": "dpo", "rl:train": "rl"}.get(training.node, training.node)
    return made.path / "export" if same and made.manifest.get("extra", {}).get("model") == model else None
