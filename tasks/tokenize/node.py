"""Room of the tokenizer and the shards: cleaned records -> packed Arrow shards and their manifest."""

from __future__ import annotations

from functools import partial
from math import inf

from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Node
from tasks.tokenize import job, manifest, source, tokenizer


def nodes(config: SteelRun) -> list[Node]:
    """tokenize:tokenizer, tokenize:<source> for every pre-training source, tokenize:manifest."""
    names = list(config.using("pretrain"))
    settings = config.tokenize
    if unknown := sorted(set(settings.weights) - set(names)):
        raise NodeError(f"tokenize.weights names no pre-training source: {', '.join(unknown)}")
    if bad := sorted(name for name, weight in settings.weights.items() if not 0 <= weight < inf):
        raise NodeError(f"tokenize.weights are 0 or more: {', '.join(bad)}")
    return [
        _tokenizer_node(config, names),
        *(
            Node(
                name=f"tokenize:{name}",
                body=source.body,
                config=job.Settings(block_size=settings.block_size, val_share=settings.val_share),
                inputs={
                    "records": f"clean:{name}",
                    "drops": f"clean:decontaminate#{name}",
                    "tokenizer": "tokenize:tokenizer",
                },
            )
            for name in names
        ),
        Node(
            name="tokenize:manifest",
            body=manifest.body,
            config=manifest.Settings(
                block_size=settings.block_size,
                weights={name: _plain(settings.weights.get(name, 1)) for name in names},
            ),
            inputs={**{name: f"tokenize:{name}" for name in names}, "tokenizer": "tokenize:tokenizer"},
        ),
    ]


def _plain(weight: float) -> float:
    """A whole number as one: 2 and 2.0 are the same recipe."""
    return int(weight) if weight == int(weight) else weight


def _tokenizer_node(config: SteelRun, names: list[str]) -> Node:
    if config.tokenize.tokenizer == "folder":
        return Node(
            name="tokenize:tokenizer",
            body=tokenizer.folder_body,
            config=tokenizer.KeptSettings() if config.model.pretrained else tokenizer.FolderSettings(),
            external=partial(tokenizer.folder_digests, config.runtime.folders.tokenizer),
        )
    return Node(
        name="tokenize:tokenizer",
        body=tokenizer.train_body,
        config=tokenizer.Settings(
            vocab_size=config.tokenize.vocab_size,
            merge_han=config.tokenize.merge_han,
            max_token_bytes=config.tokenize.max_token_bytes,
        ),
        inputs={**{name: f"clean:{name}" for name in names}, "decontaminate": "clean:decontaminate"},
    )
