"""Nodes of every kind that the protocol knows, on whole numbers, and the smallest interpreter of that
protocol."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

from workflows.protocol import ExecutionBlocker
from workflows.registry import NodeRegistry

MODULUS = 100_003
BLOCKED = "blocked"
calls: Counter[str] = Counter()
_fresh = itertools.count()


class Old:
    """The older kind of class, whose instances run."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"
    LITERALS: ClassVar[tuple[str, ...]] = ("n",)
    LAZY: ClassVar[tuple[str, ...]] = ()
    LINKS: ClassVar[tuple[str, ...]] = ("a", "b")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        links = {name: ("IMAGE", {"lazy": True} if name in cls.LAZY else {}) for name in cls.LINKS}
        return {
            "required": links | {name: ("INT", {"default": 1}) for name in cls.LITERALS},
            "hidden": {"me": "UNIQUE_ID"},
        }


class Constant(Old):
    LINKS = ()

    def run(self, n: int, me: str) -> tuple[int]:
        calls[me] += 1
        return (n,)


class Add(Old):
    def run(self, a: int, b: int, n: int, me: str) -> tuple[int]:
        calls[me] += 1
        return ((a + n * b) % MODULUS,)


class LaterAdd(Old):
    async def run(self, a: int, b: int, n: int, me: str) -> tuple[int]:
        calls[me] += 1
        await asyncio.sleep(0)
        return ((a * 3 + n * b) % MODULUS,)


class SchemaAdd:
    """The newer kind, declared by a schema alone; its calls have the hidden inputs on the class."""

    hidden: Any = None

    @classmethod
    def define_schema(cls) -> Any:
        def one(name: str, kind: str) -> Any:
            return SimpleNamespace(id=name, io_type=kind, optional=False, as_dict=dict)

        return SimpleNamespace(
            inputs=[one("a", "IMAGE"), one("b", "IMAGE"), one("n", "INT")],
            outputs=[SimpleNamespace(io_type="IMAGE", is_output_list=False)],
            hidden=["UNIQUE_ID"],
        )

    @classmethod
    def execute(cls, a: int, b: int, n: int) -> Any:
        calls[cls.hidden.unique_id] += 1
        values = ((a * 5 + n * b) % MODULUS,)
        return SimpleNamespace(result=values, ui=None, expand=None, block_execution=None)


class Many(Old):
    OUTPUT_IS_LIST = (True,)
    LINKS = ("a",)

    def run(self, a: int, n: int, me: str) -> tuple[list[int]]:
        calls[me] += 1
        return ([(a + index) % MODULUS for index in range(1 + n % 3)],)


class Gather(Old):
    INPUT_IS_LIST = True

    def run(self, a: list[int], b: list[int], n: list[int], me: list[str]) -> tuple[int]:
        calls[me[0]] += 1
        return ((sum(a) + 7 * len(b) + n[0]) % MODULUS,)


class Switch(Old):
    """``a`` says which of the others is wanted."""

    LINKS = ("a", "yes", "no")
    LAZY = ("yes", "no")

    def check_lazy_status(self, a: int, yes: Any, no: Any, n: int, me: str) -> list[str]:
        wanted, value = ("yes", yes) if a % 2 else ("no", no)
        return [wanted] if value is None else []

    def run(self, a: int, yes: Any, no: Any, n: int, me: str) -> tuple[int]:
        calls[me] += 1
        return ((yes if a % 2 else no) + n,)


class Block(Old):
    RETURN_TYPES = ("IMAGE", "IMAGE")
    LINKS = ("a",)

    def run(self, a: int, n: int, me: str) -> tuple[Any, Any]:
        calls[me] += 1
        return (a + 1) % MODULUS, ExecutionBlocker(None) if (a + n) % 3 == 0 else a


class Expand(Old):
    """An addition by way of other nodes, one within the other."""

    def run(self, a: int, b: int, n: int, me: str) -> dict[str, Any]:
        calls[me] += 1
        inner, add = f"{me}.{next(_fresh)}", f"{me}.{next(_fresh)}"
        deeper = n % 4 > 1
        kind = "Expand" if deeper else "Add"
        graph = {
            inner: {"class_type": kind, "inputs": {"a": a, "b": b, "n": 0 if n % 4 == 2 else 1}},
            add: {"class_type": "Add", "inputs": {"a": [inner, 0], "b": a, "n": n}},
        }
        return {"result": ([add, 0],), "expand": graph}


class ExpandLater(Old):
    """An addition by way of an async node that has to wait."""

    def run(self, a: int, b: int, n: int, me: str) -> dict[str, Any]:
        calls[me] += 1
        inner = f"{me}.{next(_fresh)}"
        graph = {inner: {"class_type": "LaterAdd", "inputs": {"a": a, "b": b, "n": n}}}
        return {"result": ([inner, 0],), "expand": graph}


CLASSES: dict[str, Any] = {
    one.__name__: one for one in (Constant, Add, LaterAdd, SchemaAdd, Many, Gather, Switch, Block, Expand)
}


def registry() -> NodeRegistry:
    return NodeRegistry.from_mappings(CLASSES, {"ExpandLater": ExpandLater})


class Ambiguous(Exception):
    """A lazy input that nobody wants is blocked: as in ComfyUI that counts where its node has run already, so
    what comes out depends on the order of the nodes."""


def naive(graph: dict[str, Any], frame: int) -> Any:
    """What goes out of the graph for a frame: a value, a list of values, or `BLOCKED`; nothing is remembered
    from frame to frame. Raises `Ambiguous`."""
    known: dict[str, list[list[Any]]] = {}
    return _shown(_output(dict(graph), graph["out"]["inputs"]["images"], frame, known))


def shown(result: Any) -> Any:
    """What a plan gave, in the same form."""
    return _shown(result if isinstance(result, list) else [result])


def _shown(values: list[Any]) -> Any:
    kept = [value for value in values if not isinstance(value, ExecutionBlocker)]
    if not kept:
        return BLOCKED
    return kept[0] if len(kept) == 1 else kept


def _output(
    graph: dict[str, Any], link: list[Any], frame: int, known: dict[str, list[list[Any]]]
) -> list[Any]:
    node_id, output = link
    if node_id not in known:
        known[node_id] = _run(graph, node_id, frame, known)
    return known[node_id][output]


def _run(
    graph: dict[str, Any], node_id: str, frame: int, known: dict[str, list[list[Any]]]
) -> list[list[Any]]:
    node = graph[node_id]
    if node["class_type"] == "LoadTensor":
        return [[frame]]
    kind = CLASSES[node["class_type"]]
    lazy = set(getattr(kind, "LAZY", ()))
    values: dict[str, list[Any]] = {}
    for name, given in node["inputs"].items():
        if not isinstance(given, list):
            values[name] = [given]
        elif name in lazy:
            values[name] = [None]
        else:
            values[name] = _output(graph, given, frame, known)
    if kind is not SchemaAdd:
        values["me"] = [node_id]
    while lazy:
        asked = {
            name
            for row in _rows(values)
            if not any(isinstance(value, ExecutionBlocker) for value in row.values())
            for name in kind().check_lazy_status(**row)
        } & lazy
        if not asked:
            break
        lazy -= asked
        for name in asked:
            values[name] = _output(graph, node["inputs"][name], frame, known)
    for name in lazy:
        unwanted = _output(dict(graph), node["inputs"][name], frame, dict(known))
        if any(isinstance(value, ExecutionBlocker) for value in unwanted):
            raise Ambiguous
    results = []
    for row in [values] if getattr(kind, "INPUT_IS_LIST", False) else _rows(values):
        flat = [item for value in row.values() for item in (value if isinstance(value, list) else [value])]
        blocker = next((item for item in flat if isinstance(item, ExecutionBlocker)), None)
        if blocker is not None:
            results.append((blocker,) * 2)
        else:
            results.append(_called(kind, row, graph, frame, known, node_id))
    merged: list[list[Any]] = []
    for index in range(min(len(result) for result in results)):
        lists = getattr(kind, "OUTPUT_IS_LIST", (False, False))[index : index + 1]
        column: list[Any] = []
        for result in results:
            spread = lists == (True,) and not isinstance(result[index], ExecutionBlocker)
            column += result[index] if spread else [result[index]]
        merged.append(column)
    return merged


def _called(
    kind: Any, row: dict[str, Any], graph: dict[str, Any], frame: int, known: dict[str, Any], node_id: str
) -> tuple[Any, ...]:
    if kind is SchemaAdd:
        made = type("SchemaAdd", (SchemaAdd,), {"hidden": SimpleNamespace(unique_id=node_id)})
        return made.execute(**row).result  # type: ignore[no-any-return, attr-defined]
    result = kind().run(**row)
    if asyncio.iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, dict):
        graph.update(result["expand"])
        return tuple(_output(graph, link, frame, known)[0] for link in result["result"])
    return result  # type: ignore[no-any-return]


def _rows(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    count = max(len(value) for value in values.values())
    return [{name: value[min(i, len(value) - 1)] for name, value in values.items()} for i in range(count)]
