"""Test files do not import each other: what two of them share lies in tests/support."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports_of_tests(source: str) -> list[str]:
    """Modules below `tests`, other than tests.support, that this text imports."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            modules += [f"{base}.{name.name}" for name in node.names] if base == "tests" else [base]
        elif isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
    return [m for m in modules if m.startswith((".", "tests.")) and f"{m}.".find("tests.support.") != 0]


@pytest.mark.parametrize(
    "line",
    [
        "from tests.tasks.training.test_pairs import preference",
        "from tests.tasks.tokenize.conftest import corpus",
        "import tests.conftest",
        "from tests import conftest",
        "from .test_pairs import preference",
    ],
)
def test_the_check_itself_sees_such_an_import(line):
    assert imports_of_tests(line)


def test_what_is_allowed():
    assert not imports_of_tests("from tests.support.tiny import steel\nfrom tests import support\nimport os")


def test_no_test_file_imports_another():
    wrong = {
        path.relative_to(ROOT).as_posix(): modules
        for path in (ROOT / "tests").rglob("*.py")
        if (modules := imports_of_tests(path.read_text("utf-8")))
    }
    assert wrong == {}


def untrusting(text: str) -> list[bool]:
    """Of each call that loads by one of transformers' Auto classes: whether it says trust_remote_code=False."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    loads = [c for c in calls if ast.unparse(c.func).endswith((".from_pretrained", ".from_config"))]
    return [
        any(k.arg == "trust_remote_code" and ast.unparse(k.value) == "False" for k in c.keywords)
        for c in loads
        if ast.unparse(c.func).split(".")[-2].startswith("Auto")
    ]


def test_no_code_of_a_model_folder_is_run():
    """Without the argument transformers asks on the terminal, in a rank, and runs it on `y`."""
    assert untrusting("transformers.AutoModel.from_pretrained(folder)") == [False]
    assert untrusting("AutoConfig.from_pretrained(folder, trust_remote_code=False)") == [True]
    for room in ("flows", "tasks", "serve", "model", "kernels", "bench"):
        for path in (ROOT / room).rglob("*.py"):
            assert all(untrusting(path.read_text("utf-8"))), path


def test_products_do_not_import_tests():
    for room in ("flows", "tasks", "model", "kernels", "bench"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text("utf-8")
            assert "from tests" not in text, path
            assert "import tests" not in text, path
