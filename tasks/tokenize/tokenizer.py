"""Node tokenize:tokenizer: a tokenizer folder that transformers loads, trained here or brought along.

Trained: byte-level BPE with the normaliser and pre-tokenizer of Qwen's tokenizer (NFC, its Split
pattern, ByteLevel), the full byte alphabet, and <|endoftext|>, <|im_start|>, <|im_end|> as the
last three ids. Same records in, same bytes out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from model.chat_template import CHAT_TEMPLATE, unmarked
from tasks.settings.config import Section
from tasks.settings.errors import NodeError, one_line
from tasks.stage.node import Context, Outcome
from tasks.tokenize.chat import END_OF_TEXT, IM_END, IM_START, SPECIALS

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer pattern of Qwen 1.5 and 2 (transformers: models/qwen2/tokenization_qwen2.py)."""

NEEDED = ("vocab.json", "merges.txt")
WANTED = ("tokenizer.json", *NEEDED, "tokenizer_config.json", "chat_template.jinja")
"""Files of a tokenizer folder that are used; licences come along."""

PROBE = [
    {"role": "user", "content": "你好，1+1=?"},
    {"role": "assistant", "content": "2. That's it."},
    {"role": "user", "content": "Why?"},
]


class Settings(Section):
    """The recipe of the node tokenize:tokenizer where it is trained; config.Tokenize says what they mean."""

    tokenizer: Literal["train"] = "train"
    vocab_size: int
    merge_han: bool = False
    max_token_bytes: int = 16


class FolderSettings(Section):
    """The recipe of the node tokenize:tokenizer where it is given."""

    tokenizer: Literal["folder"] = "folder"


# ------------------------------------------------------------------------------------ bodies
def train_body(ctx: Context) -> Outcome:
    """Train on the cleaned records of all sources, without those that were dropped later."""
    from tasks.work import pool

    drops = ctx.inputs["decontaminate"].path
    sources = {
        name: (str(artifact.path), str(drops / name / "drops.jsonl"))
        for name, artifact in sorted(ctx.inputs.items())
        if name != "decontaminate"
    }
    counts = pool.submit(train, sources, str(ctx.out), ctx.config).result()
    return _outcome(ctx, pool.submit(check_folder, str(ctx.out)).result(), counts)


def folder_body(ctx: Context) -> Outcome:
    """Take the tokenizer in runtime.folders.tokenizer."""
    from tasks.work import pool

    changes = take_folder(_folder(ctx.runtime.folders.tokenizer), ctx.out)
    for change in changes:
        ctx.log.warning(change)
    facts = pool.submit(check_folder, str(ctx.out)).result()
    return _outcome(ctx, facts, {"changes": len(changes)}, changes)


def _outcome(
    ctx: Context, facts: Mapping[str, Any], counts: Mapping[str, int], changes: Sequence[str] = ()
) -> Outcome:
    for warning in facts["warnings"]:
        ctx.log.warning(warning)
    headline = f"{facts['vocab_size']:,} tokens"
    return Outcome(
        headline=f"{headline}, {len(changes)} changes to the folder" if changes else headline,
        counts={"vocab_size": facts["vocab_size"], **counts},
        extra={
            "tokenizer_digest": facts["digest"],
            "encoder": facts["backend"],
            **({"changes": list(changes)} if changes else {}),
        },
        summary="\n".join(f"- {change}" for change in changes),
        files=["tokenizer_config.json"],
    )


# ---------------------------------------------------------------------------------- training
def train(sources: Mapping[str, tuple[str, str]], out: str, settings: Settings) -> dict[str, int]:
    """Train a BPE on (records, drops) per source and write its folder (in a pool worker)."""
    from tokenizers import AddedToken, Regex, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = _blank()
    final = tokenizer.pre_tokenizer
    if not settings.merge_han:
        # Only while merges are learnt: one that spans two characters is then never seen.
        split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
        han = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, han, level])
    trainer = BpeTrainer(
        vocab_size=settings.vocab_size - len(SPECIALS),
        min_frequency=2,
        max_token_length=settings.max_token_bytes,  # of byte characters: bytes
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    counts = {"records": 0, "characters": 0}
    tokenizer.train_from_iterator(_corpus(sources, counts), trainer)
    if not counts["records"]:
        raise NodeError("there are no cleaned records to train a tokenizer on")
    tokenizer.pre_tokenizer = final
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(Path(out) / "tokenizer.json"))
    _write_config(Path(out), {t: tokenizer.token_to_id(t) for t in SPECIALS})
    return counts


def _blank() -> Any:
    """A tokenizer like Qwen's, without vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _corpus(sources: Mapping[str, tuple[str, str]], counts: dict[str, int]) -> Iterator[str]:
    """The texts as they will be tokenized: of a dialogue, the text between special tokens."""
    from tasks.records import drops
    from tasks.records.record import read
    from tasks.tokenize.chat import chat_pieces

    for _, (records, dropped) in sorted(sources.items()):
        for record in drops.without(read(records), drops.ids(dropped)):
            counts["records"] += 1
            texts = (
                [record["text"]]
                if "text" in record
                else [piece.text for piece in chat_pieces(record["messages"]) if not piece.special]
            )
            for text in texts:
                counts["characters"] += len(text)
                yield text


def _write_config(folder: Path, specials: Mapping[str, int], chat_template: str = CHAT_TEMPLATE) -> None:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(found): {"content": token, **flags} for token, found in specials.items()
        },
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n", "utf-8")


# ------------------------------------------------------------------------ brought along
def _folder(folder: Path | None) -> Path:
    """The folder, if it holds a tokenizer; else one clear line."""
    if folder is None:
        raise NodeError("this profile takes its tokenizer from a folder: give TOKENIZER=<folder>")
    folder = Path(folder)
    has = {name for name in WANTED if (folder / name).is_file()}
    if "tokenizer.json" not in has and not has.issuperset(NEEDED):
        raise NodeError(
            f"TOKENIZER={folder} holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, are needed"
        )
    return folder


def _files(folder: Path) -> list[Path]:
    licences = [p for p in folder.iterdir() if p.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))]
    return sorted([folder / name for name in WANTED if (folder / name).is_file()] + licences)


def folder_digests(folder: Path | None) -> dict[str, str]:
    """sha256 of every file that would be taken (the `external` of the node)."""
    return {
        f"tokenizer/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(_folder(folder))
    }


def check_given(folder: Path) -> None:
    """NodeError where a run could not take the tokenizer in the folder."""
    with tempfile.TemporaryDirectory() as place:
        take_folder(_folder(folder), Path(place))


def take_folder(folder: Path, out: Path) -> list[str]:
    """Copy a tokenizer without its state and complete it; returns what had to be changed."""
    from model.tokenizer import switch_off_settings

    notes: list[str] = []
    for path in _files(folder):
        shutil.copyfile(path, out / path.name)
    if not (out / "tokenizer.json").is_file():
        notes.append("tokenizer.json was built from vocab.json and merges.txt")
        _build(out)
    opened = _opened(out, notes)
    specials = {t: opened.special_id(t) for t in SPECIALS}
    if missing := [token for token, found in specials.items() if found is None]:
        raise NodeError(f"the tokenizer in {folder} lacks the special tokens {', '.join(missing)}")
    if not (out / "tokenizer_config.json").is_file():
        notes.append(
            "tokenizer_config.json was missing: written for Qwen2Tokenizer with Steel's chat template"
        )
        _write_config(out, specials)
        return notes
    try:
        config = json.loads((out / "tokenizer_config.json").read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("an object is needed")
    except ValueError as error:
        raise NodeError(f"TOKENIZER={folder}: tokenizer_config.json is no JSON: {error}") from error
    state = switch_off_settings(config)
    notes += state
    template = config.get("chat_template")
    if (out / "chat_template.jinja").is_file():
        template = (out / "chat_template.jinja").read_text("utf-8")
    ends = {"eos_token": IM_END, "pad_token": END_OF_TEXT}
    if others := [name for name, token in ends.items() if _content(config.get(name)) != token]:
        theirs = ", ".join(f"{name} is {_content(config.get(name))}" for name in others)
        notes.append(f"its {theirs}: eos_token {IM_END} and pad_token {END_OF_TEXT} are set")
    if not _renders_alike(template):
        notes.append(
            "its chat template is " + ("missing" if template is None else "another one") + ": Steel's is used"
        )
        (out / "chat_template.jinja").unlink(missing_ok=True)
        ends["chat_template"] = CHAT_TEMPLATE
    elif not others and not state:
        return notes
    _write_json(out / "tokenizer_config.json", {**config, **ends})
    return notes


def _opened(out: Path, notes: list[str]) -> Any:
    """The copied tokenizer, rewritten where its file carries state."""
    from model.tokenizer import TextTokenizer, read_tree, write_tree

    try:
        tree = read_tree(out)
        opened = TextTokenizer(tree)  # switches the state in `tree` off
    except ValueError as error:
        raise NodeError(f"TOKENIZER: {error}") from error
    if opened.changes:
        notes += opened.changes
        write_tree(out, tree)
    return opened


def _content(token: Any) -> str | None:
    """Of a special token as tokenizer_config.json has it: a string, or an AddedToken's fields."""
    return token.get("content") if isinstance(token, dict) else token


def _renders_alike(template: Any) -> bool:
    """Whether a template that was brought along renders as Steel's does.

    It is a program of someone else's: it runs in the sandbox that transformers uses, and whatever fails there (its
    syntax, a refused access, a name that it misses) makes it another template.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        theirs, ours = (sandbox.from_string(unmarked(text)) for text in (template, CHAT_TEMPLATE))
        return all(
            theirs.render(messages=messages, add_generation_prompt=True)
            == ours.render(messages=messages, add_generation_prompt=True)
            for messages in (PROBE, [{"role": "system", "content": "Be brief."}, *PROBE])
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        return False


def _build(folder: Path) -> None:
    """tokenizer.json from vocab.json and merges.txt of a Qwen tokenizer."""
    from tokenizers import AddedToken
    from tokenizers.models import BPE

    tokenizer = _blank()
    try:
        tokenizer.model = BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise NodeError(f"TOKENIZER: vocab.json and merges.txt cannot be read: {error}") from error
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))


# ------------------------------------------------------------------------------------- check
def check_folder(folder: str) -> dict[str, Any]:
    """Load the folder as its users will and compare the ids; facts about it (in a pool worker).

    The folder may carry no state: what a program does with a text must not depend on another's last call.
    """
    from transformers import AutoTokenizer

    from tasks.tokenize.chat import render_chat
    from tasks.tokenize.encode import PROBES, Encoder

    encoder = Encoder(folder)
    if encoder.changes:
        raise NodeError(f"the tokenizer carries state: {'; '.join(encoder.changes)}")
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # among them: a class of its own, whose code is not run
        raise NodeError(f"transformers cannot load the tokenizer: {one_line(error)}") from error
    for text in PROBES:
        if loaded(text, split_special_tokens=True)["input_ids"] != encoder.encode(text):
            raise NodeError(
                f"transformers encodes {text[:40]!r} otherwise than tokenizer.json without its added tokens"
            )
    for token in SPECIALS:
        if loaded.convert_tokens_to_ids(token) != encoder.special_id(token):
            raise NodeError(f"transformers has another id for {token} than tokenizer.json")
    if (loaded.eos_token, loaded.pad_token) != (IM_END, END_OF_TEXT):
        raise NodeError(
            f"the tokenizer's eos and pad are {loaded.eos_token} and {loaded.pad_token}, "
            f"{IM_END} and {END_OF_TEXT} are needed"
        )
    rendered = loaded.apply_chat_template(PROBE, add_generation_prompt=True, return_dict=False)
    if list(rendered) != render_chat(encoder, PROBE, generation_prompt=True)[0]:
        raise NodeError("the tokenizer's chat template renders otherwise than Steel's pieces")
    return {
        "vocab_size": encoder.vocab_size,
        "digest": encoder.digest,
        "backend": encoder.backend,
        "warnings": encoder.warnings,
    }
