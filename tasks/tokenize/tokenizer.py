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

from model.chat_format import PROBE, content
from model.chat_template import CHAT_TEMPLATE
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
TWO_TURNS = [*PROBE, {"role": "assistant", "content": "Because\n\n1 and 1 are two.\n\tReally!"}]


class Settings(Section):
    """The recipe of the node tokenize:tokenizer where it is trained; config.Tokenize says what they mean."""

    tokenizer: Literal["train"] = "train"
    vocab_size: int
    merge_han: bool = False
    max_token_bytes: int = 16


class FolderSettings(Section):
    """The recipe of the node tokenize:tokenizer where it is given."""

    tokenizer: Literal["folder"] = "folder"


class KeptSettings(FolderSettings):
    """The same for a model that is continued: it keeps its own chat format."""

    chat_format: Literal["kept"] = "kept"


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

    keep = isinstance(ctx.config, KeptSettings)
    changes = take_folder(_folder(ctx.runtime.folders.tokenizer), ctx.out, keep)
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


def check_given(folder: Path, keep_format: bool = False) -> None:
    """NodeError where a run could not take the tokenizer in the folder."""
    with tempfile.TemporaryDirectory() as place:
        take_folder(_folder(folder), Path(place), keep_format)


def take_folder(folder: Path, out: Path, keep_format: bool = False) -> list[str]:
    """Copy a tokenizer without its state and complete it; returns what had to be changed.

    Steel's chat format is used where the tokenizer has its tokens, else the folder's own; `keep_format`: the folder's own
    wherever it can be, for a model that was trained with it.
    """
    from model.chat_format import STEEL, NoFormat
    from model.tokenizer import format_of, read_tree

    notes: list[str] = []
    for path in _files(folder):
        shutil.copyfile(path, out / path.name)
    if not (out / "tokenizer.json").is_file():
        notes.append("tokenizer.json was built from vocab.json and merges.txt")
        _build(out)
    begin = _document_start(out)
    opened = _opened(out, notes)
    specials = {t: opened.special_id(t) for t in SPECIALS}
    missing = [token for token, found in specials.items() if found is None]
    if keep_format or missing:
        file = out / "tokenizer_config.json"
        before = file.read_bytes() if file.is_file() else None
        own = _own_format(out, begin)
        chat = format_of(out, read_tree(out))
        if chat is not STEEL and not isinstance(chat, NoFormat):
            return [*notes, *own, *_kept(out, chat.document_end, chat.turn_end)]
        if missing:
            reason = f": {chat.reason}" if isinstance(chat, NoFormat) else ""
            raise NodeError(
                f"the tokenizer in {folder} lacks the special tokens {', '.join(missing)}, and its own chat format cannot "
                f"be used{reason}"
            )
        if isinstance(chat, NoFormat):
            notes.append(f"its own chat format cannot be used: {chat.reason}")
        file.unlink() if before is None else file.write_bytes(before)
    return notes + _as_steels(folder, out, {t: n for t, n in specials.items() if n is not None})


def _document_start(out: Path) -> str | None:
    """The token that the tokenizer puts before every text, if it does."""
    from model.tokenizer import read_tree

    try:
        processor = read_tree(out).get("post_processor") or {}
    except ValueError:
        return None
    for part in processor.get("processors", [processor]):
        match part:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(token)}}, *_]}:
                return token
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(token), *_]}:
                return token
    return None


def _own_format(out: Path, begin: str | None) -> list[str]:
    """Write into tokenizer_config.json what the format of the folder is read from; what was switched off."""
    from model.chat_format import DOCUMENT_START, KEPT
    from model.tokenizer import switch_off_settings

    settings = _settings(out)
    if settings.get("add_bos_token") is False:
        begin = None
    elif settings.get("add_bos_token"):
        begin = begin or content(settings.get("bos_token"))
    state = switch_off_settings(settings)
    _write_json(
        out / "tokenizer_config.json",
        {**settings, KEPT: "template", **({DOCUMENT_START: begin} if begin else {})},
    )
    return state + ([f"{begin} begins every plain text, as its own setting says"] if begin else [])


def _kept(out: Path, document_end: str, turn_end: str) -> list[str]:
    """Its own format is used: the tokens that programs ask for by role are there."""
    settings, notes = (
        _settings(out),
        [f"its own chat format is used: a reply ends with {turn_end}, a text with {document_end}"],
    )
    for name, token in (("eos_token", turn_end), ("pad_token", document_end)):
        if content(settings.get(name)) is None:
            settings[name] = token
            notes.append(f"its {name} was missing: {token} is set")
    _write_json(out / "tokenizer_config.json", settings)
    return notes


def _settings(out: Path) -> dict[str, Any]:
    file = out / "tokenizer_config.json"
    if not file.is_file():
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    try:
        settings = json.loads(file.read_text("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("an object is needed")
    except ValueError as error:
        raise NodeError(f"TOKENIZER: tokenizer_config.json is no JSON: {error}") from error
    return settings


def _as_steels(folder: Path, out: Path, specials: Mapping[str, int]) -> list[str]:
    """Steel's chat format, its end of a turn and of a document."""
    from model.chat_format import renders_alike
    from model.tokenizer import switch_off_settings

    notes: list[str] = []
    if not (out / "tokenizer_config.json").is_file():
        notes.append(
            "tokenizer_config.json was missing: written for Qwen2Tokenizer with Steel's chat template"
        )
        _write_config(out, specials)
        return notes
    config = _settings(out)
    state = switch_off_settings(config)
    notes += state
    template = config.get("chat_template")
    if (out / "chat_template.jinja").is_file():
        template = (out / "chat_template.jinja").read_text("utf-8")
    ends = {"eos_token": IM_END, "pad_token": END_OF_TEXT}
    if others := [name for name, token in ends.items() if content(config.get(name)) != token]:
        theirs = ", ".join(f"{name} is {content(config.get(name))}" for name in others)
        notes.append(f"its {theirs}: eos_token {IM_END} and pad_token {END_OF_TEXT} are set")
    if template is None or not renders_alike(template):
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

    from model.chat_format import STEEL
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
        ids = loaded(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        if ids != encoder.encode(text):
            raise NodeError(
                f"transformers encodes {text[:40]!r} otherwise than tokenizer.json without its added tokens"
            )
        if (unknown := encoder.unknown) is not None and unknown in ids:
            raise NodeError(
                f"the tokenizer has no tokens for {text[:40]!r}: it would be lost as its unknown token"
            )
    ends = (encoder.chat.turn_end, encoder.chat.document_end)
    for token in {*ends, encoder.chat.document_start} - {None}:
        if loaded.convert_tokens_to_ids(token) != encoder.special_id(token):
            raise NodeError(f"transformers has another id for {token} than tokenizer.json")
    steel = encoder.chat is STEEL
    if steel and (loaded.eos_token, loaded.pad_token) != ends:
        raise NodeError(
            f"the tokenizer's eos and pad are {loaded.eos_token} and {loaded.pad_token}, {' and '.join(ends)} are needed"
        )
    for messages, prompt in ((PROBE, True), *(() if steel else ((TWO_TURNS, False),))):
        rendered = loaded.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        if list(rendered) != render_chat(encoder, messages, generation_prompt=prompt)[0]:
            raise NodeError("the tokenizer's chat template renders otherwise than its pieces")
    return {
        "vocab_size": encoder.vocab_size,
        "digest": encoder.digest,
        "backend": encoder.backend,
        "warnings": encoder.warnings,
    }
