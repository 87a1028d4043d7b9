"""In which engine a workflow runs, by the classes that it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workflows.problems import Problem, invalid_workflow

Place = Literal["builtin", "comfyui"]

MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Used:
    """A node class that a workflow names, and a node that does."""

    class_type: str
    node_id: str


def used_classes(data: Any) -> list[Used]:
    """The classes of a workflow in either format, or of a list of workflows; what cannot be read has none."""
    return list(_used(data, MAX_DEPTH))


def _used(data: Any, depth: int) -> Iterator[Used]:
    if depth <= 0:
        return
    if isinstance(data, list | tuple):
        for item in data:
            yield from _used(item, depth - 1)
        return
    if not isinstance(data, Mapping):
        return
    if isinstance(data.get("nodes"), list | tuple):
        yield from _of_editor(data, depth)
        return
    for node_id, node in data.items():
        if isinstance(node, Mapping) and isinstance(node.get("class_type"), str):
            yield Used(node["class_type"], str(node_id))
    if isinstance(data.get("prompt"), Mapping):
        yield from _used(data["prompt"], depth - 1)


def _of_editor(data: Mapping[str, Any], depth: int) -> Iterator[Used]:
    for node in data["nodes"]:
        if isinstance(node, Mapping) and isinstance(node.get("type"), str):
            yield Used(node["type"], str(node.get("id", "")))
    definitions = data.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    for subgraph in subgraphs if isinstance(subgraphs, list) else ():
        yield from _used(subgraph, depth - 1)


def place_of(
    used: Iterable[Used],
    builtin: Collection[str],
    comfyui: Collection[str],
    *,
    prefer_comfyui: bool = False,
) -> Place:
    """Where a workflow runs: in our engine what our nodes can do, else in ComfyUI's; never in both.

    Classes that nobody knows count for neither; whoever checks the workflow names them. Raises
    `InvalidWorkflow` for one that needs classes of both.
    """
    ours: list[Used] = []
    theirs: list[Used] = []
    shared = False
    for one in used:
        here, there = one.class_type in builtin, one.class_type in comfyui
        if here and not there:
            ours.append(one)
        elif there and not here:
            theirs.append(one)
        shared |= here and there
    if ours and theirs:
        raise invalid_workflow([_mixed(one, theirs[0]) for one in ours])
    if theirs:
        return "comfyui"
    return "comfyui" if prefer_comfyui and shared and not ours else "builtin"


def _mixed(one: Used, other: Used) -> Problem:
    return Problem(
        code="mixed_engines",
        message=(
            f"{one.class_type} is a node of Headrace's own, which ComfyUI does not have, and "
            f"{other.class_type} (node {other.node_id}) is one of ComfyUI's, which Headrace does not have: "
            "they run in different engines and cannot be in one workflow"
        ),
        node_id=one.node_id,
        class_type=one.class_type,
    )
