"""From a graph and its bound nodes to a `Program`: the flat list of calls that runs for each frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workflows import stream_rules
from workflows.binding import BoundNode, link_arguments, literal_arguments, node_failed, runs_every_time
from workflows.graph import Graph, Link, Node
from workflows.results import unpack
from workflows.topology import downstream

Slot = int
FRAME_SLOT: Slot = 0
"""Holds the frame's tensor."""
MASK_SLOT: Slot = 1
"""Holds the MASK of a LoadTensor: empty, as LoadImage gives it for a picture without alpha."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call. ``outputs`` pairs an index into its result with a slot; ``release`` are slots of no more use.

    ``width`` is how many outputs the result must have at least.
    """

    node: Node
    call: Callable[..., Any]
    is_async: bool
    width: int
    static: dict[str, Any]
    links: tuple[tuple[str, Slot], ...]
    outputs: tuple[tuple[int, Slot], ...]
    release: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """All that running a frame needs; replaced as a whole, never changed.

    ``slots`` are the values that a frame starts with. ``video`` is the slot of what goes out as pictures,
    None when nothing does, `FRAME_SLOT` when it is the frame itself. ``texts`` are the slots of texts that
    go out with each frame, ``constant_texts`` those that never change. ``constants`` keeps the outputs of
    the nodes that ran once, ``volatile`` the ids of those that run each time because they say so.
    """

    graph: Graph
    steps: tuple[Step, ...]
    slots: list[Any]
    video: Slot | None
    video_node: Node | None
    texts: tuple[Slot, ...]
    constant_texts: tuple[Any, ...]
    constants: Mapping[str, tuple[Any, ...]]
    volatile: frozenset[str]
    shown: Mapping[str, Any]
    is_async: bool


async def build(
    graph: Graph,
    bound: Mapping[str, BoundNode],
    video_node: Node | None,
    previous: Program | None = None,
    changed: frozenset[str] = frozenset(),
) -> Program:
    """Run the constant nodes and lay out the steps.

    With a ``previous`` program of the same nodes, only the constant nodes that depend on the ``changed`` ones
    run again. Raises `ProcessorError` when a node fails.
    """
    volatile = set(previous.volatile - changed) if previous else set()
    for node_id in changed if previous else bound:
        if node_id in bound and await runs_every_time(graph, graph.nodes[node_id], bound[node_id]):
            volatile.add(node_id)
    sources = {node.id for node in graph if node.class_type == stream_rules.LOAD}
    per_frame = downstream(graph, sources | volatile)
    stale = downstream(graph, changed)
    kept = previous.constants if previous else {}
    widths = _used_widths(graph, bound)
    constants: dict[str, tuple[Any, ...]] = {}
    shown: dict[str, Any] = {}
    for node_id, item in bound.items():
        if node_id in per_frame:
            continue
        if node_id in kept and node_id not in stale:
            constants[node_id] = kept[node_id]
        else:
            arguments = _constant_arguments(graph, node_id, item, constants)
            constants[node_id], ui = await _run_once(graph.nodes[node_id], item, arguments, widths[node_id])
            if ui is not None:
                shown[node_id] = ui
    layout = _Layout(graph, bound, constants, video_node)
    return layout.program(volatile, shown)


def _used_widths(graph: Graph, bound: Mapping[str, BoundNode]) -> dict[str, int]:
    """How many outputs each node must give, counted to the last one that is used."""
    widths = {node_id: int(_is_text(item)) for node_id, item in bound.items()}
    for node in graph:
        for _, link in node.links():
            if link.node_id in widths:
                widths[link.node_id] = max(widths[link.node_id], link.output + 1)
    return widths


def _constant_arguments(
    graph: Graph, node_id: str, item: BoundNode, constants: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    arguments = literal_arguments(graph, graph.nodes[node_id], item.definition)
    for name, link in link_arguments(graph.nodes[node_id], item.definition):
        arguments[name] = constants[link.node_id][link.output]
    return arguments


async def _run_once(
    node: Node, item: BoundNode, arguments: dict[str, Any], width: int
) -> tuple[tuple[Any, ...], Any]:
    try:
        with item.guard():
            result = item.call(**arguments)
            if item.is_async:
                result = await result
        values, ui = unpack(result, width)
    except (Exception, SystemExit) as error:
        raise node_failed(node, error) from error
    return tuple(values), ui


class _Layout:
    """Numbers the slots of one program."""

    def __init__(
        self,
        graph: Graph,
        bound: Mapping[str, BoundNode],
        constants: Mapping[str, tuple[Any, ...]],
        video_node: Node | None,
    ) -> None:
        self._graph = graph
        self._bound = bound
        self._constants = constants
        self._video_node = video_node
        self._slots: list[Any] = [None, None]
        self._slot_of: dict[str, dict[int, Slot]] = {}

    def program(self, volatile: set[str], shown: Mapping[str, Any]) -> Program:
        per_frame = [node_id for node_id in self._bound if node_id not in self._constants]
        links = {node_id: self._step_links(node_id) for node_id in per_frame}
        video = self._video_slot()
        texts, constant_texts = self._texts()
        if any(slot == MASK_SLOT for pairs in links.values() for _, slot in pairs):
            self._slots[MASK_SLOT] = _empty_mask()
        last_use = {slot: node_id for node_id in per_frame for _, slot in links[node_id]}
        for slot in (video, *texts):  # wanted after the last step
            if slot is not None:
                last_use.pop(slot, None)
        return Program(
            graph=self._graph,
            steps=tuple(self._step(node_id, links[node_id], last_use) for node_id in per_frame),
            slots=self._slots,
            video=video,
            video_node=self._video_node,
            texts=texts,
            constant_texts=constant_texts,
            constants=self._constants,
            volatile=frozenset(volatile),
            shown=shown,
            is_async=any(self._bound[node_id].is_async for node_id in per_frame),
        )

    def _slot(self, node_id: str, output: int) -> Slot:
        if self._graph.nodes[node_id].class_type == stream_rules.LOAD:
            return (FRAME_SLOT, MASK_SLOT)[output]
        of_node = self._slot_of.setdefault(node_id, {})
        if output not in of_node:
            of_node[output] = len(self._slots)
            constant = self._constants.get(node_id)
            self._slots.append(None if constant is None else constant[output])
        return of_node[output]

    def _step_links(self, node_id: str) -> list[tuple[str, Slot]]:
        """Arguments that another step computes; those of constant nodes are written into the step instead."""
        return [
            (name, self._slot(link.node_id, link.output))
            for name, link in link_arguments(self._graph.nodes[node_id], self._bound[node_id].definition)
            if link.node_id not in self._constants
        ]

    def _step(self, node_id: str, links: list[tuple[str, Slot]], last_use: Mapping[Slot, str]) -> Step:
        node, item = self._graph.nodes[node_id], self._bound[node_id]
        static = literal_arguments(self._graph, node, item.definition)
        for name, link in link_arguments(node, item.definition):
            if link.node_id in self._constants:
                static[name] = self._constants[link.node_id][link.output]
        outputs = tuple(self._slot_of.get(node_id, {}).items())
        release = tuple(dict.fromkeys(slot for _, slot in links if last_use.get(slot) == node_id))
        width = 1 + max((index for index, _ in outputs), default=-1)
        return Step(node, item.call, item.is_async, width, static, tuple(links), outputs, release)

    def _video_slot(self) -> Slot | None:
        link = self._video_node.inputs.get("images") if self._video_node is not None else None
        return self._slot(link.node_id, link.output) if isinstance(link, Link) else None

    def _texts(self) -> tuple[tuple[Slot, ...], tuple[Any, ...]]:
        nodes = [node_id for node_id, item in self._bound.items() if _is_text(item)]
        constant = tuple(self._constants[node_id][0] for node_id in nodes if node_id in self._constants)
        return tuple(self._slot(node_id, 0) for node_id in nodes if node_id not in self._constants), constant


def _is_text(item: BoundNode) -> bool:
    return item.definition.class_type == stream_rules.SAVE_TEXT


def _empty_mask() -> Any:
    import torch

    return torch.zeros(1, 64, 64)
