"""Any of the forms in which a workflow comes, as a graph.

Forms of data: API format, what ComfyUI's editor saves, and the body of its ``POST /prompt``, which may hold
both. Forms of files: JSON text, and pictures that carry a workflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from workflows.carriers import carried_workflow, is_picture
from workflows.definitions import Definitions
from workflows.editor.conversion import convert
from workflows.graph import (
    LIMITS,
    SHARED,
    Graph,
    Limits,
    Link,
    Node,
    is_editor_format,
    load_json,
    read_graph,
)
from workflows.problems import Problem


def load(content: str | bytes, name: str = "workflow", limits: Limits = LIMITS) -> Any:
    """The workflow data in the content of a file: JSON text, or a PNG, WebP or JPEG that carries one.

    ``name`` is what the file is called in errors. Raises `InvalidWorkflow`, `TooLarge`.
    """
    if isinstance(content, bytes) and is_picture(content):
        return carried_workflow(content, name, limits)
    return load_json(content, name, limits)


def read(data: Any, definitions: Definitions, limits: Limits = LIMITS) -> tuple[Graph, list[Problem]]:
    """The graph that workflow ``data`` means, and what is wrong with the rest; never raises.

    What the editor saves has its widgets' names from ``definitions``. Of both formats at once API format
    counts, and the other for what becomes of values after a run.
    """
    prompt, drawn = both_formats(data)
    if prompt is not None and is_editor_format(drawn):
        graph, problems = read_graph(prompt, limits)
        if not graph:
            return read(drawn, definitions, limits)
        return _with_rules(graph, convert(drawn, definitions, limits)[0]), problems
    if not is_editor_format(data):
        return read_graph(data, limits)
    converted, problems = convert(data, definitions, limits)
    if not converted:
        return Graph.of(()), problems
    graph, found = read_graph(converted, limits)
    return graph, problems + found


def to_api(data: Any, definitions: Definitions, limits: Limits = LIMITS) -> dict[str, Any]:
    """Workflow data in API format, whatever the form of ``data``: as much of it as can be read."""
    graph, _ = read(data, definitions, limits)
    return graph.to_api()


def both_formats(data: Any) -> tuple[Any, Any]:
    """API format and editor's format out of the body of a ``POST /prompt``; None for what is not there."""
    if not isinstance(data, Mapping) or not isinstance(data.get("prompt"), Mapping):
        return None, None
    extra = data.get("extra_data")
    info = extra.get("extra_pnginfo") if isinstance(extra, Mapping) else None
    return data["prompt"], info.get("workflow") if isinstance(info, Mapping) else None


def _with_rules(graph: Graph, drawn: Mapping[str, Any]) -> Graph:
    """What becomes of values after a run, from the same workflow as the editor has it."""
    changed: dict[str, Node] = {}
    for node in graph:
        entry = drawn.get(node.id, {})
        meta = entry.get("_meta", {})
        literals = {name for name, value in node.inputs.items() if not isinstance(value, Link)}
        own, shared = (
            MappingProxyType({name: said for name, said in meta.get(key, {}).items() if name in literals})
            for key in ("control_after_generate", SHARED)
        )
        if own and entry["class_type"] == node.class_type and not node.after_generate:
            changed[node.id] = replace(node, after_generate=own, shared=shared)
    return graph.with_nodes(changed)
