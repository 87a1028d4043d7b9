"""What ComfyUI's editor saves (schema 0.4 and 1), as typed data: nodes, wires and subgraphs as drawn.

Only what decides about execution is kept; positions, colours, groups and native reroutes (which bend a wire
but do not cut it) are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflows.graph import Limits
from workflows.problems import Problem

SUBGRAPH_INPUT = "-10"
SUBGRAPH_OUTPUT = "-20"
"""Ids that wires use for the edges of a subgraph."""

NEVER = 2
BYPASS = 4
"""Modes of a node: it does not run; what comes in goes out again."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or output of a node or subgraph. ``wire`` is the first that is attached to it.

    ``widget`` names the widget that the input also is.
    """

    name: str
    type: str
    wire: str | None = None
    widget: str | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True, slots=True)
class DrawnNode:
    """A node as drawn. ``values`` are its widgets' values, by position or by name; ``named`` names them."""

    id: str
    type: str
    title: str | None
    mode: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    values: list[Any] | Mapping[str, Any]
    named: Mapping[str, Any] | None
    properties: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Nodes and wires by id. ``inputs`` and ``outputs`` are those of a subgraph; ``id`` is its type's.

    ``entries`` are the wires that lead inwards from each of its inputs: ids of the node and of the wire, the
    oldest first. ``exits`` are those that lead to its outputs.
    """

    id: str
    name: str
    nodes: Mapping[str, DrawnNode]
    wires: Mapping[str, Wire]
    inputs: tuple[Slot, ...] = ()
    outputs: tuple[Slot, ...] = ()
    entries: Mapping[int, list[tuple[str, str]]] = field(default_factory=dict)
    exits: Mapping[int, Wire] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EditorFile:
    """A whole file: what is drawn at the top, and the subgraphs by their ids."""

    top: Drawing
    subgraphs: Mapping[str, Drawing]


def read_file(data: Mapping[str, Any], limits: Limits) -> tuple[EditorFile, list[Problem]]:
    """The well-formed parts of a file and what is wrong with the others; never raises."""
    problems: list[Problem] = []
    top = _drawing(data, limits, problems, within="")
    subgraphs: dict[str, Drawing] = {}
    waiting = list(_definitions(data))
    while waiting and len(subgraphs) < limits.nodes:
        item = waiting.pop(0)
        waiting += _definitions(item)
        drawing = _drawing(item, limits, problems, within=_text(item.get("id")) or "?")
        subgraphs.setdefault(drawing.id, drawing)
    return EditorFile(top, subgraphs), problems


def _definitions(data: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    definitions = data.get("definitions")
    return _objects(definitions.get("subgraphs")) if isinstance(definitions, Mapping) else ()


def _drawing(data: Mapping[str, Any], limits: Limits, problems: list[Problem], within: str) -> Drawing:
    nodes: dict[str, DrawnNode] = {}
    given = data.get("nodes")
    for item in (given if isinstance(given, list) else [])[: limits.nodes + 1]:
        node = _node(item, limits, problems, within)
        if node is not None:
            nodes.setdefault(node.id, node)
    name = data.get("name")
    wires = _wires(data.get("links"))
    inputs = _slots(data.get("inputs"), limits) if within else ()
    return Drawing(
        id=_text(data.get("id")) or within,
        name=name if isinstance(name, str) else "",
        nodes=nodes,
        wires=wires,
        inputs=inputs,
        outputs=_slots(data.get("outputs"), limits) if within else (),
        entries=_entries(nodes, wires, inputs),
        exits=_exits(wires),
    )


def _entries(
    nodes: Mapping[str, DrawnNode], wires: Mapping[str, Wire], inputs: Sequence[Slot]
) -> dict[int, list[tuple[str, str]]]:
    attached = {(node.id, slot.wire) for node in nodes.values() for slot in node.inputs}
    found: dict[int, list[tuple[str, str]]] = {}
    for wire_id, wire in wires.items():
        if wire.origin == SUBGRAPH_INPUT and (wire.target, wire_id) in attached:
            found.setdefault(wire.origin_slot, []).append((wire.target, wire_id))
    for number, targets in found.items():
        first = inputs[number].wire if number < len(inputs) else None
        targets.sort(key=lambda target: target[1] != first)
    return found


def _exits(wires: Mapping[str, Wire]) -> dict[int, Wire]:
    found: dict[int, Wire] = {}
    for wire in wires.values():
        if wire.target == SUBGRAPH_OUTPUT:
            found.setdefault(wire.target_slot, wire)
    return found


def _node(item: Any, limits: Limits, problems: list[Problem], within: str) -> DrawnNode | None:
    place = f" of subgraph {within}" if within else ""
    node_id = _text(item.get("id")) if isinstance(item, Mapping) else None
    if node_id is None:
        problems.append(Problem("bad_node", f"a node{place} is not an object with an id"))
        return None
    kind, title = item.get("type"), item.get("title")
    title = title if isinstance(title, str) and title else None
    if not isinstance(kind, str) or not kind:
        problems.append(Problem("bad_node", f"the node{place} has no type", node_id, None, title))
        return None
    values, named, properties = (item.get(key) for key in _PARTS)
    mode = item.get("mode")
    return DrawnNode(
        id=node_id,
        type=kind,
        title=title,
        mode=mode if isinstance(mode, int) else 0,
        inputs=_slots(item.get("inputs"), limits),
        outputs=_slots(item.get("outputs"), limits),
        values=values if isinstance(values, list | Mapping) else [],
        named=named if isinstance(named, Mapping) else None,
        properties=properties if isinstance(properties, Mapping) else {},
    )


_PARTS = ("widgets_values", "widgets_values_named", "properties")


def _slots(items: Any, limits: Limits) -> tuple[Slot, ...]:
    found = []
    for item in _objects(items)[: limits.inputs_per_node]:
        name, widget = item.get("name"), item.get("widget")
        widget_name = widget.get("name") if isinstance(widget, Mapping) else None
        attached = item.get("link")
        for several in (item.get("links"), item.get("linkIds")):
            if attached is None and isinstance(several, list) and several:
                attached = several[0]
        found.append(
            Slot(
                name=name if isinstance(name, str) else "",
                type=_type(item.get("type")),
                wire=_text(attached),
                widget=widget_name if isinstance(widget_name, str) else None,
            )
        )
    return tuple(found)


def _wires(items: Any) -> dict[str, Wire]:
    """Wires are lists ``[id, origin, slot, target, slot, type]`` or objects that say the same."""
    wires: dict[str, Wire] = {}
    if isinstance(items, Mapping):
        items = list(items.values())
    for item in items if isinstance(items, list) else []:
        if isinstance(item, Mapping):
            item = [item.get(key) for key in _WIRE]
        if not isinstance(item, list) or len(item) < len(_WIRE):
            continue
        wire_id, origin, target = _text(item[0]), _text(item[1]), _text(item[3])
        slots = (_index(item[2]), _index(item[4]))
        if wire_id is None or origin is None or target is None or slots[0] is None or slots[1] is None:
            continue
        wires.setdefault(wire_id, Wire(origin, slots[0], target, slots[1]))
    return wires


_WIRE = ("id", "origin_id", "origin_slot", "target_id", "target_slot")


def _objects(items: Any) -> list[Mapping[str, Any]]:
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _text(value: Any) -> str | None:
    """An id as text; ids are numbers or texts."""
    if isinstance(value, str):
        return value or None
    plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return str(value) if plain else None


_LARGEST = 1 << 64


def _index(value: Any) -> int | None:
    """The number of a slot; files of older versions have it as text here and there."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 4:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _type(value: Any) -> str:
    if isinstance(value, list):
        return "COMBO"
    return value if isinstance(value, str) else "*"
