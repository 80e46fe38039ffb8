"""References to nodes, read in one place."""

import pytest

from tasks.stage.names import NodeRef, stage_of, unit_of
from tasks.stage.node import Artifact, Node


@pytest.mark.parametrize(
    ("text", "ref", "node"),
    [
        ("report", NodeRef("report"), "report"),
        ("sft:exp4", NodeRef("sft", "exp4"), "sft:exp4"),
        ("clean:decontaminate#zhihu", NodeRef("clean", "decontaminate", "zhihu"), "clean:decontaminate"),
        ("pretrain#export/a", NodeRef("pretrain", "", "export/a"), "pretrain"),
        ("convert:a.b-c", NodeRef("convert", "a.b-c"), "convert:a.b-c"),
    ],
)
def test_a_reference_is_read_and_written_back(text, ref, node):
    assert NodeRef.parse(text) == ref
    assert ref.node == node
    assert str(ref) == text
    assert (stage_of(text), unit_of(text)) == (ref.stage, ref.unit)


def test_nodes_and_artifacts_give_theirs(tmp_path):
    node = Node("tokenize:zhihu", print, inputs={"drops": "clean:decontaminate#zhihu", "base": "pretrain"})
    assert (node.stage, node.unit) == ("tokenize", "zhihu")
    assert node.sources == {"drops": NodeRef("clean", "decontaminate", "zhihu"), "base": NodeRef("pretrain")}
    assert Artifact("clean:decontaminate#zhihu", tmp_path, "", "", {}).ref.folder == "zhihu"
