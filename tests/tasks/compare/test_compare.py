"""Models by path side by side: real nodes on tiny models, the document's hashes, and asking again."""

import csv
from dataclasses import replace

import orjson
import pytest

from tasks import dag
from tasks.compare import answer, contamination, node, table, verify
from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.settings import profiles
from tasks.settings.config import Runtime
from tasks.settings.errors import NodeError
from tests.support.architectures import random_model
from tests.support.inline import inline_pool  # noqa: F401  (a fixture)
from tests.support.tiny import artifact, byte_tokenizer, context, steel

ASKED = {"ceval": ("dev", "val")}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder with a C-Eval of two subjects and four questions each."""
    root = tmp_path_factory.mktemp("benchmarks")
    for split, count in (("dev", 5), ("val", 4)):
        folder = root / "ceval" / split
        folder.mkdir(parents=True)
        for subject in ("logic", "accountant"):
            with (folder / f"{subject}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
                out = csv.writer(file)
                out.writerow(["id", "question", "A", "B", "C", "D", "answer", "explanation"])
                for k in range(count):
                    text = f"在{subject}的第{k}号仓库里，苹果比梨多{k + 3}箱，一共有多少箱水果？"
                    if split == "dev":
                        text = f"某列火车从{subject}站开出，每小时行驶{k + 60}千米，几小时后到达终点？"
                    out.writerow([k, text, k, k + 7, k + 31, k + 200, "ABCD"[k % 4], ""])
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    steel(hidden_size=16).save_pretrained(root / "steel" / "export")
    random_model("gemma2", vocab_size=320, max_position_embeddings=2048, sliding_window=512).save_pretrained(
        root / "other"
    )
    byte_tokenizer().save_pretrained(root / "steel" / "export")
    byte_tokenizer().save_pretrained(root / "other")
    return {"steel": root / "steel", "other": root / "other"}


def config_of(models, **compare):
    settings = {
        "benchmarks": ["ceval"],
        "protocols": ["cloze", "paper-first-token"],
        "shuffles": 1,
        **compare,
    }
    runtime = {"models": {name: str(path) for name, path in models.items()}, "device": "cpu"}
    return profiles.load("compare", {"compare": settings, "runtime": runtime})


def run(config, benchmarks, work, texts=None):
    """All nodes of the stage `compare`, one after the other; the folder of the table."""
    graph = dag.compare(config)
    made = {}
    for name in ("ceval", *(texts or {})):
        out = work / "convert" / name
        out.mkdir(parents=True)
        source = config.sources[name]
        raw = texts[name] if texts and name in texts else benchmarks / source.dataset
        files = sorted(
            str(p.relative_to(raw)) for pattern in source.files for p in raw.glob(pattern) if p.is_file()
        )
        settings = Settings(source=Reading.of(source), **config.convert.model_dump())
        convert_source(raw, out, name, settings, files)
        made[f"convert:{name}"] = sealed(f"convert:{name}", out)
    for each in graph.values():
        if each.stage != node.STAGE:
            continue
        out = work / "compare" / each.unit
        out.mkdir(parents=True)
        inputs = {role: made[name] for role, name in each.inputs.items()}
        ctx = context(
            out, each.config, inputs, name=each.name, runtime=Runtime(**config.runtime.model_dump())
        )
        outcome = each.body(ctx)
        made[each.name] = sealed(each.name, out, outcome.metrics)
    return made[node.TABLE].path


def sealed(name, out, metrics=None):
    from tasks.stage.store import list_files

    one = artifact(name, out)
    return replace(one, manifest={"files": list(list_files(out)), "metrics": metrics or {}, "extra": {}})


@pytest.mark.usefixtures("inline_pool")
def test_two_models_stand_side_by_side_and_can_be_asked_again(tmp_path, benchmarks, models):
    folder = run(config_of(models), benchmarks, tmp_path)
    told = orjson.loads((folder / table.NUMBERS).read_bytes())
    assert list(told["models"]) == ["steel", "other"]
    kinds = {(row["protocol"], row.get("scoring")) for row in told["models"]["other"]["rows"]}
    assert kinds == {
        ("cloze", None),
        ("options-only", "cloze"),
        ("paper-first-token", None),
        ("options-only", "paper-first-token"),
        ("options-shuffled", "paper-first-token"),
    }
    assert [(p["a"], p["b"], p["protocol"], p["n"]) for p in told["pairs"]] == [
        ("steel", "other", "cloze", 8),
        ("steel", "other", "paper-first-token", 8),
    ]
    page = (folder / table.PAGE).read_text("utf-8")
    assert told["sha256"] in page
    assert "McNemar" in page
    text = (folder / table.TEXT).read_text("utf-8")
    assert "tokens asked" in text
    paths = {name: str(path) for name, path in models.items()}
    good = verify.verify(folder / table.NUMBERS, benchmarks, paths, 15, seed=1)
    assert good.agrees, good.lines
    assert "other: agrees of 15 answers asked again" in good.lines

    told["models"]["other"]["answers"][3]["answer"] ^= 1
    (tmp_path / "forged.json").write_bytes(orjson.dumps(told))
    forged = verify.verify(tmp_path / "forged.json", benchmarks, {}, 5)
    assert not forged.agrees
    assert "sha256 of the whole: DIFFERS" in forged.lines
    swapped = {"steel": paths["other"], "other": paths["steel"]}
    assert not verify.verify(folder / table.NUMBERS, benchmarks, swapped, 5).agrees


@pytest.mark.usefixtures("inline_pool")
def test_a_forged_table_with_right_hashes_is_found_by_asking(tmp_path, benchmarks, models):
    from tasks.compare import document

    only = {"steel": models["steel"]}
    folder = run(config_of(only), benchmarks, tmp_path)
    told = orjson.loads((folder / table.NUMBERS).read_bytes())
    model = told["models"]["steel"]
    for line in model["answers"]:
        line["scores"] = [score + 0.5 for score in line["scores"]]
        protocol = line.get("scoring") or line["protocol"]
        line["sha256"] = document.answer_hash(model["files"], model["recipe"]["protocols"][protocol], line)
    told["sha256"] = document.whole_hash(told)
    (tmp_path / "forged.json").write_bytes(orjson.dumps(told))
    verdict = verify.verify(tmp_path / "forged.json", benchmarks, {"steel": str(models["steel"])}, 6, seed=0)
    assert not verdict.agrees
    assert "steel: DIFFERS in 6 of 6 answers asked again" in verdict.lines


@pytest.mark.usefixtures("inline_pool")
def test_training_text_that_holds_questions_splits_the_scores(tmp_path, benchmarks, models):
    texts = tmp_path / "texts"
    texts.mkdir()
    leaked = [
        line["question"]
        for line in csv.DictReader((benchmarks / "ceval/val/logic_val.csv").open(encoding="utf-8"))
    ]
    (texts / "page.txt").write_text("这是一段普通的文字。" * 30 + "\n".join(leaked), "utf-8")
    (texts / "clean.txt").write_text("另一段没有题目的文字，讲的是春天的山和水。" * 30, "utf-8")
    config = config_of({"steel": models["steel"]}, contamination=["text"])
    source = {"dataset": "x", "reader": "text", "use": "pretrain", "files": ["*.txt"]}
    config = profiles.load(
        "compare",
        {
            "sources": {"text": source},
            "compare": config.compare.model_dump(),
            "runtime": {"models": {"steel": str(models["steel"])}, "device": "cpu"},
        },
    )
    folder = run(config, benchmarks, tmp_path, {"text": texts})
    found = orjson.loads((folder.parent / "texts" / contamination.FILE).read_bytes())
    assert len(found["questions"]["ceval"]) == 4
    assert found["searched"]["text"]["records"] == 2
    told = orjson.loads((folder / table.NUMBERS).read_bytes())
    for row in told["models"]["steel"]["rows"]:
        if row["protocol"] != "options-shuffled":
            assert (row["held"]["n"], row["not_held"]["n"]) == (4, 4)
    assert "in the training text" in (folder / table.TEXT).read_text("utf-8")


def test_a_path_without_a_model_is_one_line(tmp_path):
    with pytest.raises(NodeError, match="neither a folder with a model nor a .gguf file"):
        answer.identity(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NodeError, match="pickled weights are not read"):
        answer.identity(tmp_path)


def test_wrong_names_are_refused_before_a_run(models):
    for wrong in ({"benchmarks": ["nothing"]}, {"contamination": ["ceval"]}, {"chat": ["nobody"]}):
        with pytest.raises(NodeError, match="names"):
            node.nodes(config_of(models, **wrong))
    with pytest.raises(NodeError, match="Steel's own"):
        node.nodes(config_of({"table": models["steel"]}))
