"""Nodes that others expand into while they run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from workflows.binding import SOURCES, UNCALLED, BoundNode
from workflows.failures import node_failed
from workflows.graph import Graph, Link, Node
from workflows.problems import invalid_workflow
from workflows.protocol import is_link
from workflows.world import Outputs, Sources, World

MAX_EXPANDED = 20_000
"""Nodes that one run may expand into."""


class Expansions:
    """Those of one run, by id. Stream nodes among them are put into ``done`` or ``unknown``."""

    def __init__(self, world: World, done: dict[str, Outputs], unknown: dict[str, Sources]) -> None:
        self.nodes: dict[str, BoundNode] = {}
        self._world = world
        self._done = done
        self._unknown = unknown

    def add(self, parent: str, item: BoundNode, graph: Mapping[str, Any]) -> list[str]:
        """Take in what a node expands into; the output nodes among it, which run whoever needs them."""
        world, roots = self._world, []
        if len(self.nodes) + len(graph) > MAX_EXPANDED:
            error = ValueError(f"it expands into more than {MAX_EXPANDED} nodes")
            raise node_failed(item.node, error)
        for node_id, entry in graph.items():
            if node_id in self.nodes or node_id in world.bound or node_id in self._unknown:
                raise node_failed(item.node, ValueError(f"it expands into a node {node_id}, which exists"))
            node = _node(node_id, entry)
            world.prompt.add_ephemeral_node(
                node_id, entry, parent, entry.get("override_display_id") or parent
            )
            if node.class_type in UNCALLED:
                self._stand_in(node)
                continue
            bound = self.nodes[node_id] = self._bound(node, item)
            if bound.definition.is_output:
                roots.append(node_id)
        return roots

    def _bound(self, node: Node, parent: BoundNode) -> BoundNode:
        """With the instance that an earlier run had for a node of that name."""
        world = self._world
        if node.class_type not in world.registry.definitions:
            raise node_failed(
                parent.node, ValueError(f"it expands into the class {node.class_type}, which there is not")
            )
        known = world.expanded.get(node.id)
        if known is not None and known.node.class_type == node.class_type:
            bound = known.under(node, world.prompt)
        else:
            bound = BoundNode(node, world.registry, world.prompt)
        problems = list(world.registry.refusals(Graph.of((node,)), node))
        if problems:
            raise invalid_workflow(problems)
        if len(world.expanded) >= MAX_EXPANDED:
            world.expanded.clear()  # of names that never come again
        world.expanded[node.id] = bound
        return bound

    def _stand_in(self, node: Node) -> None:
        """Stream nodes within an expansion: a source is the stream's, an editor's preview is nothing."""
        if node.class_type in SOURCES and node.class_type in self._world.source_values:
            self._done[node.id] = self._world.source_values[node.class_type]
        elif node.class_type in SOURCES:
            self._unknown[node.id] = frozenset({"video"})
        else:
            self._done[node.id] = ()


def _node(node_id: str, entry: Any) -> Node:
    """A node of an expansion; its values are whatever the node that expands puts there."""
    class_type, given = str(entry.get("class_type")), entry.get("inputs") or {}
    inputs = {name: Link(value[0], value[1]) if is_link(value) else value for name, value in given.items()}
    return Node(node_id, class_type, class_type, MappingProxyType(inputs))
