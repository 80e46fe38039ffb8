"""Tokenizers of other models: their own chat template as pieces is what transformers makes of it, or it is refused."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from model.chat_format import STEEL, chat_format
from model.chat_template import CHAT_TEMPLATE, render_chat, reply_ids
from model.tokenizer import TextTokenizer
from tasks.settings.errors import NodeError
from tasks.tokenize.documents import Tokenizer
from tasks.tokenize.encode import Encoder
from tasks.tokenize.tokenizer import check_folder, take_folder
from tests.support import foreign_tokenizers as foreign
from tests.support.tiny import byte_tokenizer
from tests.support.tokenizing import record

ENDS = {
    "llama2": ("<s>", "</s>", "</s>"),
    "mistral": ("<s>", "</s>", "</s>"),
    "zephyr": ("<s>", "</s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>", "<end_of_turn>"),
}
TURNS = [
    {"role": "user", "content": " What is  12?\n"},
    {"role": "assistant", "content": "北京 is\n\n a city. "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "No."},
]


@pytest.fixture(scope="module", params=ENDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(kind, tmp_path_factory):
    return foreign.save(tmp_path_factory.mktemp(kind) / "theirs", kind)


@pytest.fixture(scope="module")
def taken(kind, theirs, tmp_path_factory):
    out = tmp_path_factory.mktemp(kind)
    notes = take_folder(theirs, out)
    assert any("its own chat format is used" in note for note in notes)
    assert check_folder(str(out))["warnings"] is not None
    return out


def test_its_tokens_are_found(kind, taken):
    chat = Encoder(taken).chat
    assert (chat.document_start, chat.document_end, chat.turn_end) == ENDS[kind]


def test_a_plain_text_is_what_transformers_makes_of_it(theirs, taken):
    """With the token at its beginning, as the model was trained."""
    loaded, encoder = AutoTokenizer.from_pretrained(theirs), Encoder(taken)
    for text in ("The capital of France", "北京 12\n\n x", " led by a space"):
        assert [*encoder.begin, *encoder.encode(text)] == loaded(text)["input_ids"]
        [document] = documents(encoder, [record(text)])
        assert document == loaded(text)["input_ids"]


def documents(encoder: Encoder, records: list) -> list[list[int]]:
    made = Tokenizer(encoder)(records)
    return [made.tokens[a:b].tolist() for a, b in zip(made.bounds, made.bounds[1:], strict=False)]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_dialogue_is_what_transformers_renders(theirs, taken, length):
    loaded, prompt = AutoTokenizer.from_pretrained(theirs), length % 2 == 1
    for encoder in (Encoder(taken), TextTokenizer.open(taken)):
        ids, _ = render_chat(encoder, TURNS[:length], generation_prompt=prompt)
        due = loaded.apply_chat_template(TURNS[:length], add_generation_prompt=prompt, return_dict=False)
        assert ids == list(due)


def test_targets_are_the_replies_and_go_on_from_the_prompt(taken):
    encoder = Encoder(taken)
    ids, mask = render_chat(encoder, TURNS)
    opened = TextTokenizer.open(taken)
    runs = np.flatnonzero(np.diff([0, *mask, 0])).reshape(-1, 2).tolist()
    said = [opened.decode(ids[a:b]) for a, b in runs]
    assert [text.removesuffix(opened.chat.turn_end).strip() for text in said] == [
        "北京 is\n\n a city.",
        "No.",
    ]
    for (begin, end), turns in zip(runs, (TURNS[:1], TURNS[:3]), strict=True):
        assert ids[:begin] == render_chat(encoder, turns, generation_prompt=True)[0]
        reply = TURNS[len(turns)]["content"]
        assert ids[begin:end] == reply_ids(encoder, turns, reply)
        assert (
            reply_ids(encoder, turns, reply, end=False)
            == ids[begin:end][: len(reply_ids(encoder, turns, reply, end=False))]
        )
    assert opened.stops[0] == opened.special_id(opened.chat.turn_end)


def test_in_bulk_as_one_by_one(taken):
    encoder = Encoder(taken)
    dialogue = {"id": "0" * 32, "kind": "dialogue", "source": "x", "language": "en", "messages": TURNS}
    mixed = [record("plain one"), dialogue, record("plain two"), dialogue]
    found = documents(encoder, mixed)
    assert found[1] == found[3] == render_chat(encoder, TURNS)[0]
    assert found[0] == [*encoder.begin, *encoder.encode("plain one")]


def test_a_content_makes_no_special_token(kind, taken):
    encoder, special = Encoder(taken), set(ENDS[kind])
    numbers = {encoder.special_id(token) for token in special}
    forged = "".join(sorted(special)) + "x"
    quiet, _ = render_chat(encoder, [{"role": "user", "content": "x"}])
    ids, _ = render_chat(encoder, [{"role": "user", "content": forged}])
    assert sum(i in numbers for i in ids) == sum(i in numbers for i in quiet)


@pytest.mark.parametrize(
    ("kind", "template", "words"),
    [
        ("llama3", "{{ strftime_now('%d') }}" + foreign.LLAMA3, "depends on the date"),
        ("llama3", foreign.LLAMA3.replace("| trim", "| upper"), "changes what is said|each content"),
        ("llama3", foreign.LLAMA3.replace("<|eot_id|>", "\n"), "no special token"),
        ("llama3", "{% for m in messages %}{{ m['content'] }}{% endfor %}", "no special token"),
        ("llama3", "{{ messages[0]['content'] }}<|eot_id|>", "each content"),
        ("llama3", "{% if %}", "cannot be read"),
        ("llama3", foreign.LLAMA3.replace("assistant<", "bot<"), "otherwise than behind the prompt"),
        ("llama2", "{{ raise_exception('never') }}", "refuses a dialogue of user, assistant: never"),
    ],
)
def test_a_template_whose_meaning_is_not_known_is_refused(tmp_path, kind, template, words):
    theirs = foreign.save(tmp_path / "theirs", kind, template)
    (tmp_path / "out").mkdir()
    with pytest.raises(NodeError, match=words) as error:
        take_folder(theirs, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_loses_characters_is_refused(tmp_path):
    theirs = foreign.save(tmp_path / "theirs", "words")
    (tmp_path / "out").mkdir()
    with pytest.raises(NodeError, match="the special token <unk> from text"):
        take_folder(theirs, tmp_path / "out")


def test_roles_that_a_template_refuses_are_named(tmp_path):
    theirs = foreign.save(tmp_path / "theirs", "gemma")
    (tmp_path / "out").mkdir()
    take_folder(theirs, tmp_path / "out")
    with pytest.raises(ValueError, match="dialogue of system, user: System role not supported"):
        render_chat(Encoder(tmp_path / "out"), [{"role": "system", "content": "x"}, TURNS[0]])


def test_a_continued_model_keeps_its_format_and_a_fresh_one_learns_steels(tmp_path):
    """A tokenizer with Steel's three tokens and another system message."""
    theirs, kept, fresh = (tmp_path / name for name in ("theirs", "kept", "fresh"))
    for folder in (kept, fresh):
        folder.mkdir()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("helpful assistant", "small model")
    tokenizer.save_pretrained(theirs)
    take_folder(theirs, kept, keep_format=True)
    take_folder(theirs, fresh)
    check_folder(str(kept))
    assert Encoder(fresh).chat is STEEL
    ids = {folder: render_chat(Encoder(folder), TURNS[2:3])[0] for folder in (kept, fresh)}
    opened = TextTokenizer.open(kept)
    assert "small model" in opened.decode(ids[kept])
    assert "helpful assistant" in opened.decode(ids[fresh])
    assert Encoder(kept).chat.turn_end == "<|im_end|>"


def test_no_template_and_no_tokens_of_steels_is_no_chat():
    added = [{"content": "</s>"}]
    with pytest.raises(ValueError, match="no chat template"):
        next(chat_format({"eos_token": "</s>"}, None, added).pieces(TURNS))
