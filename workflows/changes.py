"""What is asked of a running workflow: another workflow, in any of the forms in which one comes, or other
values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stream.errors import InvalidInput, InvalidWorkflow
from workflows import library
from workflows.graph import RULE, Graph, load_json, looks_like_graph
from workflows.parameters import ParameterTable, Place
from workflows.rules import FIXED

WORKFLOW_KEYS = ("workflow", "prompt", "prompts")
MAX_WORKFLOWS = 16


def take_workflow(params: dict[str, Any], table: ParameterTable) -> Any:
    """Take the workflow out of ``params``; None without one (null counts as none).

    Raises `InvalidInput` when there are two. A node may be called "prompt"; what is given for it is then only
    a workflow when it looks like one.
    """
    for key in WORKFLOW_KEYS:
        if key in params and params[key] is None:
            del params[key]
    keys = [key for key in WORKFLOW_KEYS if key in params]
    keys = [key for key in keys if not (table.knows(key) and _is_for_node(params[key]))]
    if len(keys) > 1:
        raise InvalidInput(f"{' and '.join(keys)} are the same thing; give one", field=keys[1])
    if not keys:
        return None
    value = params.pop(keys[0])
    return _data(value, keys[0]) if isinstance(value, str | bytes) else value


def _is_for_node(value: Any) -> bool:
    return isinstance(value, Mapping) and not looks_like_graph(value)


def as_list(workflow: Any) -> list[Any]:
    """The workflows in ``workflow``, one or several in a row. Raises `InvalidWorkflow`."""
    if isinstance(workflow, str | bytes):
        workflow = _data(workflow)
    workflows = list(workflow) if isinstance(workflow, list | tuple) else [workflow]
    workflows = [_data(item) if isinstance(item, str | bytes) else item for item in workflows]
    if not workflows:
        raise InvalidWorkflow("an empty list of workflows; give at least one", field="workflow")
    if len(workflows) > MAX_WORKFLOWS:
        raise InvalidWorkflow(
            f"{len(workflows)} workflows in a row; the limit is {MAX_WORKFLOWS}", field="workflow"
        )
    return workflows


def _data(text: str | bytes, name: str = "workflow") -> Any:
    """The workflow that a text is, or names: a bundled one, never a file."""
    if isinstance(text, str) and text.strip() in library.names():
        return library.load_bundled(text.strip())
    return load_json(text, name)


def with_values(graphs: Sequence[Graph], values: Mapping[Place, Any]) -> list[Graph]:
    """The graphs with other literals and rules."""
    return [graph.with_values(of_graph(values, index)) for index, graph in enumerate(graphs)]


def of_graph(values: Mapping[Place, Any], index: int) -> dict[tuple[str, str], Any]:
    """Those values that are of one of the workflows, by node id and input."""
    return {(place.node_id, place.input): value for place, value in values.items() if place.graph == index}


def differing_values(old: Sequence[Graph], new: Sequence[Graph]) -> dict[Place, Any] | None:
    """What differs, when that is literals and rules alone, in whatever order nodes are written; else None."""
    if len(old) != len(new):
        return None
    values: dict[Place, Any] = {}
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        if before.nodes.keys() != after.nodes.keys():
            return None
        for node in after:
            was = before.nodes[node.id]
            found = was.changed_literals(replace(node, after_generate=was.after_generate))
            if found is None:
                return None
            values.update((Place(index, node.id, name), value) for name, value in found.items())
            for name in was.after_generate.keys() | node.after_generate.keys():
                rule = node.after_generate.get(name, FIXED)
                if rule != was.after_generate.get(name, FIXED):
                    values[Place(index, node.id, name + RULE)] = rule
    return values
