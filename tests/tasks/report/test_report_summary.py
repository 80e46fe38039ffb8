"""summary.json: the names that others rely on, and numbers that are the page's."""

import json
import re

import pytest
from selectolax.lexbor import LexborHTMLParser

from tasks.figures import style
from tasks.figures.latest import publish_latest, publish_models
from tasks.report import page, tables, view
from tests.support.fake_run import FakeRun


def test_keys_and_shapes(run, seen):
    numbers = seen.summary()
    assert set(numbers) == {"benchmarks", "sft_ablation", "dpo", "rl", "funnel", "losses"}
    for row in numbers["benchmarks"]:
        assert {"model", "benchmark", "protocol", "accuracy", "n", "ci95"} <= set(row)
        assert ("scoring" in row) == (row["protocol"] == "options-only")
        low, high = row["ci95"]
        assert low <= row["accuracy"] <= high
    assert [m for m in dict.fromkeys(r["model"] for r in numbers["benchmarks"])] == [
        "untrained",
        "base",
        "sft:exp1",
        "sft:exp4",
        "dpo",
        "rl",
    ]
    for row in numbers["sft_ablation"]:
        assert set(row) == {
            "variant",
            "benchmark",
            "protocol",
            "accuracy",
            "n",
            "ci95",
            "p_vs_base",
            "manifest",
        }
        assert row["protocol"] != "options-only"
        assert 0 <= row["p_vs_base"] <= 1
    assert len({row["manifest"] for row in numbers["sft_ablation"]}) == 2
    effect = {"accuracy_before", "accuracy_after", "n", "p_value"}
    assert set(numbers["dpo"]) == {*effect, "reward_accuracy"}
    assert {name: numbers["rl"][name] for name in sorted(effect)} == {
        "accuracy_before": 1000 / 1332, "accuracy_after": 1170 / 1332, "n": 1332, "p_value": 1e-30,
    }  # fmt: skip
    assert numbers["rl"]["start"] == "sft:exp4"
    for row in numbers["funnel"]:
        assert set(row) == {"source", "records_in", "quarantined", "dropped", "kept"}
        assert row["records_in"] == row["quarantined"] + sum(row["dropped"].values()) + row["kept"]
    assert set(numbers["losses"]) == {"pretrain", "sft", "dpo"}
    for points in numbers["losses"].values():
        assert points == sorted(points)
        assert all(len(point) == 2 for point in points)
    json.dumps(numbers, allow_nan=False)


def test_p_is_the_paired_test_on_the_same_questions(run, seen):
    def answers(unit):
        lines = (run.nodes[f"evaluate:{unit}"].path / "answers.jsonl").read_text().splitlines()
        chosen = (json.loads(line) for line in lines)
        wanted = ("demo-known-words", "cloze")
        return {a["id"]: a["correct"] for a in chosen if (a["benchmark"], a["protocol"]) == wanted}

    base, tuned = answers("base"), answers("sft-exp4")
    gained = sum(tuned[i] and not base[i] for i in base)
    lost = sum(base[i] and not tuned[i] for i in base)
    from scipy.stats import binomtest

    row = next(
        r
        for r in seen.ablation
        if (r["variant"], r["benchmark"], r["protocol"]) == ("exp4", "demo-known-words", "cloze")
    )
    assert row["p_vs_base"] == pytest.approx(binomtest(min(gained, lost), gained + lost).pvalue)


def test_the_page_shows_the_numbers_of_the_summary(seen):
    tree = LexborHTMLParser(page.render(seen, page.draw(seen)))
    numbers = seen.summary()
    cells = {c.attributes["data-key"]: c for c in tree.css("[data-table=benchmarks] [data-key]")}
    scores = [row for row in numbers["benchmarks"] if not tables.is_control(row)]
    assert len(cells) == len(scores)
    for row in scores:
        cell = cells["|".join((row["model"], row["benchmark"], row["protocol"]))]
        assert float(cell.attributes["data-value"]) == row["accuracy"]
        assert cell.text().startswith(style.percent(row["accuracy"]) + style.interval(row["ci95"]))
    controls = {
        (table, c.attributes["data-key"]): float(c.attributes["data-value"])
        for table in ("removed", "held-out")
        for c in tree.css(f"[data-table={table}] [data-key]")
    }
    assert len(controls) == len(numbers["benchmarks"]) - len(scores)
    for row in numbers["benchmarks"]:
        if tables.is_control(row):
            table = "removed" if row["protocol"] == "options-only" else "held-out"
            key = "|".join((row["model"], row["benchmark"], row.get("scoring") or row["protocol"]))
            assert controls[table, key] == row["accuracy"]
    ablation = {c.attributes["data-key"]: c.text() for c in tree.css("[data-table=sft_ablation] [data-key]")}
    for row in numbers["sft_ablation"]:
        text = ablation["|".join((row["variant"], row["benchmark"], row["protocol"]))]
        assert text.endswith(f"p {style.p_value(row['p_vs_base'])}")
    funnel = {
        r.attributes["data-source"]: r
        for r in tree.css("[data-table=funnel] tr[data-source]")
        if r.css("[data-value]")
    }
    for row in numbers["funnel"]:
        values = [int(c.attributes["data-value"]) for c in funnel[row["source"]].css("[data-value]")]
        assert values == [row["records_in"], row["quarantined"], row["kept"]]
    dpo = [float(c.attributes["data-value"]) for c in tree.css("[data-table=dpo] [data-value]")]
    assert dpo == [numbers["dpo"][k] for k in ("accuracy_before", "accuracy_after", "p_value")]


def test_the_page_needs_nothing_outside_itself(seen):
    html = page.render(seen, page.draw(seen))
    tree = LexborHTMLParser(html)
    for node in tree.css("[src], [href]"):
        for name in ("src", "href"):
            target = node.attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), target
    assert not tree.css("script, iframe, object, embed")
    assert "@import" not in html
    assert not re.search(r"url\((?!#|['\"]?data:)", html)
    for svg in page.draw(seen).values():
        assert not re.search(r"(href|src)=\"(?!#)", svg)
        assert "<!DOCTYPE" not in svg
    anchors = {node.attributes["href"][1:] for node in tree.css("nav a")}
    assert anchors <= {node.attributes["id"] for node in tree.css("section[id]")}


def test_the_page_escapes_what_a_model_says_and_shows_chinese(seen):
    html = page.render(seen, {})
    assert "我是 &lt;Steel&gt;。" in html
    assert "80 : 20 与选择题" in html


def test_same_run_same_bytes(seen):
    assert page.render(seen, page.draw(seen)) == page.render(seen, page.draw(seen))


@pytest.mark.parametrize("until", ["download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo"])
def test_a_shorter_run_has_a_shorter_report(tmp_path, until):
    run = FakeRun(tmp_path).build(until)
    short = view.assemble(run.config, run.nodes)
    html = page.render(short, page.draw(short))
    numbers = short.summary()
    assert numbers["benchmarks"] == numbers["sft_ablation"] == []
    assert (numbers["dpo"] is None) == (until != "dpo")
    assert "rl" not in numbers
    assert bool(numbers["losses"]["pretrain"]) == (until in ("pretrain", "sft", "dpo"))
    assert "Benchmarks</h2>" not in html
    assert page.headline(short)


def test_latest_adds_the_stages_and_links_the_page(tmp_path, seen):
    artifact = tmp_path / "report" / "report-0123"
    artifact.mkdir(parents=True)
    (artifact / "report.html").write_text("<p>first</p>")
    (artifact / "summary.json").write_text(json.dumps(seen.summary()))
    stages = [{"name": "download", "state": "Cached", "seconds": 0.1}]
    folder = tmp_path / "latest" / "demo"
    publish_latest(folder, artifact, stages)
    numbers = json.loads((folder / "summary.json").read_text())
    assert numbers["stages"] == stages
    assert numbers["funnel"] == seen.summary()["funnel"]
    assert (folder / "report.html").read_text() == "<p>first</p>"
    assert not (folder / "report.html").readlink().is_absolute()
    newer = tmp_path / "report" / "report-4567"
    newer.mkdir()
    (newer / "report.html").write_text("<p>second</p>")
    (newer / "summary.json").write_text("{}")
    publish_latest(folder, newer, [])
    assert (folder / "report.html").read_text() == "<p>second</p>"
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "summary.json"]


def test_latest_copies_where_links_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("page")
    (tmp_path / "a" / "summary.json").write_text("{}")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    folder = tmp_path / "latest" / "demo"
    publish_latest(folder, tmp_path / "a", [])
    assert not (folder / "report.html").is_symlink()
    assert (folder / "report.html").read_text() == "page"


def test_models_and_exports_are_linked_and_told(tmp_path, seen):
    run = FakeRun(tmp_path).build()
    certificate = {
        "form": "gguf",
        "files": {"a": {"max_logit_difference": 0.1}, "b": {"max_logit_difference": 0.3}},
    }
    run.add("export:gguf", {"export/parity.json": certificate})
    run.add("report", {"report.html": "", "summary.json": seen.summary()})
    folder = tmp_path / "latest" / "demo"
    publish_models(folder, run.nodes)
    assert {p.name for p in (folder / "models").iterdir()} == {"base", "sft", "dpo", "rl"}
    assert (folder / "models/dpo").resolve() == (run.nodes["dpo:train"].path / "export").resolve()
    assert not (folder / "models/base").readlink().is_absolute()
    publish_latest(folder, run.nodes["report"].path, [])
    told = json.loads((folder / "summary.json").read_text())["exports"]
    assert told == [{"form": "gguf", "path": "exports/gguf", "max_logit_difference": 0.3}]
    assert (folder / told[0]["path"] / "parity.json").is_file()
    # a run that ends early leaves what it did not reach; a whole one without the stage does not
    publish_models(folder, {"pretrain": run.nodes["pretrain"]})
    assert (folder / "models/rl").is_symlink()
    publish_models(folder, {name: run.nodes[name] for name in ("pretrain", "report")})
    assert [p.name for p in (folder / "models").iterdir()] == ["base"]
    assert not list((folder / "exports").iterdir())


def test_of_a_folder_there_is_a_note_where_links_cannot_be_made(tmp_path, monkeypatch):
    run = FakeRun(tmp_path).build("pretrain")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    publish_models(tmp_path / "latest", run.nodes)
    told = (tmp_path / "latest/models/base").read_text().strip()
    assert told == str(run.nodes["pretrain"].path / "export")
