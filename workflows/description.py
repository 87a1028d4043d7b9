"""What a workflow is, told before it runs: media, live parameters, what runs for each frame and what once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflows import stream_rules
from workflows.check import needed_nodes
from workflows.definitions import Definitions
from workflows.dynamic import inputs_of
from workflows.graph import Graph, Node
from workflows.parameters import ParameterTable
from workflows.slow import slow_nodes
from workflows.stream_rules import Modalities, frame_sources, modalities
from workflows.topology import downstream


@dataclass(frozen=True, slots=True)
class Description:
    """What a workflow takes, gives and lets one change.

    ``roles`` says of each node: ``input``, ``output``, ``frame`` (runs for each frame), ``constant`` (runs
    once) or ``unused``. ``ignored`` lists inputs in the file that the class does not have. ``slow`` says of
    nodes why a frame that needs them takes the slow road.
    """

    modalities: Modalities
    parameters: ParameterTable
    roles: dict[str, str]
    ignored: list[tuple[str, str]]
    slow: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "modalities": self.modalities.as_dict(),
            "nodes": self.roles,
            "ignored_inputs": [{"node_id": node_id, "input": name} for node_id, name in self.ignored],
            "slow_nodes": self.slow,
            "parameters": self.parameters.schema(),
        }


def describe(graph: Graph, definitions: Definitions, output_node: str | None = None) -> Description:
    """Modalities, live parameters and the role of each node, of a converted graph that has no problems.

    A node whose class has IS_CHANGED is counted as constant here; only the class itself can tell.
    """
    ignored = [
        (node.id, name)
        for node in graph
        if (definition := definitions.get(node.class_type)) is not None
        for name in node.inputs
        if name not in inputs_of(definition, node.inputs)
        and not definition.open_inputs
        and node.origin is None
    ]
    known_roles = roles(graph, definitions, output_node)
    slow = slow_nodes(graph, definitions, output_node)
    return Description(modalities([graph]), ParameterTable([graph], definitions), known_roles, ignored, slow)


def roles(graph: Graph, definitions: Definitions, output_node: str | None = None) -> dict[str, str]:
    """The role of each node; see `Description`."""
    live = needed_nodes(graph, definitions, output_node)
    inputs = {node.id for node in graph if node.class_type in (stream_rules.LOAD, stream_rules.LOAD_AUDIO)}
    per_frame = downstream(graph, frame_sources(graph))

    def role(node: Node) -> str:
        if node.id not in live:
            return "unused"
        if node.id in inputs:
            return "input"
        if node.class_type in stream_rules.OUTPUTS:
            return "output"
        return "frame" if node.id in per_frame else "constant"

    return {node.id: role(node) for node in graph}
