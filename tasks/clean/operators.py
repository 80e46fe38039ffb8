"""Data-Juicer's operators, loaded safely: no installer, no downloads, models from one folder.

Measured on Data-Juicer 1.6.1: it installs missing packages with pip while it runs, fetches models
without a check of their content, and takes a `zh.sp.model` that happens to lie in the working
directory before the configured one. Here the installer raises, and the three kinds of model that
allowed operators use come from the folder given to `load` or not at all.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from tasks.settings.errors import NodeError

SENTENCEPIECE = "{lang}.sp.model"
KENLM = "{lang}.arpa.bin"
TOKENIZER = "EleutherAI/pythia-6.9b-deduped"
"""Where alphanumeric_filter(tokenization: true) looks; the name is fixed in Data-Juicer."""


@cache
def prepare() -> None:
    """Import Data-Juicer (some seconds, once a process) with its run-time installer denied."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from data_juicer.utils.lazy_loader import LazyLoader

    LazyLoader._install_package = classmethod(_deny_install)

    from loguru import logger

    logger.disable("data_juicer")
    from data_juicer.utils import model_utils

    # every other kind of model would be downloaded
    model_utils.MODEL_FUNCTION_MAPPING.clear()
    import tasks.clean.fast
    import tasks.clean.own_operators  # noqa: F401  the imports register them


def load(operator: str, settings: dict[str, Any], models: Path | None, engine: str = "fast") -> Any:
    """One operator, ready to use; `models` is the folder of clean:assets.

    `engine: fast` takes Steel's faster equivalent where there is one (tasks/clean/fast), `reference`
    always Data-Juicer's own.
    """
    prepare()
    from data_juicer.ops import OPERATORS, load_ops
    from data_juicer.utils import model_utils

    from tasks.clean.fast import PREFIX

    if engine == "fast" and PREFIX + operator in OPERATORS.modules:
        operator = PREFIX + operator

    model_utils.MODEL_FUNCTION_MAPPING.update(
        sentencepiece=partial(_sentencepiece, models),
        kenlm=partial(_kenlm, models),
        huggingface=partial(_tokenizer, models),
    )
    [op] = load_ops([{operator: {**settings, "skip_op_error": False, "auto_op_parallelism": False}}])
    for name in ("sp_model_key", "kl_model_key", "model_key"):
        key = getattr(op, name, None)
        if key is not None:
            # else the first use would load it anew, and import torch in a worker process
            model_utils.MODEL_ZOO[key] = key()
    return op


def has_models(models: Path | None, lang: str) -> bool:
    """Whether perplexity_filter can run for this language."""
    return models is not None and all(
        (models / name.format(lang=lang)).is_file() for name in (SENTENCEPIECE, KENLM)
    )


def registered() -> set[str]:
    """Names of all operators that Data-Juicer knows in this process."""
    prepare()
    from data_juicer.ops import OPERATORS

    return set(OPERATORS.modules)


def _deny_install(cls: type, package_spec: str, pip_args: Any = None) -> None:
    raise ImportError(
        f"Data-Juicer asked to install {package_spec!r} at run time, which Steel does not allow: "
        f"install the project's pinned requirements"
    )


def _sentencepiece(folder: Path | None, lang: str, **_: Any) -> Any:
    return load_sentencepiece(_model(folder, SENTENCEPIECE.format(lang=lang)))


def _kenlm(folder: Path | None, lang: str, **_: Any) -> Any:
    return load_kenlm(_model(folder, KENLM.format(lang=lang)))


def _tokenizer(folder: Path | None, pretrained_model_name_or_path: str, **_: Any) -> Any:
    return _load_tokenizer(_model(folder, pretrained_model_name_or_path))


def _model(folder: Path | None, name: str) -> Path:
    path = folder / name if folder else None
    if path is None or not path.exists():
        raise NodeError(f"the operator needs the model {name}, which is not in {folder or 'any folder'}")
    return path


# Artifact folders carry their fingerprint in their name, so a path stands for one content.
@lru_cache(maxsize=4)
def load_sentencepiece(path: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@lru_cache(maxsize=4)
def load_kenlm(path: Path) -> Any:
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)


@lru_cache(maxsize=2)
def _load_tokenizer(path: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=False
    )
