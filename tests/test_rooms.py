"""The house rules of the source tree: which room may import which, and what each file may load.

`headrace` stands on `workflows` and `byoc`, those on `stream`, nothing points back. The worker never loads
torch. What a foreign interpreter loads needs the standard library, numpy and torch alone.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.engine.bootstrap import LENT_MODULES, LENT_ROOMS

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "byoc" / "examples"
MAY_IMPORT = {
    "stream": {"stream"},
    "workflows": {"stream", "workflows"},
    "byoc": {"stream", "byoc"},
    "headrace": {"stream", "workflows", "byoc", "headrace"},
}
FOREIGN = re.compile(
    r"stream/(batching|errors|frames|processor|stretches|timeouts)|headrace/engine/(home|link|memory|slots|device|processors|host\w*|bootstrap)"
    r"|headrace/comfyui/host/.+|workflows/.+"
)
WORKER = re.compile(r"stream/.+|headrace/server/.+|headrace/(cli|settings)")
WEIGHTY = {"torch", "aiortc", "matplotlib", "scipy", "pandas", "cv2", "PIL", "sympy", "diffusers"}

STANDARD = sys.stdlib_module_names

When = Literal["import", "call", "typing"]


@dataclass(frozen=True)
class Import:
    """One imported module, and when the import statement runs."""

    module: str
    line: int
    when: When

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Source:
    """One file of the rooms."""

    path: Path

    @property
    def name(self) -> str:
        """Path from the root, without the suffix: ``stream/frames``."""
        return self.path.relative_to(ROOT).with_suffix("").as_posix()

    @property
    def room(self) -> str:
        return self.name.partition("/")[0]

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def tree(self) -> ast.Module:
        return _parsed(self)

    def imports(self) -> list[Import]:
        return _imported(self)


@functools.cache
def _parsed(source: Source) -> ast.Module:
    return ast.parse(source.text)


@functools.cache
def _imported(source: Source) -> list[Import]:
    visitor = _Imports(source)
    visitor.visit(source.tree)
    return visitor.found


class _Imports(ast.NodeVisitor):
    """Collects the imports of one file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.when: When = "import"
        self.found: list[Import] = []

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, node.lineno, self.when) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package = self.source.name.split("/")[: -node.level] if node.level else []
        base = ".".join([*package, *filter(None, [node.module])])
        for alias in node.names:
            # The name may be a module of its own.
            inner = f"{base}.{alias.name}"
            self.found.append(Import(inner if by_module(inner) else base, node.lineno, self.when))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._during("call", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (the visitor's own name)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self._during("typing", node.body)
            self._during(self.when, node.orelse)
        else:
            self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        # No expression holds an import, and most of a tree is expressions.
        if not isinstance(node, ast.expr):
            super().generic_visit(node)

    def _during(self, when: When, nodes: list[ast.stmt]) -> None:
        before, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = before


def sources() -> list[Source]:
    paths = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]
    # The examples are programs of their own, which are copied and not imported.
    return [Source(path) for path in paths if EXAMPLES not in path.parents]


@functools.cache
def by_module(module: str) -> Source | None:
    """The file of a module or package of the rooms."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return Source(candidate)
    return None


def test_imports_point_one_way() -> None:
    back = [
        f"{source.name}:{imported.line} imports {imported.module}"
        for source in sources()
        for imported in source.imports()
        if imported.top in MAY_IMPORT and imported.top not in MAY_IMPORT[source.room]
    ]
    assert not back


def loaded_with(start: re.Pattern[str]) -> dict[str, Source]:
    """The files that match and every file that importing them loads, by name."""
    found: dict[str, Source] = {}
    waiting = [source for source in sources() if start.fullmatch(source.name)]
    while waiting:
        source = waiting.pop()
        if source.name in found:
            continue
        found[source.name] = source
        reached = [by_module(imported.module) for imported in source.imports() if imported.when == "import"]
        waiting += [other for other in reached if other is not None]
    return found


def test_what_a_foreign_interpreter_loads_needs_only_the_standard_library_numpy_and_torch() -> None:
    allowed = STANDARD | {"numpy", "torch"}
    wrong = []
    for source in loaded_with(FOREIGN).values():
        for imported in source.imports():
            lent = imported.module in LENT_MODULES or imported.module.startswith(LENT_ROOMS)
            if imported.when == "import" and imported.top not in allowed and not lent:
                wrong.append(f"{source.name}:{imported.line} imports {imported.module}")
    assert not wrong


def test_nothing_that_the_worker_imports_imports_torch() -> None:
    loaded = loaded_with(WORKER)
    wrong = [
        f"{source.name}:{imported.line} imports {imported.module}"
        for source in loaded.values()
        for imported in source.imports()
        if imported.when == "import" and imported.top == "torch"
    ]
    assert "stream/frames" in loaded
    assert not wrong


def test_package_files_import_nothing() -> None:
    packages = [source for source in sources() if source.path.name == "__init__.py"]
    wrong = [
        f"{source.name}:{imported.line} imports {imported.module}"
        for source in packages
        for imported in source.imports()
        if source.room != "byoc"
        or (imported.when == "import" and imported.top not in sys.stdlib_module_names)
    ]
    assert packages
    assert not wrong


def test_every_folder_of_a_room_is_a_package() -> None:
    folders = {source.path.parent for source in sources()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def _is_broad(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(_is_broad(part) for part in node.elts)
    return node is None or (isinstance(node, ast.Name) and node.id in ("Exception", "BaseException"))


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _swallows(source: Source) -> Iterator[tuple[int, int]]:
    """First and last line of the head of each broad ``except`` that does not raise, and of ``suppress``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type):
            if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                continue
            yield node.lineno, max(node.lineno, node.body[0].lineno - 1)
        elif isinstance(node, ast.Call) and _last_name(node.func) == "suppress":
            if not any(_is_broad(argument) for argument in node.args):
                continue
            yield node.lineno, node.lineno


def test_every_broad_except_says_why() -> None:
    silent = []
    for source in sources():
        lines = source.text.splitlines()
        for first, last in _swallows(source):
            comment = " ".join(line.partition("#")[2] for line in lines[first - 1 : last])
            if len(re.findall(r"[A-Za-z]{2,}", comment.replace("noqa: BLE001", ""))) < 2:
                silent.append(f"{source.name}:{first}")
    assert not silent


BUILD_THE_APPLICATION = """
import asyncio, sys
import headrace.cli
from headrace.server.app import build_app
from headrace.server.worker import Worker
from headrace.settings import Settings

async def main():
    build_app(Worker(Settings()))

asyncio.run(main())
print(*sys.modules)
"""


def test_the_command_line_and_the_server_load_nothing_weighty() -> None:
    command = [sys.executable, "-c", BUILD_THE_APPLICATION]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "headrace.server.app" in done.stdout.split()
    assert not set(done.stdout.split()) & WEIGHTY
