"""Tuned values written back into a workflow's JSON, which stays as it is in everything else.

In API format a value has one place. What ComfyUI's editor saves has values in lists whose order only the
reading of the whole file knows; there a place is found by trying: a candidate is written, the file is read
again, and it is the right one when that value, and nothing else, has become another.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stream.errors import Conflict
from workflows.graph import Graph

Read = Callable[[Any], Graph]
"""Workflow data as the graph that it means, as far as it can be read."""
Slot = tuple[Any, Any]
"""A container of the data, and a value's key or index in it."""

MAX_TRIES = 40
"""Readings of the file for one value."""


class NoPlace(Conflict):
    """A value that the file has no place of its own for; ``details`` names node and input."""

    code = "no_place_for_value"


def with_values(data: Any, values: Mapping[tuple[str, str], Any], read: Read) -> Any:
    """A copy of workflow ``data`` (either format, or the body of a ``POST /prompt``) with other literals, by
    node id and input.

    Raises `NoPlace` that names every value which cannot be written.
    """
    tuned, lost = copy.deepcopy(data), list[tuple[str, str]]()
    for (node_id, name), value in values.items():
        if not _set(tuned, node_id, name, value, read):
            lost.append((node_id, name))
    if lost:
        names = ", ".join(f"{node_id}.{name}" for node_id, name in lost)
        raise NoPlace(
            f"the file has no place of its own for {names} (a value of a part that is used several times, or "
            "one that the editor works out); change it in the editor, or export the workflow as API",
            field="workflow",
            details=[
                {"node_id": node_id, "input": name, "message": f"{node_id}.{name} cannot be written"}
                for node_id, name in lost
            ],
        )
    return tuned


def _set(data: Any, node_id: str, name: str, value: Any, read: Read) -> bool:
    before = read(data)
    node = before.nodes.get(node_id)
    if node is None or name not in node.inputs:
        return False
    api = _api_inputs(data, node_id)
    if api is not None:
        api[name] = {"__value__": copy.deepcopy(value)} if isinstance(value, list) else value
        return True
    old = node.inputs[name]
    if _same(old, value):
        return True
    slots = (slot for slot in _slots(data, node_id, name) if _same(slot[0][slot[1]], old))
    for container, key in itertools.islice(slots, MAX_TRIES):
        kept = container[key]
        container[key] = value
        if _only_change(before, read(data), node_id, name, value):
            _set_named(data, container, name, value)
            return True
        container[key] = kept
    return False


def _api_inputs(data: Any, node_id: str) -> dict[str, Any] | None:
    """The inputs of a node of API format."""
    if not isinstance(data, dict):
        return None
    nodes = data["prompt"] if isinstance(data.get("prompt"), dict) else data
    node = nodes.get(node_id)
    inputs = node.get("inputs") if isinstance(node, dict) and "class_type" in node else None
    return inputs if isinstance(inputs, dict) else None


def _slots(data: Any, node_id: str, name: str) -> Iterator[Slot]:
    """Where the value may stand: with the node itself, else with one around it that promotes its widget, or
    with one that it is linked to (a primitive)."""
    ids = node_id.split(":")
    near: list[Slot] = []
    far: list[Slot] = []
    for node in _editor_nodes(data):
        slots = [
            (values, key)
            for values in (node.get("widgets_values"),)
            if isinstance(values, list | dict)
            for key in (range(len(values)) if isinstance(values, list) else (k for k in values if k == name))
        ]
        (near if str(node.get("id")) == ids[-1] else far).extend(slots)
    yield from near
    yield from far


def _editor_nodes(data: Any) -> Iterator[dict[str, Any]]:
    """The nodes of an editor's file, those of its subgraphs too."""
    if not isinstance(data, dict):
        return
    definitions = data.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    for graph in (data, *(subgraphs if isinstance(subgraphs, list) else ())):
        nodes = graph.get("nodes") if isinstance(graph, dict) else None
        yield from (node for node in nodes if isinstance(node, dict)) if isinstance(nodes, list) else ()


def _set_named(data: Any, container: Any, name: str, value: Any) -> None:
    """The copy by name that newer editors save beside the list."""
    for node in _editor_nodes(data):
        named = node.get("widgets_values_named")
        if node.get("widgets_values") is container and isinstance(named, dict) and name in named:
            named[name] = value


def _only_change(before: Graph, after: Graph, node_id: str, name: str, value: Any) -> bool:
    if list(before.nodes) != list(after.nodes):
        return False
    for node in after:
        changed = before.nodes[node.id].changed_literals(node)
        if changed is None or set(changed) != ({name} if node.id == node_id else set()):
            return False
    return _same(after.nodes[node_id].inputs[name], value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)
