"""From what ComfyUI's editor saves to API format, as the editor itself does when it queues a workflow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from workflows.definitions import Definitions
from workflows.editor.drawing import read_file
from workflows.editor.scopes import EDITOR_ONLY, Placed, TooManyNodes, place_all
from workflows.editor.wiring import Constant, Endless, Wiring
from workflows.graph import SHARED, Limits, Link
from workflows.problems import Problem

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_GROUP_NODE = re.compile(r"workflow[>/]")


def convert(
    data: Mapping[str, Any], definitions: Definitions, limits: Limits
) -> tuple[dict[str, Any], list[Problem]]:
    """API-format data of an editor's file, and what of it cannot be read; never raises.

    Names of widgets come from ``definitions`` where the file does not have them. Ids of nodes in subgraphs
    are the ids on the way to them, joined by colons. What is muted or bypassed is not in the result.
    """
    file, problems = read_file(data, limits)
    if len(file.top.nodes) > limits.nodes:
        return {}, [Problem("too_large", f"the workflow has more than {limits.nodes} nodes")]
    try:
        top, found = place_all(file, definitions, limits)
    except TooManyNodes:
        message = f"with every subgraph in its place the workflow has more than {limits.nodes} nodes"
        return {}, [Problem("too_large", message)]
    problems += found
    wiring, nodes = Wiring(), dict[str, Any]()
    for placed in top.walk():
        if placed.inner is not None or placed.drawn.type in EDITOR_ONLY:
            continue
        refusal = _refusal(placed)
        if refusal is not None:
            problems.append(refusal)
            continue
        nodes[placed.path] = _node(placed, wiring, problems)
    for entry in nodes.values():
        _drop_dead_links(entry["inputs"], nodes)
    _keep_shared(nodes)
    if not nodes and not problems:
        problems = [Problem("empty_graph", "the workflow has no nodes that run")]
    return nodes, problems


def _refusal(placed: Placed) -> Problem | None:
    kind = placed.drawn.type
    if placed.definition is not None:
        return None
    if _UUID.fullmatch(kind):
        return placed.problem("missing_subgraph", "the file does not contain the subgraph of this node")
    if _GROUP_NODE.match(kind):
        message = (
            "group nodes are read no more; opening and saving the file in a newer ComfyUI makes subgraphs"
        )
        return placed.problem("group_node", message)
    return None


def _node(placed: Placed, wiring: Wiring, problems: list[Problem]) -> dict[str, Any]:
    inputs = {name: _literal(value) for name, value in placed.widgets.values.items()}
    shared: dict[str, str] = {}
    rules = dict(placed.widgets.after_generate)
    for index, slot in enumerate(placed.inputs):
        if slot.wire is None:
            continue
        name = slot.widget or slot.name
        try:
            source = wiring.source(placed, index)
        except Endless:
            problems.append(placed.problem("endless_wire", "the wire leads round in a circle", name))
            continue
        if isinstance(source, Link):
            inputs[name] = [source.node_id, source.output]
            rules.pop(name, None)
        elif isinstance(source, Constant) and (name in inputs or placed.definition is None):
            inputs[name] = _literal(source.value)
            if source.after_generate is not None:
                rules[name] = source.after_generate
            if source.name is not None:
                shared[name] = source.name
    meta: dict[str, Any] = {"title": placed.drawn.title or placed.drawn.type}
    if rules:
        meta["control_after_generate"] = rules
    if shared:
        meta[SHARED] = shared
    return {"class_type": placed.drawn.type, "inputs": inputs, "_meta": meta}


def _keep_shared(nodes: Mapping[str, Any]) -> None:
    """Only what several inputs share."""
    metas = [entry["_meta"] for entry in nodes.values() if SHARED in entry["_meta"]]
    feeds = Counter(name for meta in metas for name in meta[SHARED].values())
    for meta in metas:
        meta[SHARED] = {key: name for key, name in meta[SHARED].items() if feeds[name] > 1}
        if not meta[SHARED]:
            del meta[SHARED]


def _literal(value: Any) -> Any:
    """A list stands for a link in API format, so that a list as a value is wrapped."""
    return {"__value__": value} if isinstance(value, list) else value


def _drop_dead_links(inputs: dict[str, Any], nodes: Mapping[str, Any]) -> None:
    for name, value in list(inputs.items()):
        if isinstance(value, list) and value[0] not in nodes:
            del inputs[name]
