"""Which nodes take in and give out the stream, where a processor was told so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.errors import InvalidWorkflow
from workflows.changes import as_list
from workflows.check import prepare
from workflows.definitions import Definitions
from workflows.graph import Graph
from workflows.reading import read


@dataclass(frozen=True, slots=True)
class Chosen:
    """Ids of nodes. Each holds for the workflow that has the node, not for another beside or after it."""

    input_node: str | None = None
    output_node: str | None = None

    def graphs(self, workflow: Any, definitions: Definitions) -> list[Graph]:
        """Those of workflow data, or of a list of such, checked. Raises `InvalidWorkflow`."""
        chosen = self.input_node is not None or self.output_node is not None
        graphs = []
        for data in as_list(workflow):
            nodes = read(data, definitions)[0].nodes if chosen else {}
            graphs.append(
                prepare(
                    data,
                    definitions,
                    input_node=_in(nodes, self.input_node),
                    output_node=_in(nodes, self.output_node),
                )
            )
        return graphs

    def first_graphs(self, workflow: Any, definitions: Definitions) -> list[Graph]:
        """The same, where a node that was chosen must be in one of them."""
        graphs = self.graphs(workflow, definitions)
        for choice in (self.input_node, self.output_node):
            if choice is not None and not any(choice in graph.nodes for graph in graphs):
                raise InvalidWorkflow(f"there is no node {choice}, which was chosen", field="workflow")
        return graphs

    def output_of(self, graph: Graph) -> str | None:
        """The output that was chosen, if it is in ``graph``."""
        return _in(graph.nodes, self.output_node)


def _in(nodes: Mapping[str, Any], node_id: str | None) -> str | None:
    return node_id if node_id in nodes else None
