"""One form of a trained model, written into a folder and certified."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.chat_template import CHAT_TEMPLATE
from model.export import gguf_file, ollama, parity, stock
from model.export.forms import FILES, FormError, refusal, stock_form
from model.scoring import load
from model.tokenizer import TextTokenizer

CERTIFICATE = "parity.json"


def write_form(
    source: Path, out: Path, form: str, *, dtypes: Sequence[str] = ("F16",), fold_cosine: bool = False
) -> dict[str, Any]:
    """Fill the folder `out` with one of forms.FORMS, and write and return its certificate.

    `dtypes`: of GGUF files, one file each. FormError in one line where the model cannot leave so, or where what was
    written does not compute the same.
    """
    geometry = stock.read_config(source)
    if reason := refusal(form, geometry, fold_cosine=fold_cosine):
        raise FormError(reason)
    out.mkdir(parents=True, exist_ok=True)
    trained = load(source, "cpu", torch.float32)
    prompts = parity.prompt_ids(TextTokenizer.open(source))
    certificate: dict[str, Any] = {"form": form, "of": geometry["model_type"], "precision": "FP32, on a CPU"}
    folded = stock_form(geometry) is None and form != "steel"
    if folded:
        certificate["approximation"] = (
            "the cosine router is folded into a linear one: nearly the same function, not the same"
        )
    tolerance = parity.FOLDED if folded else parity.EXACT
    if geometry.get("dtype", "float32") != "float32" and form != "steel":
        tolerance += parity.ROUNDED  # a folded factor is rounded to the folder's dtype
    if form == "steel":
        copy_own(source, out)
        certificate |= parity.certify(trained, load(out, "cpu", torch.float32), prompts, tolerance=tolerance)
    elif form in FILES:
        certificate["files"] = _ggufs(
            source, out, trained, prompts, dtypes, fold_cosine, tolerance if folded else 0.0
        )
        if form == "ollama" and not (out / "Modelfile").exists():
            raise FormError(
                "the chat template is not Steel's ChatML, so no Modelfile can be written: choose gguf"
            )
    else:
        stock.write_stock(source, out, fold_cosine=fold_cosine)
        certificate |= parity.certify(trained, load(out, "cpu", torch.float32), prompts, tolerance=tolerance)
    (out / CERTIFICATE).write_text(json.dumps(certificate, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return certificate


def copy_own(source: Path, out: Path) -> None:
    """The folder as it is; a Steel folder's config.json names the class without a head, too, as vLLM wants it."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    config = stock.read_config(out)
    if "AutoModelForCausalLM" in config.get("auto_map", {}):
        config["auto_map"]["AutoModel"] = "modeling.SteelModel"
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _ggufs(
    source: Path,
    out: Path,
    trained: nn.Module,
    prompts: list[list[int]],
    dtypes: Sequence[str],
    fold_cosine: bool,
    folded: float,
) -> dict[str, Any]:
    """A file of each type and a Modelfile for the first; what each certifies. The weights are read back from the file
    and put into transformers' class, which then has to compute what the trained model computes."""
    files = {}
    with tempfile.TemporaryDirectory(dir=out, prefix=".stock-") as made:
        folder = Path(made)
        stock.write_stock(source, folder, fold_cosine=fold_cosine)
        config = stock.read_config(folder)
        lm = load(folder, "cpu", torch.float32)
        for dtype in dtypes:
            path = out / f"model-{dtype}.gguf"
            gguf_file.write_gguf(folder, path, dtype, name="Steel")
            read = gguf_file.check_tensors(path, folder, dtype)
            weights = gguf_file.read_back(path, config)
            if config["tie_word_embeddings"]:
                weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
            lm.load_state_dict(weights, strict=True)
            tolerance = parity.TOLERANCES[dtype] + folded
            files[path.name] = read | parity.certify(trained, lm, prompts, tolerance=tolerance)
        template = json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
    if template == CHAT_TEMPLATE:
        text = ollama.modelfile(f"model-{dtypes[0]}.gguf", config["max_position_embeddings"])
        (out / "Modelfile").write_text(text, "utf-8")
    return files
