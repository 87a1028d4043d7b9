"""A workflow for one run: what never changes makes no stream, and one picture all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from headrace.server.specs import Spec, Specs
from stream.errors import InvalidWorkflow
from workflows import reading
from workflows.graph import Graph, Link

MAX_TRIES = 20
_SEEDS = ("seed", "noise_seed")
_NEVER_CHANGES = frozenset({"missing_input", "constant_output"})


def spec_for_one(data: Any, specs: Specs) -> Spec:
    """The spec of workflow ``data`` for one picture or clip.

    A graph without input whose seeds are fixed is refused as a stream. Here one of its whole numbers is said
    to change after a run, of which there is one, so that the number itself stays what it is. Raises
    `InvalidWorkflow`.
    """
    try:
        return specs.of_workflow(data)
    except InvalidWorkflow as refusal:
        if not refusal.details or {each.get("code") for each in refusal.details} - _NEVER_CHANGES:
            raise
        graph, problems = reading.read(data, specs.definitions)
        if problems:
            raise
        for node_id, name in islice(_changing(graph, specs), MAX_TRIES):
            changed = graph.to_api()
            changed[node_id]["_meta"]["control_after_generate"] = {name: "increment"}
            try:
                return specs.of_workflow(changed)
            except InvalidWorkflow:
                # That one reaches no output.
                continue
        raise


def _changing(graph: Graph, specs: Specs) -> Iterator[tuple[str, str]]:
    """Literals that a rule may change: seeds first, then any whole number of a node with a definition."""
    numbers = [
        (node.id, name)
        for node in graph
        if node.class_type in specs.definitions
        for name, value in node.inputs.items()
        if not isinstance(value, Link | bool | Mapping) and isinstance(value, int)
    ]
    yield from (place for place in numbers if place[1] in _SEEDS)
    yield from (place for place in numbers if place[1] not in _SEEDS)
