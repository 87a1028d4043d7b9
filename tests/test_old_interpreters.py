"""What an interpreter of Python 3.10 is lent keeps to what that version has."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_rooms import loaded_with

LENT = re.compile(
    r"stream/timeouts|headrace/engine/(home|link|memory|slots|device|processors|host\w*|bootstrap)"
    r"|headrace/comfyui/host/.+|workflows/[^/]+"
)
NEWER = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "builtins": {"BaseExceptionGroup", "ExceptionGroup"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "verify"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "math": {"cbrt", "exp2", "sumprod"},
    "operator": {"call"},
    "typing": {
        "LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple", "Unpack",
        "assert_never", "assert_type", "dataclass_transform", "override", "reveal_type",
    },
}  # fmt: skip
"""Names of the standard library that came with 3.11 or later, as far as one might use them here."""
NEWER_MODULES = {"tomllib"}
NEWER_METHODS = {"add_note", "cancelling", "uncancel"}


def too_new(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where something newer is used as the code runs; what only a type checker reads may be newer."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((line, name.name) for name in node.names if name.name in NEWER_MODULES)
        elif isinstance(node, ast.ImportFrom):
            newer = NEWER.get(node.module or "", set())
            yield from ((line, name.name) for name in node.names if name.name in newer)
        elif isinstance(node, ast.Attribute):
            module = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in NEWER.get(module, set()) or node.attr in NEWER_METHODS:
                yield line, node.attr
        elif isinstance(node, ast.Name) and node.id in NEWER["builtins"]:
            yield line, node.id
        elif type(node).__name__ in ("TryStar", "TypeAlias"):
            yield line, type(node).__name__


def only_for_checkers(tree: ast.Module) -> ast.Module:
    """Without the blocks that run on newer versions or for type checkers alone."""

    class Blocks(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            test = ast.unparse(node.test)
            if test.endswith("TYPE_CHECKING") or "sys.version_info >=" in test:
                return [self.visit(child) for child in node.orelse]
            return self.generic_visit(node)

    tree = Blocks().visit(tree)
    assert isinstance(tree, ast.Module)
    return tree


def test_what_is_lent_runs_on_python_3_10() -> None:
    lent = loaded_with(LENT)
    newer = [
        f"{name}:{line} uses {what}"
        for name, source in lent.items()
        for line, what in too_new(only_for_checkers(ast.parse(source.text, name, feature_version=(3, 10))))
    ]
    assert "headrace/engine/host" in lent
    assert not newer


@pytest.mark.parametrize(
    "code",
    [
        "import tomllib",
        "from enum import StrEnum",
        "async def f():\n    async with asyncio.timeout(1): pass",
        "try:\n    pass\nexcept* ValueError:\n    pass",
        "raise ExceptionGroup('', [])",
        "error.add_note('')",
    ],
)
def test_what_is_newer_is_found(code: str) -> None:
    assert list(too_new(ast.parse(code)))


ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import asyncio, importlib, importlib.util, os, pathlib, sys

root = pathlib.Path(sys.argv[1])
place = root / "headrace" / "engine" / "bootstrap.py"
spec = importlib.util.spec_from_file_location("bootstrap", place)
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)
sys.meta_path.insert(0, bootstrap.RoomFinder(str(root)))
count = 0
for room in ("headrace/comfyui/host", "headrace/engine", "workflows"):
    for path in sorted((root / room).glob("*.py")):
        importlib.import_module(".".join((*pathlib.Path(room).parts, path.stem)).replace(".__init__", ""))
        count += 1

from workflows.plan import Plan
from workflows.registry import NodeRegistry

class Add:
    RETURN_TYPES, FUNCTION = ("IMAGE",), "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "by": ("INT", {"default": 1})}}

    @classmethod
    def VALIDATE_INPUTS(cls, by):
        return by < 9 or "too much"

    @classmethod
    def IS_CHANGED(cls, image, by):
        return by

    async def run(self, image, by):
        return (image + by,)

graph = {
    "in": {"class_type": "LoadTensor", "inputs": {}},
    "add": {"class_type": "Add", "inputs": {"image": ["in", 0], "by": 1}},
    "out": {"class_type": "SaveTensor", "inputs": {"images": ["add", 0]}},
}
async def work():
    plan = await Plan.compile(graph, NodeRegistry.from_mappings({"Add": Add}))
    first = (await plan.run_async(4))[0]
    plan.commit(await plan.change({("add", "by"): 3}))
    return first, (await plan.run_async(4))[0]
print(sys.version_info[:2], count > 60, asyncio.run(work()))
"""


def test_what_is_lent_is_imported_by_python_3_10_and_a_plan_runs_there() -> None:
    """``HEADRACE_TEST_PYTHON310``, or ``python3.10``, where it has numpy; torch is not needed for it."""
    python = os.environ.get("HEADRACE_TEST_PYTHON310") or shutil.which("python3.10")
    if python is None or subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip("there is no Python 3.10 with numpy")
    command = [python, "-B", "-c", PROGRAM, str(ROOT)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert (done.stdout.strip(), done.stderr) == ("(3, 10) True (5, 7)", "")
