"""The nodes of the room: what they declare, and their bodies one after the other on a small run."""

import json
import logging

import pytest

from tasks.clean import nodes
from tasks.config import Runtime, Source, SteelRun
from tasks.node import Artifact, Context
from tests.clean.inline import inline_pool  # noqa: F401
from tests.clean.samples import dialogue, real_text, record, write

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
    assert declared["clean:dedup"].config["order"] == ["web", "chat"]


class Silent:
    def metrics(self, *args, **kwargs): ...

    params = file = metrics


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
    artifacts = {}
    for name, (stem, items) in written.items():
        folder = tmp_path / name.replace(":", "-")
        write(folder / f"{stem}.jsonl", items)
        artifacts[name] = Artifact(name, folder, "", "", {})
    outcomes = {}
    for node in nodes(CONFIG):
        out = tmp_path / node.name.replace(":", "-")
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
    # what the next rooms read agrees: records in = kept + dropped, hop by hop
    for name in ("web", "chat"):
        folders = (f"clean-{name}", f"clean-dedup/{name}", f"clean-decontaminate/{name}")
        accounts = [json.loads((tmp_path / folder / "accounting.json").read_text()) for folder in folders]
        for before, after in zip(accounts, accounts[1:], strict=False):
            assert (before["kept"], before["chars_out"]) == (after["records_in"], after["chars_in"])
