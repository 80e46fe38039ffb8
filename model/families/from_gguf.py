"""A GGUF file as a folder of transformers, for `model.pretrained` and `runtime.folders.tokenizer`.

    python -m model.families.from_gguf FILE FOLDER

Weights are dequantized to FP32. Needs the packages gguf and accelerate (make peers). The tokenizer is
written only where its rule for cutting text is known here: GGUF names the rule (`tokenizer.ggml.pre`) and does not hold
it, and transformers takes GPT-2's for every byte-level one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from model.families.configuration import FamilyError
from model.place import aside

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""GPT-2's rule."""
CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
    },
}
"""`tokenizer.ggml.pre` -> the pre-tokenizer of tokenizer.json."""
WRITTEN = ("tokenizer.json", "tokenizer_config.json")


def unpack(file: Path, folder: Path) -> list[str]:
    """Write the folder (anew, renamed into place); what a user should know, a line each. FamilyError where it cannot
    be done."""
    try:
        import accelerate  # noqa: F401  (transformers asks for it)
        from gguf import GGUFReader
    except ImportError as error:
        raise FamilyError(f"{error.name} is not installed: make peers") from None
    if not file.is_file():
        raise FamilyError(f"there is no file {file}")
    if folder.exists():
        raise FamilyError(f"{folder} exists")
    try:
        fields = GGUFReader(file).fields
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise FamilyError(f"{file} cannot be read as GGUF: {str(error).partition(chr(10))[0]}") from error
    with aside(folder) as partial:
        _weights(file, partial)
        return _tokenizer(file, partial, {name: field.contents() for name, field in fields.items()})


def _weights(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        lm = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise FamilyError(
            f"{file}: transformers cannot read this model: {str(error).partition(chr(10))[0]}"
        ) from error
    lm.hf_quantizer = None  # the weights are plain numbers now
    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config
    lm.save_pretrained(folder)


def _tokenizer(file: Path, folder: Path, facts: dict[str, Any]) -> list[str]:
    from transformers import AutoTokenizer

    kind, pre = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in CUTS:
        return [
            f"no tokenizer was written: how {kind} ({pre}) cuts text is not known here; copy the model's own tokenizer "
            f"files into {folder.with_suffix('')}"
        ]
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    tree = json.loads((folder / WRITTEN[0]).read_text("utf-8"))
    tree["pre_tokenizer"] = CUTS[pre]
    (folder / WRITTEN[0]).write_text(json.dumps(tree, ensure_ascii=False, indent=2), "utf-8")
    settings = json.loads((folder / WRITTEN[1]).read_text("utf-8"))
    for name in ("is_local", "local_files_only"):  # of the call, not of the tokenizer
        settings.pop(name, None)
    (folder / WRITTEN[1]).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")
    return []


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m model.families.from_gguf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a .gguf file of a causal language model")
    parser.add_argument("folder", type=Path, help="the folder to make")
    options = parser.parse_args(arguments)
    try:
        notes = unpack(options.file, options.folder)
    except FamilyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{options.folder} holds the model")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
