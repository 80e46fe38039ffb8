"""clean:assets: the models behind perplexity_filter, trained from the run's own converted records.

Data-Juicer would fetch a SentencePiece and a KenLM model of Chinese Wikipedia from the network,
unchecked. Here both are trained, deterministically and in seconds, on a seed corpus (seeds.py), for
each language that has enough of it:

    <lang>.sp.model    SentencePiece unigram pieces
    <lang>.arpa.bin    an n-gram model over them; ARPA text, which KenLM takes under any name
    assets.json        what they were trained on, and the perplexity of held-out lines

A model whose own held-out lines it finds unlikely would drop good text, so such a language goes
without: the step of the filter is skipped, and the account lists it.
With recipe `paper` also a byte-level BPE of code, at the place where alphanumeric_filter(tokenization:
true) looks for the tokenizer of pythia-6.9b, for which it stands in.

With `models: folder` the files come from runtime.folders.models instead, whoever trained them.
"""

from __future__ import annotations

import io
import shutil
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from tasks.clean import operators
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.stage.store import file_digest

MIN_CHARS = 20_000
"""Below this much seed text no model is trained."""
MAX_HELD_OUT_PERPLEXITY = 750
"""Median over held-out lines: half of what the recipes let pass."""
PIECES_CHARS = 400_000
"""SentencePiece's EM needs no more for a few thousand pieces, and costs most of the time."""
COVERAGE = 0.9995
LANGUAGES = ("zh", "en")
_NAMES = "<lang>.sp.model and <lang>.arpa.bin"
CODE_VOCABULARY = 8000


class Training(Section):
    """How a language model is trained."""

    vocab_size: int
    order: int
    max_chars: int
    """Characters of seed corpus."""


class Settings(Section):
    """The recipe of the node clean:assets where the models are trained."""

    assets: Training
    code_tokenizer: bool
    """Also a tokenizer of code: a recipe counts letters per token."""


class FolderSettings(Section):
    """The recipe of the node clean:assets where the models are given."""

    models: Literal["folder"] = "folder"


def body(ctx: Context) -> Outcome:
    """Train the models in a worker process of the pool."""
    from tasks.work import pool

    files = {name: artifact.path for name, artifact in ctx.inputs.items()}
    info = pool.submit(train, files, ctx.out, ctx.config).result()
    trained = [lang for lang, model in info.items() if model.get("usable")]
    lines = [
        "| model | seed characters | vocabulary | n-grams | held-out perplexity (median, p95) |",
        "|---|---:|---:|---|---|",
    ]
    for lang, model in info.items():
        held_out = model.get("held_out", {})
        lines.append(
            f"| {lang} | {model['chars']:,} | {model.get('vocabulary', 0):,} "
            f"| {' / '.join(f'{n:,}' for n in model.get('ngrams', {}).values())} "
            f"| {held_out.get('median', '–')}, {held_out.get('p95', '–')} {model.get('reason', '')} |"
        )
    return Outcome(
        headline=f"language models: {', '.join(trained) or 'none'}",
        counts={f"{lang}.seed_chars": model["chars"] for lang, model in info.items()},
        metrics={
            f"{lang}.held_out_perplexity": info[lang]["held_out"]["median"]
            for lang in trained
            if "held_out" in info[lang]
        },
        extra={"models": info},
        summary="\n".join(lines) + "\n",
        files=["assets.json"],
    )


def folder_body(ctx: Context) -> Outcome:
    """Take the models in runtime.folders.models."""
    folder = _folder(ctx.runtime.folders.models)
    info: dict[str, Any] = {}
    for path in _model_files(folder):
        relative = path.relative_to(folder)
        (ctx.out / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, ctx.out / relative)
    for lang in LANGUAGES:
        if operators.has_models(
            ctx.out, lang
        ):  # both files; and they load, now and not in the middle of a source
            pieces = operators.load_sentencepiece(ctx.out / operators.SENTENCEPIECE.format(lang=lang))
            order = operators.load_kenlm(ctx.out / operators.KENLM.format(lang=lang)).order
            info[lang] = {"usable": True, "vocabulary": pieces.get_piece_size(), "order": order}
    if not info:
        raise NodeError(f"runtime.folders.models={folder} holds no pair of {_NAMES} for any language")
    (ctx.out / "assets.json").write_bytes(orjson.dumps(info, option=orjson.OPT_INDENT_2))
    rows = [f"| {lang} | {model['vocabulary']:,} | {model['order']} |" for lang, model in info.items()]
    return Outcome(
        headline=f"language models: {', '.join(info)} (given)",
        extra={"models": info},
        summary="\n".join(["| model | vocabulary | order |", "|---|---:|---:|", *rows]) + "\n",
        files=["assets.json"],
    )


def folder_digests(folder: Path | None) -> dict[str, str]:
    """sha256 of the given models, which stand for them in the fingerprint."""
    folder = _folder(folder)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in _model_files(folder)}


def check_given(folder: Path | None) -> None:
    """NodeError where the folder holds no pair of models for any language."""
    place = _folder(folder)
    if not any(operators.has_models(place, lang) for lang in LANGUAGES):
        raise NodeError(f"runtime.folders.models={folder} holds no pair of {_NAMES} for any language")


def _folder(folder: Path | None) -> Path:
    if folder is None or not Path(folder).is_dir():
        raise NodeError(
            f"clean.assets.models is `folder`, but runtime.folders.models={folder} is none: it has to hold {_NAMES}"
        )
    return Path(folder)


def _model_files(folder: Path) -> list[Path]:
    names = [n.format(lang=lang) for lang in LANGUAGES for n in (operators.SENTENCEPIECE, operators.KENLM)]
    code = [path for path in sorted((folder / operators.TOKENIZER).rglob("*")) if path.is_file()]
    return [folder / name for name in names if (folder / name).is_file()] + code


def train(files: Mapping[str, Path], out: Path, settings: Settings) -> dict[str, Any]:
    """Train all models into `out`; returns the content of assets.json."""
    from tasks.clean.seeds import seed_lines

    training = settings.assets
    info: dict[str, Any] = {}
    for lang, lines in seed_lines(files, training.max_chars).items():
        info[lang] = train_language(lang, lines, out, training.vocab_size, training.order)
    if settings.code_tokenizer:
        info["code"] = _train_code_tokenizer(files, out, training.max_chars)
    (out / "assets.json").write_bytes(orjson.dumps(info, option=orjson.OPT_INDENT_2))
    return info


def train_language(lang: str, lines: Sequence[str], out: Path, vocab_size: int, order: int) -> dict[str, Any]:
    """`<lang>.sp.model` and `<lang>.arpa.bin` in `out`, if the lines suffice for a usable model."""
    from tasks.clean.kneser_ney import estimate

    info: dict[str, Any] = {"chars": sum(map(len, lines)), "lines": len(lines), "usable": False}
    if info["chars"] < MIN_CHARS:
        return info | {"reason": f"fewer than {MIN_CHARS:,} characters of seed text"}
    stride = max(4, min(50, len(lines) // 50))  # 2 %, but 50 lines of a small corpus
    held_out, train_on = lines[::stride], [line for i, line in enumerate(lines) if i % stride]
    pieces = out / operators.SENTENCEPIECE.format(lang=lang)
    ngrams = out / operators.KENLM.format(lang=lang)
    info["vocabulary"] = _train_pieces(train_on, pieces, vocab_size)
    encoder = operators.load_sentencepiece(pieces)
    info["ngrams"] = estimate((encoder.encode_as_pieces(line) for line in train_on), order, ngrams)
    model = operators.load_kenlm(ngrams)
    scores = sorted(_perplexity(model, encoder.encode_as_pieces(line)) for line in held_out)
    info["held_out"] = {
        "lines": len(scores),
        "median": round(scores[len(scores) // 2], 1),
        "p95": round(scores[len(scores) * 95 // 100], 1),
    }
    info["usable"] = info["held_out"]["median"] <= MAX_HELD_OUT_PERPLEXITY
    if not info["usable"]:
        pieces.unlink()
        ngrams.unlink()
        info["reason"] = "its own held-out lines are too unlikely: too little or too mixed seed text"
    return info


def _train_pieces(lines: Sequence[str], path: Path, vocab_size: int) -> int:
    """Train SentencePiece; returns the size, which every character of the coverage has to fit in."""
    import sentencepiece

    sample, chars = [], 0
    stride = max(1, sum(map(len, lines)) // PIECES_CHARS)
    for line in lines[::stride]:
        sample.append(line)
        chars += len(line)
        if chars >= PIECES_CHARS:
            break
    required = _required_characters(sample)
    size = max(vocab_size, required + required // 4 + 16)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=COVERAGE,
        model_type="unigram",
        num_threads=1,  # more would make the pieces depend on the machine
        seed_sentencepiece_size=50_000,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return operators.load_sentencepiece(path).get_piece_size()


def _required_characters(lines: Sequence[str]) -> int:
    counts = Counter(unicodedata.normalize("NFKC", "".join(lines)))
    covered, total = 0, counts.total()
    for needed, (_, count) in enumerate(counts.most_common(), start=1):
        covered += count
        if covered >= COVERAGE * total:
            return needed
    return len(counts)


def _perplexity(model: Any, pieces: Sequence[str]) -> float:
    """As perplexity_filter computes it."""
    return 10.0 ** (-model.score(" ".join(pieces)) / (len(pieces) + 1))


def _train_code_tokenizer(files: Mapping[str, Path], out: Path, max_chars: int) -> dict[str, Any]:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tasks.clean.seeds import code_texts

    texts = list(code_texts(files, max_chars))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CODE_VOCABULARY,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = out / operators.TOKENIZER
    folder.mkdir(parents=True)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return {"chars": sum(map(len, texts)), "vocabulary": tokenizer.get_vocab_size(), "usable": True}
