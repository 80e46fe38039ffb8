import pytest

from tasks.report import view
from tests.support.fake_run import FakeRun


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> FakeRun:
    """A complete run; tests must not change it."""
    return FakeRun(tmp_path_factory.mktemp("run")).build()


@pytest.fixture(scope="module")
def seen(run) -> view.View:
    whole = view.assemble(run.config, run.nodes)
    return view.with_samples(whole, "dpo", [view.Sample("你是谁？", "我是 <Steel>。")])
