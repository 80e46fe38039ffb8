"""The tokenizer folder: trained deterministically, or taken, and what transformers makes of it."""

import json
import shutil
from pathlib import Path

import pytest

from model.chat_template import CHAT_TEMPLATE, MARKED_CHAT_TEMPLATE
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import END_OF_TEXT, IM_END, SPECIALS, render_chat
from tasks.tokenize.encode import Encoder
from tasks.tokenize.tokenizer import check_folder, folder_digests, take_folder, train
from tests.support.tokenizing import SETTINGS, record, write_lines


def vocabulary(folder: Path) -> dict[str, int]:
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]


def test_training_twice_gives_the_same_bytes(cleaned, tokenizer_folder, tmp_path):
    train(cleaned, str(tmp_path), SETTINGS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()


def test_specials_are_the_last_three_ids_and_all_bytes_are_there(tokenizer_folder, encoder):
    size = encoder.vocab_size
    assert [encoder.special_id(token) for token in SPECIALS] == [size - 3, size - 2, size - 1]
    assert 300 < size <= SETTINGS.vocab_size
    assert sum(len(token) == 1 for token in vocabulary(tokenizer_folder)) == 256
    every_byte = "".join(map(chr, range(0x180))) + "\U0001f600"
    assert encoder.encode(every_byte)


def test_no_token_spans_two_chinese_characters_unless_asked(cleaned, tokenizer_folder, tmp_path):
    train(cleaned, str(tmp_path), SETTINGS.model_copy(update={"merge_han": True, "max_token_bytes": 12}))
    text = "北京是中国的首都。"
    assert len(Encoder(tokenizer_folder).encode(text)) == len(text)
    merged = Encoder(tmp_path)
    assert len(merged.encode(text)) < len(text) - 2
    assert max(map(len, vocabulary(tmp_path))) <= 12


def test_vocabulary_holds_english_words_and_the_chat_words(encoder):
    for word in (" capital", "assistant", "user"):
        assert len(encoder.encode(word)) <= 2, word


def test_dropped_records_are_not_learnt_from(tmp_path):
    rows = [record(f"plain text {i}") for i in range(20)] + [record(f"zebra zebra {i}") for i in range(20)]
    records = write_lines(tmp_path / "records.jsonl", rows)
    drops = write_lines(tmp_path / "drops.jsonl", [{"id": r["id"], "step": "dedup"} for r in rows[20:]])
    counts = train({"wiki": (str(records), str(drops))}, str(tmp_path), SETTINGS)
    assert counts == {"records": 20, "characters": sum(len(r["text"]) for r in rows[:20])}
    assert not any("ebr" in token for token in vocabulary(tmp_path))
    nothing = write_lines(tmp_path / "none.jsonl", [])
    with pytest.raises(NodeError, match="no cleaned records"):
        train({"wiki": (str(nothing), str(nothing))}, str(tmp_path), SETTINGS)


def test_transformers_loads_it_and_agrees(tokenizer_folder):
    facts = check_folder(str(tokenizer_folder))
    assert facts["vocab_size"] == Encoder(tokenizer_folder).vocab_size
    assert len(facts["digest"]) == 64


# ------------------------------------------------------------------------ a folder brought along
def test_a_folder_is_taken_as_it_is(tokenizer_folder, tmp_path):
    assert take_folder(tokenizer_folder, tmp_path) == []
    for file in tokenizer_folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert set(folder_digests(tokenizer_folder)) == {
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_tokenizer_json_is_built_from_vocabulary_and_merges(tokenizer_folder, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    model = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))["model"]
    (theirs / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (theirs / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    (theirs / "LICENSE.txt").write_text("a licence")
    notes = take_folder(theirs, ours)
    assert [note.split()[0] for note in notes] == ["tokenizer.json", "tokenizer_config.json"]
    assert (ours / "LICENSE.txt").is_file()
    text = "The capital of 北京 <|im_end|>"
    assert Encoder(ours).encode(text) == Encoder(tokenizer_folder).encode(text)
    check_folder(str(ours))


@pytest.mark.parametrize("theirs", [None, "{{ messages[0]['content'] }}"])
def test_a_missing_or_other_chat_template_is_replaced(tokenizer_folder, tmp_path, theirs):
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "theirs"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    if theirs:
        (folder / "chat_template.jinja").write_text(theirs)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (note,) = take_folder(folder, out)
    assert ("another one" if theirs else "missing") in note
    assert json.loads((out / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == CHAT_TEMPLATE
    check_folder(str(out))


BREAKS_OUT = "{{ cycler.__init__.__globals__.os.system('touch %s') }}"


@pytest.mark.parametrize(
    "theirs",
    [
        BREAKS_OUT,
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
        "{{ tools.first.second }}",
        "{{ raise_exception('never') }}",
        "{{ messages + 1 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        [{"name": "default", "template": CHAT_TEMPLATE}],
    ],
)
def test_a_template_that_fails_is_another_one_and_runs_nothing(tokenizer_folder, tmp_path, theirs):
    if theirs is BREAKS_OUT:
        theirs = theirs % (tmp_path / "broken-out")
    out = tmp_path / "out"
    out.mkdir()
    (note,) = take_folder(brought(tokenizer_folder, tmp_path, chat_template=theirs), out)
    assert note == "its chat template is another one: Steel's is used"
    assert not (tmp_path / "broken-out").exists()
    check_folder(str(out))


@pytest.mark.parametrize("eos", ["<|endoftext|>", {"content": "<|endoftext|>", "special": True}, None])
@pytest.mark.parametrize("pad", ["<|endoftext|>", None])
def test_a_base_models_end_token_is_set(tokenizer_folder, tmp_path, eos, pad):
    out = tmp_path / "out"
    out.mkdir()
    (note,) = take_folder(brought(tokenizer_folder, tmp_path, eos_token=eos, pad_token=pad), out)
    assert note.startswith(f"its eos_token is {'<|endoftext|>' if eos else None}")
    assert note.endswith("eos_token <|im_end|> and pad_token <|endoftext|> are set")
    check_folder(str(out))


def brought(tokenizer_folder, tmp_path, **changed) -> Path:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "theirs"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changed}), "utf-8")
    return folder


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_an_export_renders_dialogues_as_training_did(tokenizer_folder, encoder, tmp_path, system):
    """The engine's export of a tokenizer without a template, beside the pieces that the data were made of."""
    from transformers import AutoTokenizer

    from model.training.export import copy_tokenizer

    source, exported = Path(shutil.copytree(tokenizer_folder, tmp_path / "source")), tmp_path / "exported"
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    (source / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    exported.mkdir()
    copy_tokenizer(source, exported, 1024)
    loaded = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    asked = [*system, {"role": "user", "content": "你好, 1+1?"}]
    turns = [*asked, {"role": "assistant", "content": "2."}, {"role": "user", "content": "Why?"}]
    first = "" if system else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text = first + "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns)
    assert loaded.apply_chat_template(turns, tokenize=False) == text
    assert "endgeneration" not in loaded.chat_template
    marks = (exported / "training_chat_template.jinja").read_text("utf-8")
    marked = loaded.apply_chat_template(
        turns, chat_template=marks, return_dict=True, return_assistant_tokens_mask=True
    )
    assert (marked["input_ids"], marked["assistant_masks"]) == render_chat(encoder, turns)
    prompted = loaded.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert prompted == render_chat(encoder, asked, generation_prompt=True)[0]


def test_a_tokenizers_own_template_is_exported_with_it(tokenizer_folder, tmp_path):
    from transformers import AutoTokenizer

    from model.training.export import copy_tokenizer

    source, exported = tmp_path / "source", tmp_path / "exported"
    source.mkdir()
    exported.mkdir()
    shutil.copyfile(tokenizer_folder / "tokenizer.json", source / "tokenizer.json")
    (source / "chat_template.jinja").write_text("theirs")
    copy_tokenizer(source, exported, 777)
    assert (exported / "chat_template.jinja").read_text() == "theirs"
    assert not (exported / "training_chat_template.jinja").exists()
    settings = json.loads((exported / "tokenizer_config.json").read_text("utf-8"))
    assert (settings["chat_template"], settings["model_max_length"]) == ("theirs", 777)
    loaded = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == (IM_END, END_OF_TEXT, 777)


@pytest.mark.parametrize(
    "theirs", [MARKED_CHAT_TEMPLATE, CHAT_TEMPLATE.replace("messages[0]['role']", "messages[0].role")]
)
def test_a_template_that_says_the_same_in_other_words_is_kept(tokenizer_folder, tmp_path, theirs):
    folder = brought(tokenizer_folder, tmp_path, chat_template=theirs)
    out = tmp_path / "out"
    out.mkdir()
    assert take_folder(folder, out) == []
    assert (out / "tokenizer_config.json").read_bytes() == (folder / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "OwnTokenizer"},
        {"added_tokens_decoder": [1]},
    ],
)
def test_a_tokenizer_that_transformers_cannot_load_is_one_line(tokenizer_folder, tmp_path, changed):
    folder, out = brought(tokenizer_folder, tmp_path, **changed), tmp_path / "taken"
    (folder / "own.py").write_text("raise SystemExit('this code is not run')\n", "utf-8")
    out.mkdir()
    take_folder(folder, out)
    with pytest.raises(NodeError, match="transformers cannot load the tokenizer") as error:
        check_folder(str(out))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "null", "7", "{"])
def test_settings_that_are_no_object_are_one_line(tokenizer_folder, tmp_path, text):
    folder, out = brought(tokenizer_folder, tmp_path), tmp_path / "taken"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
    out.mkdir()
    with pytest.raises(NodeError, match=r"tokenizer_config\.json is no JSON"):
        take_folder(folder, out)


def test_what_is_missing_is_named(tokenizer_folder, tmp_path):
    with pytest.raises(NodeError, match="give TOKENIZER="):
        folder_digests(None)
    with pytest.raises(NodeError, match=r"TOKENIZER=.*holds no tokenizer"):
        folder_digests(tmp_path / "nowhere")
    tokenizer = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(NodeError, match=r"lacks the special tokens <\|im_end\|>"):
        take_folder(tmp_path, (tmp_path / "out").mkdir() or tmp_path / "out")


# ------------------------------------------------------------------------- state, and what is exported
def saved_by_transformers(folder: Path, out: Path, **call) -> None:
    """What transformers writes behind a call: its truncation and padding come along."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded(["a b c d e f g h", "a"], **call)
    loaded.save_pretrained(out)


CALLS = {
    "truncation": {"truncation": True, "max_length": 4},
    "padding": {"padding": True},
    "both": {"truncation": True, "max_length": 3, "padding": "max_length"},
}


@pytest.mark.parametrize("call", CALLS)
def test_the_truncation_and_padding_of_transformers_last_call_are_switched_off(
    tokenizer_folder, encoder, tmp_path, call
):
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    out.mkdir()
    saved_by_transformers(tokenizer_folder, theirs, **CALLS[call])
    notes = take_folder(theirs, out)
    for name in ("truncation", "padding"):
        assert any(note.startswith(f"its {name} is switched off") for note in notes) == (name in CALLS[call])
    check_folder(str(out))
    text = "北京是中国的首都。 The capital of France is Paris. " * 50
    assert Encoder(out).encode(text) == encoder.encode(text)
    assert Encoder(out).changes == []


def special(token: str) -> dict:
    return {"SpecialToken": {"id": token, "type_id": 0}}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def template(single: list, pair: list, token: str = "<|endoftext|>", number: int = 0) -> dict:
    known = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


PROCESSORS = {
    "begin": (template([special("<|endoftext|>"), TEXT], [TEXT]), None),
    "end": (template([TEXT, special("<|endoftext|>")], [TEXT]), None),
    "between two": (template([TEXT], [TEXT, special("<|endoftext|>"), TEXT]), None),
    "in a sequence": (
        {"type": "Sequence", "processors": [LEVEL, template([special("<|endoftext|>"), TEXT], [TEXT])]},
        {"type": "Sequence", "processors": [LEVEL]},
    ),
    "BERT": ({"type": "BertProcessing", "sep": ["<|im_end|>", 1], "cls": ["<|im_start|>", 2]}, None),
    "bytes": (LEVEL, LEVEL),
    "plain": (template([TEXT], [TEXT]), template([TEXT], [TEXT])),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_post_processor_that_adds_tokens_is_switched_off(tokenizer_folder, encoder, tmp_path, kind):
    theirs, out = Path(shutil.copytree(tokenizer_folder, tmp_path / "theirs")), tmp_path / "out"
    out.mkdir()
    tree = json.loads((theirs / "tokenizer.json").read_text("utf-8"))
    tree["post_processor"], due = PROCESSORS[kind]
    (theirs / "tokenizer.json").write_text(json.dumps(tree), "utf-8")
    notes = take_folder(theirs, out)
    assert notes == (
        []
        if due == tree["post_processor"]
        else ["its post-processor is switched off (it adds tokens to every text)"]
    )
    assert json.loads((out / "tokenizer.json").read_text("utf-8"))["post_processor"] == due
    check_folder(str(out))
    assert Encoder(out).encode("hello") == encoder.encode("hello")


@pytest.mark.parametrize(
    "setting",
    [
        {"add_bos_token": True},
        {"add_eos_token": True},
        {"split_special_tokens": True},
        {"max_length": 512},
        {"stride": 3},
        {"truncation_strategy": "longest_first"},
        {"pad_to_multiple_of": 8},
    ],
)
def test_settings_that_change_a_call_are_switched_off(tokenizer_folder, tmp_path, setting):
    out = tmp_path / "out"
    out.mkdir()
    (note,) = take_folder(brought(tokenizer_folder, tmp_path, **setting), out)
    (name,) = setting
    assert note.startswith(f"its {name} is ")
    assert not json.loads((out / "tokenizer_config.json").read_text("utf-8")).get(name)
    check_folder(str(out))


def test_dropout_is_switched_off_and_a_folder_with_state_is_no_result(tokenizer_folder, encoder, tmp_path):
    theirs, out = Path(shutil.copytree(tokenizer_folder, tmp_path / "theirs")), tmp_path / "out"
    out.mkdir()
    tree = json.loads((theirs / "tokenizer.json").read_text("utf-8"))
    tree["model"]["dropout"] = 0.3
    (theirs / "tokenizer.json").write_text(json.dumps(tree), "utf-8")
    with pytest.raises(NodeError, match="carries state: its BPE dropout is switched off"):
        check_folder(str(theirs))
    (note,) = take_folder(theirs, out)
    assert "dropout" in note
    assert (out / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    assert Encoder(out).encode("The capital of France") == encoder.encode("The capital of France")


def test_the_node_says_what_was_changed(tokenizer_folder, tmp_path, caplog):
    from tasks.settings.config import Folders, Runtime
    from tasks.tokenize.tokenizer import folder_body
    from tests.support.tiny import context

    saved_by_transformers(tokenizer_folder, tmp_path / "theirs", **CALLS["both"])
    (tmp_path / "out").mkdir()
    runtime = Runtime(device="cpu", folders=Folders(tokenizer=tmp_path / "theirs"))
    outcome = folder_body(context(tmp_path / "out", {}, runtime=runtime))
    changes = outcome.extra["changes"]
    assert outcome.counts["changes"] == len(changes) >= 2
    assert f"{len(changes)} changes to the folder" in outcome.headline
    for change in changes:
        assert change in outcome.summary
        assert change in caplog.text


@pytest.mark.parametrize("call", CALLS)
def test_an_export_carries_no_state(tokenizer_folder, encoder, tmp_path, caplog, call):
    """The engine by itself, with a folder that no node has taken."""
    from transformers import AutoTokenizer

    from model.training.export import copy_tokenizer

    saved_by_transformers(tokenizer_folder, tmp_path / "theirs", **CALLS[call])
    (tmp_path / "export").mkdir()
    copy_tokenizer(tmp_path / "theirs", tmp_path / "export", 99)
    assert "switched off" in caplog.text
    text = "The capital of France is Paris. " * 30
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export", local_files_only=True)
    assert loaded.backend_tokenizer.encode(text).ids == encoder.encode(text) == loaded(text)["input_ids"]
    assert Encoder(tmp_path / "export").changes == []


@pytest.mark.parametrize("where", ["settings", "file", "named", "nowhere"])
@pytest.mark.parametrize(
    "theirs", [MARKED_CHAT_TEMPLATE, MARKED_CHAT_TEMPLATE.replace("{% generation %}", "{%- generation -%}")]
)
def test_an_exported_template_is_plain_jinja(tokenizer_folder, tmp_path, where, theirs):
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from model.training.export import copy_tokenizer

    fields = {"settings": theirs, "named": [{"name": "default", "template": theirs}]}
    source = brought(tokenizer_folder, tmp_path, chat_template=fields.get(where))
    if where == "file":
        (source / "chat_template.jinja").write_text(theirs, "utf-8")
    out = tmp_path / "out"
    out.mkdir()
    copy_tokenizer(source, out, 99)
    exported = (out / "chat_template.jinja").read_text("utf-8")
    assert json.loads((out / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == exported
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    due = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\n好<|im_end|>\n<|im_start|>assistant\n"
    )
    for environment in (
        jinja2.Environment(autoescape=False),
        ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True),
    ):
        said = environment.from_string(exported).render(messages=turns, add_generation_prompt=True)
        assert said == due
        with pytest.raises(jinja2.TemplateSyntaxError):
            environment.from_string((out / "training_chat_template.jinja").read_text("utf-8"))
