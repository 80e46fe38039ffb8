"""Names from outside: taken or refused at load in one line; what is made from them never collides."""

from __future__ import annotations

import re

import pytest

from tasks.settings import names, profiles
from tasks.settings.errors import NodeError
from tasks.settings.names import artifact_key, metric_name

GOOD = [
    "skypile",
    "网页",
    "问答 2024",
    "wiki-zh",
    "wiki_zh",
    "Ünï cöde",
    "a+b",
    "c++ (2)",
    "日本語",
    "v1.5",
    "A",
    "a",
    "x" * 100,
    "convert",
    "🤖 数据",
    "👩\u200d👩\u200d👧",
    "مرحبا",
    "می\u200cخواهم",
]
BAD = [
    "../../x",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a:b",
    "a#b",
    "a,b",
    "",
    " a",
    "a ",
    "a\nb",
    "a\0b",
    ".hidden",
    "-x",
    "x.",
]
BAD += [
    "\udcd2\udcb3",
    "e\u0301",
    "x" * 200,
    "网" * 60,
    "a*b",
    'a"b',
    "x.drops",
    "\u202eabc",
    "a\u200bb",
    "\ufeffa",
    "\u2066x\u2069",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_taken(name: str) -> None:
    assert names.complaint(name, "source") == "" == names.complaint(name, "variant")


@pytest.mark.parametrize("name", [*BAD, "assets", "manifest", "tokenizer", "raw"])
def test_bad_source_names_are_refused_in_one_line(name: str) -> None:
    line = names.complaint(name, "source")
    assert line.startswith("source ")
    assert line.isprintable()
    source = {"hub": "demo", "dataset": "demo/skypile", "reader": "skypile"}
    with pytest.raises(NodeError) as error:
        profiles.load("smoke", {"sources": {name: source}})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*BAD, "select"])
def test_bad_variant_names_are_refused(name: str) -> None:
    with pytest.raises(NodeError):
        profiles.load("smoke", {"sft": {"variants": {name: {"mixture": {"demo_qa_zh": 1.0}}}}})


def test_keys_are_prefect_s_and_never_shared() -> None:
    keys = [
        artifact_key(f"convert:{name}")
        for name in [
            *GOOD,
            "wiki zh",
            "wiki.zh",
            "wiki__zh",
            "v1_5",
            "网 页",
            "_a",
            "a_",
            "wiki_zh_",
            "🤖",
        ]
    ]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys), keys
    assert len(set(keys)) == len(keys)


def test_plain_names_keep_their_keys() -> None:
    assert artifact_key("convert:demo_exam") == "convert-demo-exam"
    assert artifact_key("pretrain") == "pretrain"


def test_metric_names_are_mlflow_s_and_never_shared() -> None:
    from mlflow.utils.validation import validate_param_and_metric_name

    told = [
        metric_name(f"val_loss_by_source/{name}")
        for name in [*GOOD, "a_b", "a%b", "apctb", "a！b", "a？b", "a@b", "a_at_b", "🤖", "🤖🤖"]
    ]
    assert all(validate_param_and_metric_name(name) for name in told)
    assert len(set(told)) == len(told)
    assert metric_name("val_loss_by_source/网页") == "val_loss_by_source/网页"
