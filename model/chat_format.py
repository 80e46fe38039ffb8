"""The chat format of a tokenizer folder: Steel's own, or the folder's chat template taken apart into pieces.

A template is a program that makes one text of a dialogue. It is run once for every order of roles, with a mark in the
place of each content; what it made is cut at special tokens and marks. So contents never pass through it, a content
that holds the string of a special token gives no special token, and the targets of fine-tuning are spans by
construction. A reply is what follows the prompt for it, up to and with the special token that ends it.

Refused, with the reason: a template that depends on the date, that renders a reply otherwise than behind its own
prompt, that leaves a content out or gives it twice, or that ends a reply with no special token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from model.chat_template import (
    CHAT_TEMPLATE,
    DOCUMENT_END,
    MARKED_CHAT_TEMPLATE,
    TURN_END,
    TURN_START,
    After,
    Piece,
    Refused,
    chat_pieces,
    unmarked,
)

SPECIALS = (DOCUMENT_END, TURN_START, TURN_END)
DOCUMENT_ENDS = (DOCUMENT_END, "<|end_of_text|>", "<eos>", "</s>")
"""Tokens by which pre-training of other models ends a document; where none is there, eos_token does."""
DOCUMENT_START = "steel_document_start"
"""Key in tokenizer_config.json: the token that begins a plain text, where the model was trained with one."""
KEPT = "steel_chat_format"
"""Key in tokenizer_config.json; `template`: the folder's own template is used, though Steel's tokens are there."""
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PROBE = [
    {"role": "user", "content": "你好，1+1=?"},
    {"role": "assistant", "content": "2. That's it."},
    {"role": "user", "content": "Why?"},
]


class ChatFormat(Protocol):
    """How dialogues become pieces, and which tokens stand around texts."""

    document_start: str | None
    document_end: str
    turn_end: str

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> Iterator[Piece]:
        """The pieces of a dialogue. Raises Refused where it has no form."""
        ...

    def reply(
        self, messages: Sequence[Mapping[str, Any]], content: str
    ) -> tuple[list[Piece], list[Piece], list[Piece]]:
        """A reply behind these messages: (up to the end of its content; what ends it; both as training sees them)."""
        ...


class SteelFormat:
    """ChatML with Steel's system message (model.chat_template)."""

    document_start: str | None = None
    document_end: str = DOCUMENT_END
    turn_end: str = TURN_END

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> Iterator[Piece]:
        return chat_pieces(messages, generation_prompt=generation_prompt)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], content: str
    ) -> tuple[list[Piece], list[Piece], list[Piece]]:
        said, end = [Piece(content)], [Piece(TURN_END, special=True)]
        return said, end, said + end


STEEL = SteelFormat()


class NoFormat:
    """A tokenizer that dialogues cannot be rendered with."""

    def __init__(self, reason: str, document_end: str, document_start: str | None = None):
        self.reason, self.document_end, self.document_start = reason, document_end, document_start
        self.turn_end = document_end

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> Iterator[Piece]:
        raise ValueError(f"{self.reason}: this model cannot chat")

    def reply(
        self, messages: Sequence[Mapping[str, Any]], content: str
    ) -> tuple[list[Piece], list[Piece], list[Piece]]:
        raise ValueError(f"{self.reason}: this model cannot chat")


class _Part(NamedTuple):
    """A special token, or a text with the numbers of messages where their contents stand."""

    texts: tuple[str | int, ...]
    special: bool
    target: int | None
    after: After


class TemplateFormat:
    """The pieces of a chat template."""

    def __init__(
        self,
        template: str,
        names: Mapping[str, str],
        added: Sequence[Mapping[str, Any]],
        document_end: str,
        document_start: str | None,
    ):
        """`names`: bos_token and the like; `added`: added tokens as tokenizer.json has them. ValueError: see above."""
        if "strftime_now" in template:
            raise ValueError("its chat template depends on the date: remove strftime_now from it")
        self.document_end, self.document_start = document_end, document_start
        self._names = dict(names)
        self._template = _compiled(template)
        self._cut = _cutter(added)
        self._known: dict[tuple[tuple[str, ...], bool], list[_Part]] = {}
        ended = [part for part in self._shape(("user", "assistant"), False) if part.target == 1]
        self.turn_end = str(ended[-1].texts[0])
        self._trims = self._shown("  x\n") == "x"
        if not self._trims and self._shown("  x\n") != "  x\n":
            raise ValueError("its chat template changes what is said")

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> Iterator[Piece]:
        messages = list(messages)
        shape = self._shape(tuple([m["role"] for m in messages]), generation_prompt)
        said = [m["content"].strip() if self._trims else m["content"] for m in messages]
        for part in shape:
            text = "".join([said[t] if isinstance(t, int) else t for t in part.texts])
            target = part.target is not None and bool(messages[part.target].get("loss", True))
            if text:
                yield Piece(text, part.special, target, part.after)

    def reply(
        self, messages: Sequence[Mapping[str, Any]], content: str
    ) -> tuple[list[Piece], list[Piece], list[Piece]]:
        last = len(messages)
        shape = self._shape((*[m["role"] for m in messages], "assistant"), False)
        content = content.strip() if self._trims else content
        said, end, whole = [], [], []
        for part in (part for part in shape if part.target == last):
            text = "".join([content if isinstance(t, int) else t for t in part.texts])
            if text:
                whole.append(Piece(text, part.special, True, part.after))
            if last in part.texts:
                at = part.texts.index(last)
                before, behind = (
                    "".join([str(t) for t in some]) for some in (part.texts[:at], part.texts[at + 1 :])
                )
                said.append(Piece(before + content, False, True, part.after))
                if behind:
                    end.append(Piece(behind, False, True, "text"))
            else:
                (end if said else said).append(Piece(text, part.special, True, part.after))
        return said, end, whole

    def _shape(self, roles: tuple[str, ...], generation_prompt: bool) -> list[_Part]:
        if (roles, generation_prompt) not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            self._known[roles, generation_prompt] = self._take_apart(roles, generation_prompt)
        return self._known[roles, generation_prompt]

    def _take_apart(self, roles: tuple[str, ...], generation_prompt: bool) -> list[_Part]:
        blank = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
        text = self._render(blank, generation_prompt)
        if [int(i) for i in re.findall("\ue000(\\d+)\ue001", text)] != list(range(len(roles))):
            raise Refused(f"its chat template does not give each content of {_list(roles)} once, in order")
        targets: list[tuple[int, int, int]] = []
        for i, role in enumerate(roles):
            if role == "assistant":
                prompt = self._render(blank[:i], True)
                mark = text.index(f"\ue000{i}\ue001")
                if not text.startswith(prompt) or len(prompt) > mark:
                    raise Refused("its chat template renders a reply otherwise than behind the prompt for it")
                end = next(
                    (m.end() for m in self._cut.finditer(text, mark) if m.lastgroup == "special"), None
                )
                following = re.compile("\ue000").search(text, mark + 1)
                if end is None or (following and following.start() < end):
                    raise Refused("its chat template ends a reply with no special token")
                targets.append((len(prompt), end, i))
        return list(self._parts(text, targets))

    def _parts(self, text: str, targets: Sequence[tuple[int, int, int]]) -> Iterator[_Part]:
        def target_at(place: int) -> int | None:
            return next((i for begin, end, i in targets if begin <= place < end), None)

        seams = {begin for begin, _, _ in targets}
        run: list[str | int] = []
        began, after, last = 0, "", 0

        def flush() -> Iterator[_Part]:
            nonlocal after
            if run:
                yield _Part(tuple(run), False, target_at(began), after)  # type: ignore[arg-type]
                after = "text"
                run.clear()

        def literal(begin: int, end: int) -> Iterator[_Part]:
            nonlocal began
            for seam in [*sorted(s for s in seams if begin < s < end), end]:
                if begin in seams:
                    yield from flush()
                if begin < seam:
                    began = begin if not run else began
                    run.append(text[begin:seam])
                begin = seam

        for match in self._cut.finditer(text):
            yield from literal(last, match.start())
            if match.start() in seams:
                yield from flush()
            if match.lastgroup == "special":
                yield from flush()
                yield _Part((match["special"].strip(),), True, target_at(match.start("special")), "")
                after = "special"
            else:
                began = match.start() if not run else began
                run.append(int(match["mark"]))
            last = match.end()
        yield from literal(last, len(text))
        yield from flush()

    def _render(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool) -> str:
        import jinja2

        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=generation_prompt, **self._names
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
        ) as error:
            roles = _list([m["role"] for m in messages])
            first = str(error).partition("\n")[0]
            raise Refused(f"its chat template refuses a dialogue of {roles}: {first}") from error

    def _shown(self, content: str) -> str:
        """What becomes of a content."""
        turns = [{"role": "user", "content": f"\ue000{content}\ue001"}]
        marked = self._render(turns, True)
        inner = marked[marked.index("\ue000") + 1 : marked.index("\ue001")]
        if inner != content:
            return inner
        # trimming shows at the ends alone
        plain = self._render([{"role": "user", "content": content}], True)
        blank = self._render([{"role": "user", "content": "\ue000"}], True)
        before, _, behind = blank.partition("\ue000")
        return plain[len(before) : len(plain) - len(behind)] if plain.startswith(before) else inner


def chat_format(
    settings: Mapping[str, Any],
    template: Any,
    added: Sequence[Mapping[str, Any]],
    prefixed: bool = False,
) -> ChatFormat:
    """The format of a folder: Steel's where its tokens are there, unless the folder says that it keeps its own.

    `settings`: tokenizer_config.json; `template`: the chat template, if any; `prefixed`: the tokenizer puts a space
    before a text, which Steel's pieces do not say.
    """
    tokens = {token["content"] for token in added}
    complete = set(SPECIALS) <= tokens
    kept = settings.get(KEPT) == "template" and not (template is None or renders_alike(template))
    if complete and not prefixed and not kept:
        return STEEL
    names = {name: text for name in NAMED if (text := content(settings.get(name)))}
    known = [name for name in (*DOCUMENT_ENDS, names.get("eos_token")) if name in tokens]
    start = settings.get(DOCUMENT_START)
    start = start if start in tokens else None
    if not known:
        return NoFormat("the tokenizer has no token that ends a document", DOCUMENT_END)
    if not isinstance(template, str):
        lacking = ", ".join(t for t in SPECIALS if t not in tokens)
        reason = (
            f"the tokenizer has no token {lacking} and no chat template" if lacking else "no chat template"
        )
        return NoFormat(reason, known[0], start)
    try:
        return TemplateFormat(template, names, added, known[0], start)
    except ValueError as error:
        return NoFormat(str(error), known[0], start)


def content(token: Any) -> str | None:
    """Of a special token as tokenizer_config.json has it: a string, or an AddedToken's fields."""
    return token.get("content") if isinstance(token, dict) else token


def default_template(template: Any) -> Any:
    """Of several templates by name, the default one."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def renders_alike(template: Any) -> bool:
    """Whether a template renders as Steel's does. It is a program of someone else's: it runs in the sandbox that
    transformers uses, and whatever fails there (its syntax, a refused access, a missing name) makes it another one."""
    if template in (CHAT_TEMPLATE, MARKED_CHAT_TEMPLATE):
        return True
    import jinja2

    try:
        theirs, ours = _compiled(template), _compiled(CHAT_TEMPLATE)
        return all(
            theirs.render(messages=messages, add_generation_prompt=True)
            == ours.render(messages=messages, add_generation_prompt=True)
            for messages in (PROBE, [{"role": "system", "content": "Be brief."}, *PROBE])
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        return False


def _compiled(template: Any) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = refuse
    try:
        return sandbox.from_string(unmarked(template))
    except jinja2.TemplateError as error:
        raise ValueError(f"its chat template cannot be read: {str(error).partition(chr(10))[0]}") from error


def _cutter(added: Sequence[Mapping[str, Any]]) -> re.Pattern[str]:
    """Finds special tokens (the longest first; with the white space that they take away) and marks."""
    forms = []
    for token in sorted(added, key=lambda token: -len(token["content"])):
        left, right = (r"\s*" if token.get(side) else "" for side in ("lstrip", "rstrip"))
        forms.append(f"{left}{re.escape(token['content'])}{right}")
    special = f"(?P<special>{'|'.join(forms)})|" if forms else ""
    return re.compile(special + "\ue000(?P<mark>\\d+)\ue001")


def _list(roles: Sequence[str]) -> str:
    return ", ".join(roles) or "no message"
