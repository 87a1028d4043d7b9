"""Whether a class is where ``package.module:Class`` says, found out without running any of its code.

The worker must not import what an engine will: it may be slow, or need torch.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from stream.errors import InvalidInput


def check_target(target: str) -> None:
    """Raises `InvalidInput` that says what is not there, as far as it can be known from the source.

    Modules are looked for as an engine of this interpreter does: on its path, then in the working directory.
    """
    module, _, name = target.partition(":")
    source = _source_of(_found(module, target))
    if source is None:
        return
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except SyntaxError as error:
        raise _wrong(f"{source}, line {error.lineno}: {error.msg}") from None
    bound = set(_bound(tree.body))
    if name not in bound and not bound & {"*", "__getattr__"}:
        classes = [
            node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in bound
        ]
        has = f"its classes are {', '.join(classes)}" if classes else "it has no class"
        raise _wrong(f"{source} has no {name}; {has}")


def _found(module: str, target: str) -> ModuleSpec:
    path: list[str] | None = [*sys.path, os.getcwd()]
    parts = module.split(".")
    spec: ModuleSpec | None = None
    for number, part in enumerate(parts, 1):
        name = ".".join(parts[:number])
        # By its last part: under its whole name a folder without __init__ asks for its parent to be imported.
        spec = None if path is None else PathFinder.find_spec(part, path)
        if spec is None and number == 1:
            # What is installed in a way of its own; a module without a package is not imported for that.
            spec = importlib.util.find_spec(name)
        if spec is None:
            raise _wrong(
                f"{target} is not to be found: there is no module {name} in {os.getcwd()} or installed"
            )
        path = _folders(spec)
    assert spec is not None
    return spec


def _folders(spec: ModuleSpec) -> list[str] | None:
    found = spec.submodule_search_locations
    return None if found is None else list(found)


def _source_of(spec: ModuleSpec) -> Path | None:
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def _bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that statements of a module give it, those within ``if``, ``try`` and ``with`` too."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((one.asname or one.name).partition(".")[0] for one in names)
            case ast.Assign() | ast.AnnAssign():
                yield from (one.id for one in ast.walk(node) if isinstance(one, ast.Name))
            case _:
                for field in ("body", "orelse", "finalbody"):
                    yield from _bound(getattr(node, field, ()))
                for handler in getattr(node, "handlers", ()):
                    yield from _bound(handler.body)


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, field="processor")
