"""What an interpreter of Python 3.10 is lent keeps to what that version has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from test_rooms import Source, loaded_with

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


@pytest.mark.parametrize("source", loaded_with(LENT).values(), ids=lambda source: source.name)
def test_what_is_lent_runs_on_python_3_10(source: Source) -> None:
    tree = only_for_checkers(ast.parse(source.text, feature_version=(3, 10)))
    assert not list(too_new(tree))


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
