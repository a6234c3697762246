"""Who imports whom: engines never rtbg, nothing a user runs training or torch, heavy libraries only on use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {package: sorted((ROOT / package).rglob("*.py")) for package in ("engines", "rtbg")}

# Packages that must not be imported at all, and those that must not be imported when the module is.
NEVER = {"engines": {"rtbg", "training", "benchmarks", "tests"}, "rtbg": {"training", "benchmarks", "tests"}}
ON_USE = {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "onnx"}


def imports(tree: ast.AST, *, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """(top package, whether it is imported inside a function only) for each absolute import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0], in_function
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from ((name, True) for name, _ in imports(node))
        else:
            inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, in_function=inner)


def test_the_walker_sees_every_kind_of_import():
    code = """
import torch.nn
try:
    from onnx import helper
except ImportError:
    pass
class C:
    import training
    def f(self):
        if True:
            import openvino
if TYPE_CHECKING:
    import rtbg
from . import sibling
"""
    found = set(imports(ast.parse(code)))
    assert found == {("torch", False), ("onnx", False), ("training", False), ("openvino", True), ("rtbg", True)}


@pytest.mark.parametrize("package", ["engines", "rtbg"])
def test_layers(package):
    assert len(FILES[package]) > 3
    wrong = []
    for path in FILES[package]:
        for name, in_function in imports(ast.parse(path.read_text("utf-8"))):
            if name in NEVER[package] or (name in ON_USE and not in_function):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_rtbg_uses_engines():
    """The one arrow there is; shows that the walk reads the real files."""
    names = {name for path in FILES["rtbg"] for name, _ in imports(ast.parse(path.read_text("utf-8")))}
    assert {"engines", "numpy"} <= names
