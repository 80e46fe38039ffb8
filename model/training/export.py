"""The export folder: a model that transformers loads by itself, here and elsewhere.

    config.json, model*.safetensors, generation_config.json, the tokenizer's files, README.md (a model card),
    training_chat_template.jinja, and the source files of model/steel that the network needs, for trust_remote_code.

The chat template is plain Jinja, for any program. The training one marks the replies with `{% generation %}`, which
only transformers knows (TRL: SFTConfig(assistant_only_loss=True, chat_template_path="…/training_chat_template.jinja")).

After `import model.steel` the folder loads without trust_remote_code; with it, it needs nothing of this repository.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedConfig

import model.steel  # noqa: F401  (registers the classes whose source save_pretrained copies)
from model.chat_template import CHAT_TEMPLATE, DOCUMENT_END, MARKED_CHAT_TEMPLATE, TURN_END, unmarked
from model.families import folder as families
from model.families import network
from model.place import aside
from model.steel.configuration import SteelConfig
from model.steel.modeling import SteelForCausalLM
from model.tokenizer import read_tree, switch_off, switch_off_settings, write_tree
from model.training.card import card, family_card
from model.training.config import ConfigError, TrainConfig
from model.training.parallel import read_geometry

log = logging.getLogger("steel.training")

TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
"""Copied as they are."""
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
TRAINING_TEMPLATE = "training_chat_template.jinja"
NO_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": TURN_END,
    "pad_token": DOCUMENT_END,
}
"""Of a tokenizer that brings no tokenizer_config.json."""


def full_weights(lm: nn.Module, dtype: torch.dtype, *, keep: bool) -> dict[str, torch.Tensor]:
    """All weights on the CPU, gathered one after the other (all ranks take part, only `keep` stores). What is kept beside
    them has its own dtype."""
    weights = {}
    for name, parameter in lm.named_parameters():
        full = parameter.detach()
        full = full.full_tensor() if isinstance(full, DTensor) else full
        if keep:
            weights[name] = full.to("cpu", dtype).clone()
    if keep:
        weights |= {name: tensor.to("cpu", copy=True) for name, tensor in network.kept(lm).items()}
    return weights


def write_export(
    folder: Path,
    config: SteelConfig | PreTrainedConfig,
    weights: dict[str, torch.Tensor],
    tokenizer_dir: str | Path | None,
    init_from: str | None = None,
) -> None:
    """Write the folder aside and rename it into place. `init_from`: where the weights came from, if not from a seed."""
    with aside(folder) as partial:
        if isinstance(config, SteelConfig):
            dtype = next(iter(weights.values())).dtype
            config = SteelConfig(**{**_plain(config), **special_tokens(tokenizer_dir)})
            with torch.device("meta"):
                lm = SteelForCausalLM(config).to(dtype)
            lm.generation_config = generation_config(config)
            lm.save_pretrained(partial, state_dict=weights)
            text = card(config)
        else:
            families.save(partial, config, weights, special_tokens(tokenizer_dir, steel=False), init_from)
            text = family_card(config)
        if tokenizer_dir is not None:
            copy_tokenizer(Path(tokenizer_dir), partial, config.max_position_embeddings)
        (partial / "README.md").write_text(text, "utf-8")


def needed_tokens(config: TrainConfig) -> None:
    """Raise ConfigError where the tokenizer cannot be read, or will not do for this run's export."""
    if special_tokens(config.tokenizer_dir, steel=False) or config.objective == "logprobs":
        return
    folder = None if config.init_from is None else Path(config.init_from)
    special_tokens(config.tokenizer_dir, steel=isinstance(read_geometry(config, folder), SteelConfig))


def special_tokens(tokenizer_dir: str | Path | None, *, steel: bool = True) -> dict[str, Any]:
    """bos, eos and pad ids as the tokenizer has them; without a tokenizer, none is claimed. `steel`: Steel's tokens
    must be there (ConfigError); of another model none is claimed then."""
    if tokenizer_dir is None:
        return {}
    path = Path(tokenizer_dir) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"tokenizer_dir: {tokenizer_dir} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare ones
        raise ConfigError(f"tokenizer_dir: {path} cannot be read: {error}") from error
    ids = {token: tokenizer.token_to_id(token) for token in (DOCUMENT_END, TURN_END)}
    missing = [token for token, number in ids.items() if number is None]
    if missing and not steel:
        return {}
    if missing:
        raise ConfigError(f"tokenizer_dir: {path} has no token {missing[0]}")
    end, turn = ids[DOCUMENT_END], ids[TURN_END]
    return {"bos_token_id": end, "eos_token_id": turn, "pad_token_id": end}


def generation_config(config: SteelConfig) -> GenerationConfig:
    """Greedy; a reply ends with the turn, a plain text with the document."""
    ends = [config.eos_token_id, config.pad_token_id]
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=list(dict.fromkeys(e for e in ends if e is not None)),
        pad_token_id=config.pad_token_id,
    )


def copy_tokenizer(source: Path, target: Path, context: int) -> None:
    """Copy the tokenizer without its state; one without a chat template gets Steel's.

    `context`: the longest sequence of the model, in tokens. Raises ConfigError where a file cannot be read.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    try:
        tree = read_tree(source)
        settings: dict[str, Any] = dict(NO_SETTINGS)
        if (source / SETTINGS).is_file():
            settings = json.loads((source / SETTINGS).read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"tokenizer_dir: {error}") from error
    if changes := switch_off(tree):
        write_tree(target, tree)
    else:
        shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    for change in [*changes, *switch_off_settings(settings)]:
        log.warning("the tokenizer in %s: %s", source, change)
    own = settings.get("chat_template")
    if isinstance(own, list):  # several, by name
        own = next((entry["template"] for entry in own if entry.get("name") == "default"), None)
    if (source / TEMPLATE).is_file():
        own = (source / TEMPLATE).read_text("utf-8")
    template = CHAT_TEMPLATE if own in (None, MARKED_CHAT_TEMPLATE) else unmarked(own)
    marked = MARKED_CHAT_TEMPLATE if template == CHAT_TEMPLATE else own
    settings |= {"model_max_length": context, "chat_template": template}
    (target / SETTINGS).write_text(
        json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True) + "\n", "utf-8"
    )
    (target / TEMPLATE).write_text(
        template, "utf-8"
    )  # newer programs read this file, older ones the settings
    if marked != template:
        (target / TRAINING_TEMPLATE).write_text(marked, "utf-8")


def _plain(config: SteelConfig) -> dict[str, Any]:
    """The config's own fields, without what transformers adds on saving."""
    added = ("model_type", "transformers_version", "architectures", "auto_map", "dtype", "_name_or_path")
    return {key: value for key, value in config.to_dict().items() if key not in added}
