"""Settings of the way out: the forms in which the last model of a run leaves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.settings.section import Distinct, Section


class Export(Section):
    """Forms in which the last model of the run leaves, each certified to compute the same."""

    forms: Annotated[list[Literal["steel", "qwen2", "qwen2_moe", "gguf", "ollama"]], Distinct] = []
    """Forms to write. `steel`: the folder with its own code, which any other form brings along; `qwen2`, `qwen2_moe`:
    stock models of transformers; `gguf`: files for llama.cpp and Ollama; `ollama`: a folder for `ollama create`, with one
    such file. Empty: none."""
    gguf: Annotated[list[Literal["F32", "F16", "BF16", "Q8_0"]], Distinct] = Field(["F16"], min_length=1)
    """Types of the GGUF files, a file each. The form `ollama` has the first."""
    fold_cosine: bool = False
    """Allow a cosine router to leave as a linear one that is nearly equal. The certificate says how near."""
    licence: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9.+-]*)?$")] = ""
    """Licence of the weights for the card, as hubs write it: apache-2.0, mit, cc-by-nc-4.0, other. Empty: none is named,
    and `make push` asks for one."""
    base_model: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    """Name on the hub, owner/name, of the model that `model.pretrained` is, for the card."""
