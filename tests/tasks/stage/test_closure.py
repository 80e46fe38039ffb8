"""The code version: what a body reaches counts, what stands beside it does not."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path

import pytest

from tasks import dag
from tasks.download import body
from tasks.settings import profiles
from tasks.stage import closure as closures
from tasks.stage import fingerprint, reading, uncounted
from tasks.stage.reading import file_of
from tasks.stage.uncounted import UNCOUNTED

FILES = {
    "tasks/__init__.py": "",
    "tasks/room/__init__.py": '"""A room."""',
    "tasks/room/node.py": """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from tasks.room import helper, unused
        from tasks.room.parts import one, other as renamed
        if TYPE_CHECKING:
            from tasks.room import typed

        def nodes(config):
            from tasks.room import declares
            return declares.nodes(body)

        def body(ctx: typed.Thing):
            from model.late import late
            return helper.used(one, late), inner()

        def inner():
            return TABLE["a"](1)

        def spoken(ctx):
            return ["-m", "model.program", "model.none"]

        def renaming(ctx):
            return renamed()

        def spare(ctx):
            return ctx["spare"]

        def templated(ctx):
            return open(Path(__file__).parent / "templates"), Path(__file__).with_name("notes.yaml"), spare(ctx)

        TABLE = {"a": renamed}
        class Body:
            def __call__(self, ctx):
                return helper.whole
    """,
    "tasks/room/helper.py": """
        import numpy
        from tasks.room import deep, shallow
        def used(*args): return deep.bottom(args)
        def whole(): return shallow
        def beside(): return shallow.x
    """,
    "tasks/room/deep.py": "def bottom(x): return x",
    "tasks/room/shallow.py": "x = 1",
    "tasks/room/unused.py": "from tasks.room import registers\ndef f(): return registers",
    "tasks/room/registers.py": "from model.late import table\ntable.append(1)",
    "tasks/room/typed.py": "class Thing: ...",
    "tasks/room/declares.py": "def nodes(body): return [body]",
    "tasks/room/parts.py": "from tasks.room.readers import load\ndef one(): ...\ndef other(): return load('a')",
    "tasks/room/readers/__init__.py": """
        import importlib
        def load(name): return importlib.import_module(f"{__name__}.{name}").READ
    """,
    "tasks/room/readers/a.py": "from ..shallow import x as READ",
    "tasks/room/readers/b.py": "READ = 2",
    "tasks/room/templates/page.j2": "{{ page }}",
    "tasks/room/notes.yaml": "a: 1",
    "tasks/room/spare/a.yaml": "a: 1",
    "tasks/room/other.yaml": "b: 1",
    "model/late.py": "table = []\ndef late(): return table",
    "model/program.py": """
        from model import started
        def main(): return started.run()
        if __name__ == "__main__":
            main()
    """,
    "model/started.py": "def run(): ...",
}


class Repository:
    """A small house of its own; `version(name)` is the code version of a callable of tasks.room.node."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        closures.forget()
        fingerprint._tree_digest.cache_clear()

    def body(self, name: str = "body", module: str = "tasks.room.node"):
        def stand_in(): ...

        stand_in.__module__, stand_in.__qualname__ = module, name
        return stand_in

    def reached(self, name: str = "body", **more) -> set[str]:
        return {m.removeprefix("tasks.room.") for m in closures.closure(self.body(name), **more).modules}

    def version(self, name: str = "body", extra=()) -> str:
        return fingerprint.code_digest(self.body(name), extra)


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    yield Repository(tmp_path)
    monkeypatch.undo()
    closures.forget()
    fingerprint._tree_digest.cache_clear()


def test_names_are_followed_and_neighbours_are_not(house):
    assert house.reached() == {
        *("node", "helper", "deep", "parts", "readers", "readers.a", "readers.b", "shallow", "model.late"),
        "registers",  # its import alone does something
    }
    assert house.reached("nodes") >= {"declares", "helper"}
    assert house.reached("Body") == {"node", "helper", "shallow", "registers", "model.late"}


def test_a_module_reached_through_its_package_counts(house):
    house.write("tasks/room/deep.py", "from tasks import room\ndef bottom(x): return room.typed.Thing")
    assert "typed" in house.reached()
    house.write(
        "tasks/room/deep.py", "import tasks.room.declares\ndef bottom(x): return tasks.room.declares.nodes"
    )
    assert "declares" in house.reached()


def test_a_module_named_by_a_string_and_a_program_count(house):
    assert {"model.program", "model.started"} <= house.reached("spoken")
    assert "model.started" not in house.reached()
    assert {"readers.a", "readers.b", "shallow"} <= house.reached("renaming")


@pytest.mark.parametrize(
    ("decorator", "counts"),
    [
        ("registry.register", True),
        ("register('a')", True),
        ("final", False),
        ("typing.final", False),
        ("dataclass(frozen=True)", False),
    ],
)
def test_a_decorator_counts_when_it_may_register(house, decorator, counts):
    decorated = f"@{decorator}\nclass Beside:\n    thing = declares.nodes\n"
    house.write("tasks/room/deep.py", f"from tasks.room import declares\n{decorated}def bottom(x): return x")
    assert ("declares" in house.reached()) == counts


def test_what_imports_do_not_show_can_be_declared(house):
    assert house.reached("templated", extra=["tasks.room.readers"]) >= {"readers", "readers.a", "shallow"}
    assert house.version("templated") != house.version("templated", ["model.program"])
    with pytest.raises(FileNotFoundError, match=r"model\.nowhere"):
        house.version(extra=["model.nowhere"])
    with pytest.raises(FileNotFoundError, match=r"tasks\.gone"):
        fingerprint.code_digest(house.body(module="tasks.gone"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("importlib.import_module(name)", "cannot be followed"),
        ("__import__(f'a.{name}')", "cannot be followed"),
    ],
)
def test_an_import_that_cannot_be_followed_is_an_error(house, line, message):
    house.write("tasks/room/deep.py", f"import importlib\ndef bottom(name): return {line}")
    with pytest.raises(ValueError, match=message):
        house.version()
    house.write("tasks/room/deep.py", "from tasks.room.parts import *\ndef bottom(name): ...")
    with pytest.raises(ValueError, match="cannot be followed"):
        house.version()


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("tasks/room/deep.py", "def bottom(x): return x + 1", True),
        ("tasks/room/readers/b.py", "READ = 3", True),
        ("model/late.py", "table = [0]\ndef late(): return table", True),
        ("tasks/room/registers.py", "from model.late import table\ntable.append(2)", True),
        ("tasks/room/readers/c.py", "READ = 4", True),
        (
            "tasks/room/deep.py",
            '"""Doc."""\n\ndef bottom(x):\n    """More."""\n    # why\n    return (x)\n',
            False,
        ),
        ("tasks/room/unused.py", "def f(): return 2", True),  # it no longer imports what registers
        ("tasks/room/declares.py", "def nodes(body): return []", False),
        ("tasks/room/typed.py", "class Thing: x = 1", False),
        ("model/program.py", "def main(): return 1", False),
        ("tasks/room/tool.py", "from tasks.room import node", False),
        ("tasks/room/templates/page.j2", "{{ other }}", False),
    ],
)
def test_an_edit_changes_the_version_of_what_reaches_it(house, file, text, changes):
    before = house.version()
    house.write(file, text)
    assert (house.version() != before) == changes


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("templates/page.j2", True),
        ("templates/new.j2", True),
        ("notes.yaml", True),
        ("other.yaml", False),
        ("spare/a.yaml", False),
    ],
)
def test_data_beside_a_module_counts_when_it_is_named(house, file, changes):
    before = house.version("templated")
    house.write(f"tasks/room/{file}", "new: text")
    assert (house.version("templated") != before) == changes


def test_an_uncounted_module_does_not_count_but_what_it_starts_does(house, monkeypatch):
    monkeypatch.setitem(UNCOUNTED, "tasks.room.helper", "for this test")
    before = house.version()
    house.write("tasks/room/helper.py", FILES["tasks/room/helper.py"] + "\n        y = 1\n")
    assert house.version() == before
    house.write("tasks/room/deep.py", "def bottom(x): return 2")
    assert house.version() != before
    monkeypatch.setattr(uncounted, "CLOSED", ("tasks.room.helper",))
    house.write("tasks/room/deep.py", "def bottom(x): return 3")
    closed = house.version()
    house.write("tasks/room/deep.py", "def bottom(x): return 4")
    assert house.version() == closed


def test_instances_and_partials_stand_for_what_they_call(house):
    class Body: ...

    Body.__module__, Body.__qualname__ = "tasks.room.node", "Body"
    assert closures.closure(Body()) == closures.closure(house.body("Body"))
    assert closures.closure(partial(house.body(), 1)) == closures.closure(house.body())


# --------------------------------------------------------------------------- the real house
def graph() -> dict:
    config = profiles.load("demo")
    return {**dag.build(config), **dag.build_ablation(config)}


def counted(name: str) -> set[str]:
    node = graph()[name]
    return {m for m in closures.closure(node.body, node.code).modules if not uncounted.uncounted(m)}


@pytest.mark.parametrize(
    ("node", "modules"),
    [
        ("clean:dedup", {"tasks.clean.dedup_account", "tasks.clean.near", "tasks.clean.normalise"}),
        ("clean:zhihu", {"tasks.clean.chain", "tasks.clean.own_operators", "tasks.clean.operators"}),
        ("convert:zhihu", {"tasks.convert.readers.zhihu", "tasks.convert.join", "tasks.convert.streams"}),
        ("tokenize:zhihu", {"tasks.tokenize.packing", "model.training.shards"}),
        (
            "ablation:dense-s1",
            {"tasks.training.continuation", "model.leak", "model.training.loop", "kernels.rope"},
        ),
        ("pretrain", {"model.training.run", "model.training.objectives", "model.steel.modeling"}),
        ("sft:select", {"tasks.evaluate.scorer", "model.scoring"}),
        ("evaluate:base", {"tasks.evaluate.protocols", "model.scoring"}),
        ("report", {"tasks.report.page", "tasks.figures.history", "model.scoring"}),
        ("download:zhihu", {"tasks.world.formats", "tasks.download.archives"}),
    ],
)
def test_what_makes_an_artifact_counts(node, modules):
    names = graph()
    node = node if node in names else next(n for n in names if n.startswith(node.partition(":")[0]))
    assert modules <= counted(node)


@pytest.mark.parametrize("node", ["pretrain", "dpo:train", "ablation:dense-s1"])
def test_a_tool_that_no_training_imports_trains_nothing_again(node):
    assert not {
        "model.training.provenance",
        "model.steel.import_original",
        "tasks.training.launch",
    } & counted(node)


def test_an_edit_of_the_demos_world_downloads_nothing_else_again():
    worlds = {
        hub: any(m.startswith("tasks.world") for m in closures.closure(fill).modules)
        for hub, fill in {"demo": body.demo, "folder": body.folder, "web": body.web, "hub": body.hub}.items()
    }
    assert worlds == {"demo": True, "folder": False, "web": False, "hub": False}


def test_no_fine_tuning_runs_again_for_how_models_are_asked():
    assert not {m for m in counted("sft:exp1") if m.startswith("tasks.evaluate")}
    assert not {
        m for m in counted("pretrain") if m.startswith(("tasks.evaluate", "tasks.clean", "tasks.convert"))
    }


def test_every_exception_has_a_reason_and_is_met():
    bodies = [node.body for node in graph().values()] + [body.folder, body.web, body.hub]
    reached = set().union(*(closures.closure(each).modules for each in bodies))
    for name, reason in UNCOUNTED.items():
        assert len(reason.split()) >= 4, name
        assert file_of(name), name
        assert any(uncounted._listed(module, [name]) for module in reached), f"{name} is in no node's way"
    assert set(uncounted.CLOSED) <= set(UNCOUNTED)


def test_planning_reads_each_file_once(monkeypatch):
    nodes = dag.build(profiles.load("demo")).values()
    paths = []
    monkeypatch.setattr(reading, "parse", lambda path, parse=reading.parse: paths.append(path) or parse(path))
    closures.forget()
    fingerprint._tree_digest.cache_clear()
    for node in nodes:
        fingerprint._code_digest(node.body, node.code)  # an earlier process may have noted the digests
    assert len(paths) == len(set(paths)) > 100
