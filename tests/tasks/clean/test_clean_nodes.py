"""The nodes of the room: what they declare, and their bodies one after the other on a small run."""

import json
import logging
from collections import Counter

import pytest

from tasks.clean import assets
from tasks.clean.node import nodes
from tasks.settings import profiles
from tasks.settings.config import Folders, Runtime, Source, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context
from tests.support.inline import inline_pool  # noqa: F401
from tests.support.samples import dialogue, real_text, record, write

CONFIG = SteelRun(
    profile="test",
    sources={
        "web": Source(dataset="web", reader="skypile"),
        "chat": Source(dataset="chat", reader="belle_3_5m"),
        "lessons": Source(dataset="lessons", reader="alpaca", use="sft"),
        "pairs": Source(dataset="pairs", reader="dpo_sharegpt", use="preference"),
        "exam": Source(dataset="exam", reader="ceval", use="benchmark"),
    },
)
STEM = "下列各省中哪一个省的省会城市位于长江下游"


def test_names_inputs_and_order():
    declared = {node.name: node for node in nodes(CONFIG)}
    assert {name: dict(node.inputs) for name, node in declared.items()} == {
        "clean:assets": {"web": "convert:web", "chat": "convert:chat"},
        "clean:web": {"records": "convert:web", "assets": "clean:assets"},
        "clean:chat": {"records": "convert:chat", "assets": "clean:assets"},
        "clean:dedup": {"web": "clean:web", "chat": "clean:chat"},
        "clean:decontaminate": {
            "web": "clean:web",
            "chat": "clean:chat",
            "dedup": "clean:dedup",
            "lessons": "convert:lessons",
            "pairs": "convert:pairs",
            "exam": "convert:exam",
        },
    }
    # which copy stays depends on the order of the sources, which a mapping of inputs does not carry
    assert declared["clean:dedup"].config.order == ["web", "chat"]


class Silent:
    def metrics(self, *args, **kwargs): ...

    params = file = metrics


def bodies(config, written, folder, prefix=""):
    """Run the bodies of all nodes in order; returns their outcomes. Partitions lie in `folder`."""
    artifacts, outcomes = {}, {}
    for name, (stem, items) in written.items():
        place = folder / name.replace(":", "-")
        write(place / f"{stem}.jsonl", items)
        artifacts[name] = Artifact(name, place, "", "", {})
    for node in nodes(config):
        out = folder / (prefix + node.name.replace(":", "-"))
        out.mkdir()
        inputs = {role: artifacts[name] for role, name in node.inputs.items()}
        log = logging.getLogger("test")
        context = Context(node.name, out, node.config, inputs, Runtime(), 1, log, Silent())
        outcomes[node.name] = node.body(context)
        artifacts[node.name] = Artifact(node.name, out, "", "", {})
        json.dumps([outcomes[node.name].extra, outcomes[node.name].counts])
        assert all((out / file).is_file() for file in outcomes[node.name].files)
        assert outcomes[node.name].headline
        assert outcomes[node.name].summary.count("|") > 4
    return outcomes


def made(folder):
    """How many finished partitions each function has made."""
    done = (folder / ".partitions").glob("*/done.json")
    return Counter(json.loads(path.read_text())["function"] for path in done)


@pytest.mark.usefixtures("inline_pool")
def test_the_bodies_one_after_the_other(tmp_path):
    texts = sorted({real_text(seed) + "\n" + real_text(seed + 1000) for seed in range(700)})
    web = [record(text, source="web") for text in texts] + [
        record(texts[0] + "！", source="web"),
        record(texts[1] + STEM, source="web"),
    ]
    chat = [dialogue("讲一件事。", text, source="chat") for text in texts[:20]] + [dialogue("你好", STEM)]
    pair = dialogue(STEM) | {"kind": "preference", "chosen": "江苏", "rejected": "浙江"}
    question = {
        "id": "q",
        "benchmark": "exam",
        "question": STEM + "？",
        "choices": ["江苏", "山西", "河北", "福建"],
    }
    written = {
        "convert:web": ("records", web),
        "convert:chat": ("records", chat),
        "convert:lessons": ("records", [dialogue("讲一件事。", texts[3])]),
        "convert:pairs": ("records", [pair]),
        "convert:exam": ("questions", [question]),
    }
    outcomes = bodies(CONFIG, written, tmp_path)
    assert made(tmp_path) == {"clean_part": 2, "hash_part": 2, "search_part": 4}

    assert outcomes["clean:web"].headline == f"{len(web):,} of {len(web):,} kept"
    assert outcomes["clean:dedup"].counts["dropped.exact"] == 1
    out = tmp_path / "clean-decontaminate"
    steps = {
        name: [json.loads(line)["step"] for line in (out / name / "drops.jsonl").read_text().splitlines()]
        for name in ("web", "chat", "lessons", "pairs")
    }
    assert steps == {
        "web": ["dedup", "decontaminate"],
        "chat": ["decontaminate"],
        "lessons": [],
        "pairs": ["decontaminate"],
    }
    report = json.loads((out / "report.json").read_text("utf-8"))["benchmarks"]["exam"]
    assert (report["questions"], report["questions_hit"]) == (1, 1)
    assert report["dropped"] == {"web": 1, "chat": 1, "pairs": 1}
    assert len(report["examples"]) == 3
    assert set(outcomes["clean:dedup"].files) >= {"web/accounting.json", "chat/accounting.json"}
    assert set(outcomes["clean:decontaminate"].files) >= {f"{name}/accounting.json" for name in steps}
    # what the next rooms read agrees: records in = kept + dropped, hop by hop
    for name in ("web", "chat"):
        folders = (f"clean-{name}", f"clean-dedup/{name}", f"clean-decontaminate/{name}")
        accounts = [json.loads((tmp_path / folder / "accounting.json").read_text()) for folder in folders]
        for before, after in zip(accounts, accounts[1:], strict=False):
            assert (before["kept"], before["chars_out"]) == (after["records_in"], after["chars_in"])

    # one more source: nothing of the others is cleaned, hashed or searched again
    copy = record(texts[5], source="more")
    more = {**written, "convert:more": ("records", [copy, record(real_text(7000), source="more")])}
    source = Source(dataset="more", reader="skypile")
    assets = CONFIG.clean.assets.model_copy(update={"sources": ["web", "chat"]})
    grown = CONFIG.model_copy(
        update={
            "sources": {**CONFIG.sources, "more": source},
            "clean": CONFIG.clean.model_copy(update={"assets": assets, "decontaminate": "report"}),
        }
    )
    outcomes = bodies(grown, more, tmp_path, "again-")
    assert made(tmp_path) == {"clean_part": 3, "hash_part": 3, "search_part": 5}
    dropped = (tmp_path / "again-clean-dedup" / "more" / "drops.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in dropped] == [copy["id"]]
    assert outcomes["clean:decontaminate"].counts["dropped"] == 0
    assert outcomes["clean:decontaminate"].counts["held"] == 3


@pytest.mark.parametrize("profile", ["steel-1b", "steel-100m"])
@pytest.mark.parametrize(("recipe", "learnt"), [("steel", set()), ("paper", {"starcoder", "more_code"})])
def test_a_new_source_leaves_the_models_of_the_big_profiles_alone(profile, recipe, learnt):
    def assets_of(**new):
        return nodes(profiles.load(profile, {"clean": {"recipe": recipe}, "sources": new}))[0]

    named = set(profiles.load(profile).clean.assets.sources)
    prose, code = ({"entry": entry} for entry in ("skypile", "starcoder"))
    before, after = assets_of(), assets_of(more=prose)
    assert (before.inputs, before.config) == (after.inputs, after.config)
    assert set(assets_of(more=prose, more_code=code).inputs) == named | learnt


def test_the_models_can_be_held_still(tmp_path, models):
    def assets_of(**settings):
        assets = CONFIG.clean.assets.model_copy(update=settings)
        runtime = CONFIG.runtime.model_copy(update={"folders": Folders(models=models)})
        clean = CONFIG.clean.model_copy(update={"assets": assets})
        return nodes(CONFIG.model_copy(update={"clean": clean, "runtime": runtime}))[0]

    assert dict(assets_of(sources=["web"]).inputs) == {"web": "convert:web"}
    with pytest.raises(NodeError, match="names no pre-training source: wbe"):
        assets_of(sources=["wbe"])
    given = assets_of(models="folder")
    assert not given.inputs
    assert set(given.external()) == {"zh.sp.model", "zh.arpa.bin"}
    log = logging.getLogger("test")
    runtime = Runtime(folders=Folders(models=models))
    outcome = given.body(Context(given.name, tmp_path, given.config, {}, runtime, 1, log, Silent()))
    assert outcome.extra["models"]["zh"]["usable"]
    assert (tmp_path / "zh.arpa.bin").read_bytes() == (models / "zh.arpa.bin").read_bytes()
    with pytest.raises(NodeError, match=r"runtime\.folders\.models=None is none"):
        assets.folder_digests(None)
