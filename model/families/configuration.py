"""The configuration of a model of transformers, held against what the engine computes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = ("full_attention", "attention", "sliding_attention")
"""Kinds of layers that packed attention computes."""
REFUSED = {
    "is_encoder_decoder": "it has an encoder",
    "attention_chunk_size": "its attention is cut into chunks of the row, not of the document",
    "quantization_config": "its weights are quantized",
}
"""Fields which, where they are set, change what is computed in a way that the engine does not follow."""
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
OPTIONAL = ("head_dim", "rope_theta", "rope_scaling")
"""Fields that some models read and their configurations do not declare."""


class FamilyError(ValueError):
    """A model that cannot be trained here: one clear line."""


def from_fields(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """`model_type` and the fields of its configuration; unknown ones are refused."""
    given = dict(fields)
    kind = given.pop("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise FamilyError(f"model.model_type: transformers has no causal language model {kind!r}")
    try:
        known = AutoConfig.for_model(kind)
        unknown = next((key for key in given if key not in OPTIONAL and not hasattr(known, key)), None)
        config = None if unknown else AutoConfig.for_model(kind, **given)
    except Exception as error:  # transformers refuses fields with errors of any kind
        raise FamilyError(f"model: {kind}: {reason_of(error)}") from error
    if config is None:
        raise FamilyError(f"unknown key model.{unknown}: the configuration of {kind} has no such field")
    return check(config)


def from_all_fields(kind: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """As from_fields, of a configuration that is spelled out whole. A None in it takes away what is there by default (a soft
    cap, a window); where nothing is, it says nothing and may be no value that can be given."""
    usual = AutoConfig.for_model(kind).to_dict()
    told = {key: value for key, value in fields.items() if value is not None or usual.get(key) is not None}
    return from_fields({"model_type": kind, **told})


def from_folder(folder: Path) -> PreTrainedConfig:
    """The configuration of a folder that transformers can load without code of the folder's own."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise FamilyError(f"init_from: {folder}: {reason_of(error)}") from error
    return check(config)


def check(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same, or FamilyError naming what cannot be exact."""
    kind = config.model_type
    try:
        text = config.get_text_config()
    except ValueError as error:
        raise FamilyError(f"{kind} is no plain language model: {reason_of(error)}") from error
    if text is not config:
        raise FamilyError(f"{kind} is no plain language model (it holds {text.model_type})")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise FamilyError(f"{kind} is no causal language model of transformers")
    _check_sizes(config)
    for name, reason in REFUSED.items():
        if getattr(config, name, None):
            raise FamilyError(f"{kind} cannot be trained here: {reason} ({name} is {getattr(config, name)})")
    for layer in getattr(config, "layer_types", None) or ():
        if layer not in LAYERS:
            raise FamilyError(f"{kind} cannot be trained here: packed documents meet in its {layer} layers")
    return config


def _check_sizes(config: PreTrainedConfig) -> None:
    sizes = {name: getattr(config, name, None) for name in SIZES}
    for name, size in sizes.items():
        if isinstance(size, int | float) and (size != int(size) or size < 1):
            raise FamilyError(f"{config.model_type}: {name} must be a whole number of at least 1, not {size}")
    heads, shared = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise FamilyError(f"{config.model_type}: {heads} heads cannot share {shared} key/value heads evenly")


def reason_of(error: Exception) -> str:
    """In one line; of a check of transformers' fields, what it found."""
    found = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return str(found).strip().partition("\n")[0] or type(error).__name__
