"""Profiles: YAML files that fill the typed tree, and overrides merged into them.

A profile may name another under `extends`, and a source an entry of the registry; overrides are merged the same way, mapping by mapping
(lists and scalars are replaced). `Overrides` is the tree with every field optional: the type that
the Prefect UI renders as a form, and that refuses a typo before anything runs.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_serializer,
)

from tasks.settings import registry
from tasks.settings.config import OTHER_MODELS, SteelRun
from tasks.settings.errors import NodeError, complaint, one_line
from tasks.settings.paths import ROOT

FOLDER = ROOT / "deployments" / "profiles"


def names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(profile: str, overrides: Mapping[str, Any] | None = None) -> SteelRun:
    """A profile with overrides merged in, validated. Raises NodeError with one clear line."""
    tree = _layer(_read(profile), overrides or {})
    sources = tree.get("sources") or {}
    if isinstance(sources, Mapping):  # else the tree says what is wrong
        tree["sources"] = {name: registry.filled(name, source) for name, source in sources.items()}
    try:
        return SteelRun.model_validate({**tree, "profile": profile})
    except ValidationError as error:
        raise NodeError(f"profile {profile!r}, {complaint(error)}") from error


def _layer(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, and a model that is not Steel's takes the place of the whole inherited one."""
    model = over.get("model")
    chosen = [name for name in OTHER_MODELS if isinstance(model, Mapping) and model.get(name)]
    if chosen:
        inherited = base.get("model") or {}
        base = {**base, "model": {name: inherited[name] for name in chosen if name in inherited}}
    return merge(base, over)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, mapping by mapping; null takes a mapping away."""
    out = dict(base)
    for key, value in over.items():
        if value is None and isinstance(out.get(key), Mapping):
            del out[key]
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def _read(profile: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    path = FOLDER / f"{profile}.yaml"
    if not path.is_file():
        raise NodeError(f"there is no profile {profile!r}; choose one of: {', '.join(names())}")
    if profile in above:
        raise NodeError(f"profile {profile!r} extends itself: {' → '.join((*above, profile))}")
    try:
        tree = yaml.load(path.read_text("utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NodeError(f"profile {profile!r} cannot be read: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise NodeError(f"profile {profile!r} is no mapping of settings")
    parent = tree.pop("extends", None)
    tree.pop("description", None)
    kept = tree.pop("only_sources", None)
    tree = _layer(_read(parent, (*above, profile)), tree) if parent else tree
    if kept is not None:
        tree["sources"] = _only(profile, tree.get("sources") or {}, kept)
    return tree


def _only(profile: str, sources: Any, kept: Any) -> dict[str, Any]:
    if not isinstance(kept, list) or not isinstance(sources, Mapping):
        raise NodeError(f"profile {profile!r}: only_sources is a list of names, sources a mapping by name")
    if unknown := [str(name) for name in kept if name not in sources]:
        raise NodeError(f"profile {profile!r}: only_sources names no source: {', '.join(unknown)}")
    return {name: sources[name] for name in kept}


class _Loader(yaml.SafeLoader):
    """YAML in which no key is given twice: the first of the two would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Partial(BaseModel):
    """Base of the optional tree: what was not given does not exist, in JSON either."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer
    def _only_given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


@cache
def _partial(model: type[BaseModel]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if model is SteelRun and name == "profile":
            continue  # a parameter of its own
        note = Field(None, description=info.description, json_schema_extra=_drop_default)
        bounded = _partial_type(info.annotation)
        for bound in info.metadata:
            bounded = Annotated[bounded, bound]
        fields[name] = (bounded, note)
    return create_model(f"{model.__name__}Override", __base__=_Partial, __doc__=model.__doc__, **fields)


def _partial_type(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _partial(annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is dict:
        value = _partial_type(args[1])
        if isinstance(value, type) and issubclass(value, _Partial):
            value = value | None  # null takes an entry away
        return dict[args[0], value]
    if origin in (Union, types.UnionType):
        return Union[tuple(_partial_type(a) for a in args)]  # noqa: UP007  (built from a tuple)
    if annotation is Path:
        return str  # a JSON schema knows no paths
    return annotation


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # "null" is no value of most fields: the form must not send it


Overrides: type[BaseModel] = _partial(SteelRun)
"""The whole tree with every field optional."""

ProfileName = Literal[tuple(names())]
"""The choice that the form offers: whatever lies in the folder when the flow is deployed."""
