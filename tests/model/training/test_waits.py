"""What a training step waits for on a GPU, seen on a CPU: questions to the device, and breaks in a block's graph.

The network, its loss and the optimizer run under fake tensors on the paths of a GPU; the loop around them runs as it is.
docs/training.md states the numbers.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from model.steel import SteelConfig
from model.steel.attention import Documents
from model.steel.layout import Layout
from model.steel.modeling import SteelModel
from model.training import memory
from model.training.sources import SourceLoss
from tests.support import engine_helpers as helpers
from tests.support.memory_questions import question

QUESTIONS = ("aten::_local_scalar_dense", "aten::nonzero")
"""What `item`, `bool`, `int` and `nonzero` become: the host waits until the device has the answer."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Questions of a tracked optimizer step, by operator."""
    seen: Counter[str] = Counter()

    class Counted(memory.Answers):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name().partition(".")[0]
            if name in QUESTIONS:
                seen[name] += 1
            return super().__torch_dispatch__(func, types, args, kwargs)

    monkeypatch.setattr(memory, "Answers", Counted)
    return seen


def measured(asked: dict[str, Any]) -> None:
    made = memory.Question(**{**asked, "train": memory.from_dict(asked["train"])})
    memory.answer(made)


@pytest.mark.parametrize("ffn", ["dense", "token", "prefix"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_step_asks_the_device_for_the_norm_alone(asked: Counter[str], ffn: str, layers: int):
    measured(question(ffn, model={"num_hidden_layers": layers}))
    assert asked == {"aten::_local_scalar_dense": 1}


@pytest.mark.parametrize("layers", [1, 3])
def test_merge_asks_each_layer_for_its_segments(asked: Counter[str], layers: int):
    measured(question("merge", model={"num_hidden_layers": layers, "merge_segment": 16}))
    micro_steps = 2
    assert asked == {"aten::_local_scalar_dense": 1, "aten::nonzero": 4 * layers * micro_steps}


WAITING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
LOOP = (
    *("loop.py", "optim.py", "parallel.py", "metrics.py"),
    *("detail.py", "experts.py", "groups.py", "pace.py", "sources.py", "trace.py"),
)


@pytest.mark.parametrize("detail_every", [100, 1])
def test_the_loop_asks_three_times_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detail_every: int):
    """The batch's units (with the signal to stop), the gradient's norm, and what is reported; once more where a step is
    looked at."""
    seen: Counter[str] = Counter()

    def counted(name: str):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            caller = Path(sys._getframe(1).f_code.co_filename)
            if caller.parent.name == "training" and caller.name in LOOP:
                seen[f"{caller.name}: {name}"] += 1
            return original(self, *args, **kwargs)

        return method

    files = [helpers.shard(tmp_path / "a.arrow", 48)]

    def questions(steps: int) -> Counter[str]:
        seen.clear()
        values = helpers.settings(
            tmp_path / str(steps), data={"files": files}, steps=steps, log_every=100, save_every=100,
            detail_every=detail_every,
        )  # fmt: skip
        assert helpers.engine(values) == 0
        return Counter(seen)

    with monkeypatch.context() as patched:
        for name in WAITING:
            patched.setattr(torch.Tensor, name, counted(name))
        more, fewer = questions(8), questions(3)
    more.subtract(fewer)
    assert {name: number for name, number in more.items() if number} == {
        "parallel.py: tolist": 5,
        "optim.py: item": 5,
        "loop.py: tolist": 5,
        **({"detail.py: tolist": 5} if detail_every == 1 else {}),
    }


def test_the_loss_by_source_asks_nothing():
    """Fake tensors have no values: a question to them is an error."""
    with FakeTensorMode():
        batch = replace(memory.blocks(2, 16, 3), sources=torch.zeros(6, dtype=torch.long))
        sums = SourceLoss(["zhihu", "code"], torch.device("cpu"))
        sums.add(batch, sums.room(batch))
        assert sums.take().shape == (4,)
        with pytest.raises(DynamicOutputShapeException):
            (batch.labels != -100).nonzero()


@pytest.mark.parametrize(
    ("ffn", "breaks"), [("dense", 0), ("token", 0), ("prefix", 0), ("merge", 10)], ids=lambda v: str(v)
)
def test_graph_breaks_of_a_block(ffn: str, breaks: int):
    geometry = SteelConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_experts=3, ffn=ffn, merge_segment=8
    )  # fmt: skip
    body = SteelModel(geometry)
    index = torch.arange(32).div(20, rounding_mode="floor").expand(2, -1)
    mask = Documents.of(index, torch.float32, "sdpa", chunked=False)
    rope = body.rope(torch.arange(32).expand(2, -1))
    layout = Layout.of(2, 32, torch.device("cpu"), doc_index=index)
    torch._dynamo.reset()
    found = torch._dynamo.explain(body.layers[0])(torch.randn(2, 32, 32), mask, rope, layout=layout)
    assert found.graph_break_count == breaks, found.break_reasons
    assert found.graph_count == breaks + 1
