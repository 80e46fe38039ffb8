"""The exact prompt of a protocol, for one question of each benchmark: what `make prompts` prints.

Questions are taken from converted benchmarks, or, before there are any, from the raw files (as `make preview`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.convert import node as convert
from tasks.convert import readers
from tasks.convert.verdicts import guess_language
from tasks.download import node as download
from tasks.evaluate import benchmarks, protocols
from tasks.evaluate.benchmarks import Question, reported_split
from tasks.evaluate.protocols import Form, Protocol
from tasks.evaluate.requests import Request
from tasks.inspect import preview
from tasks.inspect.artifacts import newest
from tasks.records.record import Draft
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.store import Store

FORMS: tuple[Form, ...] = ("plain", "chat")


def lines(config: SteelRun, names: Sequence[str], benchmark: str = "") -> Iterator[str]:
    """For each protocol and benchmark: version, digest, and the prompt to the last character.

    NodeError for unknown names and where no question is at hand.
    """
    unknown = [name for name in names if name not in protocols.PROTOCOLS]
    if unknown:
        raise NodeError(f"there is no protocol {unknown[0]}; there are: {', '.join(protocols.PROTOCOLS)}")
    asked = [benchmark] if benchmark else config.evaluate.benchmarks
    if not asked:
        raise NodeError(f"profile {config.profile} asks no benchmark (evaluate.benchmarks)")
    questions = {name: _questions(config, name) for name in asked}
    for name in names:
        protocol = protocols.of(name)
        yield from _protocol_lines(protocol)
        for where, found in questions.items():
            yield from _benchmark_lines(protocol, where, found, reported_split(config.sources[where]))


def _protocol_lines(protocol: Protocol) -> Iterator[str]:
    yield f"=== {protocol.name}, version {protocol.version}, sha256 {protocol.digest}"
    for key in ("scoring", "normalisation", "truncation"):
        if key in protocol.rules:
            yield f"    {key}: {protocol.rules[key]}"


def _benchmark_lines(protocol: Protocol, name: str, questions: list[Question], split: str) -> Iterator[str]:
    for language in dict.fromkeys(q.language for q in questions):
        mine = [q for q in questions if q.language == language and q.split == split and protocol.suits(q)]
        if not mine:
            continue
        question = mine[0]
        examples = [
            q for q in questions if q.subject == question.subject and q.split == benchmarks.SHOTS_SPLIT
        ]
        if len(examples) < protocol.shots:
            yield f"--- {name}: its subject {question.subject} has {len(examples)} examples, not {protocol.shots}"
            continue
        seen: set[str] = set()
        for form in FORMS:
            if (used := protocol.form(form)) not in seen:
                seen.add(used)
                request = protocol.request(question, used, examples=examples)
                yield f"--- {name}, {question.subject}, {language}, {used} form"
                yield from _request_lines(request)


def _request_lines(request: Request) -> Iterator[str]:
    yield f"{request.show()}⟂"
    if request.options:
        yield "scored behind ⟂: " + ", ".join(map(repr, request.options))
    else:
        yield f"then a reply of at most {request.reply_tokens} tokens"


def _questions(config: SteelRun, name: str) -> list[Question]:
    """Questions of a benchmark, all splits; from the raw files only the first ones of each."""
    source = config.sources.get(name)
    if source is None or source.use != "benchmark":
        known = ", ".join(config.using("benchmark")) or "none"
        raise NodeError(f"there is no benchmark {name!r} in {config.profile}; there are: {known}")
    nodes = {n.name: n for n in (*download.nodes(config), *convert.nodes(config)) if n.unit == name}
    made = newest(Store(config.runtime.artifacts), nodes).get(f"convert:{name}")
    if made is not None:
        return list(benchmarks.read(made.path, name, source.reader))
    folder, files = preview.place(config, name)
    by_file = source.model_copy(update={"options": source.options | {"subjects": []}})
    return [
        question
        for file in _some(config, name, files, reported_split(source))
        for first in preview.first_records(name, by_file, folder, 5, [file], config.convert.max_chars)
        if first.record
        for question in [_question(name, source.reader, source.language, first.record)]
    ]


def _some(config: SteelRun, name: str, files: Sequence[str], split: str) -> list[str]:
    """The files of one subject: its reported split and its examples."""
    place = readers.load(config.sources[name].reader).place
    if place is None:
        raise NodeError(f"{name}: its reader is none of benchmarks")
    wanted = config.sources[name].options.get("subjects") or []
    placed = {file: where for file in sorted(files) if (where := place(file))}
    for subject, there in placed.values():
        if there == split and (not wanted or subject in wanted):
            return [
                f for f, (s, p) in placed.items() if s == subject and p in (split, benchmarks.SHOTS_SPLIT)
            ]
    raise NodeError(f"{name}: no file of its split {split} is here")


def _question(name: str, family: str, language: str, record: Draft) -> Question:
    spoken = record.get("language") or language
    return Question(
        id="",
        benchmark=name,
        subject=record["subject"],
        split=record["split"],
        language=guess_language(record["question"]) if spoken == "mixed" else spoken,
        question=record["question"],
        choices=tuple(record["choices"]),
        answer=record["answer"],
        family=family,
        target=record.get("target") or "",
    )
