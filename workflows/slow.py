"""Which nodes send a graph by the slow road, told from definitions alone."""

from __future__ import annotations

from workflows.binding import lazy_links, link_arguments
from workflows.check import needed_nodes
from workflows.definitions import Definitions
from workflows.evaluation import EXPANDS, LAZY
from workflows.graph import Graph
from workflows.stream_rules import frame_sources
from workflows.topology import downstream


def slow_nodes(graph: Graph, definitions: Definitions, output_node: str | None = None) -> dict[str, str]:
    """The nodes of a converted graph for which each frame is run node by node, and why.

    A node whose lazy inputs are decided by constants is planned. Nodes of the older kind only show that they
    expand into others when they run; then they join these.
    """
    per_frame = downstream(graph, frame_sources(graph)) & needed_nodes(graph, definitions, output_node)
    found: dict[str, str] = {}
    for node in graph:
        definition = definitions.get(node.class_type)
        if node.id not in per_frame or definition is None:
            continue
        lazy = lazy_links(node, definition)
        strong = {link.node_id for name, link in link_arguments(node, definition) if name not in lazy}
        if definition.expands:
            found[node.id] = EXPANDS
        elif lazy and (strong & per_frame or node.after_generate):
            found[node.id] = LAZY
    return found
