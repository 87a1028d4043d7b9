"""Flows: what runs for each picture, or for each stretch of sound, as a flat list of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows import stream_rules
from workflows.binding import BoundNode
from workflows.constants import copied
from workflows.graph import Graph, Link, Node
from workflows.results import NotPlain, mapped, mapped_async, taking_lists
from workflows.rules import Rule, by_rule
from workflows.world import Outputs, Residual

Slot = int
Output = tuple[str, int]
FRAME_SLOT: Slot = 0
"""Holds the frame's tensor."""
MASK_SLOT: Slot = 1
"""Holds the MASK of a LoadTensor: empty, as LoadImage gives it for a picture without alpha."""
AUDIO_SLOT: Slot = 2
"""Holds the AUDIO of a LoadAudioTensor."""
LAST_SOUND: Output = ("", AUDIO_SLOT)
"""Among held values: the last stretch of sound."""


@dataclass(frozen=True)
class Step:
    """One call. ``outputs`` pairs an index into its result with a slot; ``release`` are slots of no more use.

    ``width`` is how many outputs the result must have at least. ``awaits`` are the slots that may still be
    worked on by an async step before it.
    """

    node: Node
    call: Callable[..., Any]
    is_async: bool
    width: int
    static: dict[str, Any]
    links: tuple[tuple[str, Slot], ...]
    outputs: tuple[tuple[int, Slot], ...]
    release: tuple[Slot, ...]
    overlaps: bool = False
    """Whether steps after it can go on while this async one waits."""

    def give_back(self, slots: list[Any], arguments: Mapping[str, Any]) -> None:
        """Put what the step was given back into the slots that it emptied."""
        for name, slot in self.links:
            slots[slot] = arguments[name]

    def for_loop(self) -> tuple[Any, ...]:
        """The step as the inner loop unpacks it; a slot that is given up is emptied as it is read."""
        last = {slot: index for index, (_, slot) in enumerate(self.links) if slot in self.release}
        taken = tuple(link for index, link in enumerate(self.links) if index in last.values())
        kept = tuple(link for index, link in enumerate(self.links) if index not in last.values())
        return self.call, self.static.copy, kept, taken, self.width, self.outputs


Tick = tuple[Rule, tuple[tuple[dict[str, Any], str], ...]]
"""A rule, and the arguments by name that have its value in a run."""


@dataclass(frozen=True)
class Sinks:
    """What a flow gives: nodes whose input goes out, and nodes that are run for what they do."""

    video: Node | None = None
    audio: tuple[Node, ...] = ()
    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def links(self) -> list[Link]:
        links = [self.video.inputs.get("images")] if self.video is not None else []
        links += [node.inputs.get("audio") for node in self.audio]
        return [link for link in links if isinstance(link, Link)]

    def roots(self) -> list[str]:
        """The nodes that must have run."""
        return [*(link.node_id for link in self.links()), *self.texts, *self.others]

    def __bool__(self) -> bool:
        return bool(self.video or self.audio or self.texts or self.others)


@dataclass
class Flow:
    """All that a run needs. ``slots`` are the values that it starts with; ``video`` and ``audio`` are the
    slots of what goes out, None where nothing does; ``texts`` those of the texts.

    ``held_in`` and ``held_out`` are outputs that the other flow gives, or needs. ``slow`` says of nodes why
    the whole flow runs by the slow road.
    """

    sinks: Sinks
    nodes: frozenset[str]
    slow: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    calls: tuple[tuple[Any, ...], ...] = ()
    slots: list[Any] = field(default_factory=list)
    video: Slot | None = None
    audio: tuple[Slot, ...] = ()
    texts: tuple[Slot, ...] = ()
    held_in: tuple[tuple[Slot, Output], ...] = ()
    held_out: tuple[tuple[Slot, Output], ...] = ()
    ticks: tuple[Tick, ...] = ()
    is_async: bool = False
    slot_of: Mapping[Output, Slot] = field(default_factory=dict)
    lists: frozenset[Output] = frozenset()


class Layout:
    """Numbers the slots of one flow and writes its steps."""

    def __init__(
        self,
        graph: Graph,
        bound: Mapping[str, BoundNode],
        constants: Mapping[str, Outputs],
        residual: Mapping[str, Residual],
        rules: Mapping[tuple[str, str], Rule],
        written: Collection[str],
        outgoing: Iterable[Link],
    ) -> None:
        self._graph = graph
        self._bound = bound
        self._constants = constants
        self._residual = residual
        self._rules = rules
        self._written = written
        self._outgoing = list(outgoing)
        self._lists = {
            (node_id, output)
            for node_id, outputs in constants.items()
            for output, values in enumerate(outputs)
            if len(values) != 1
        }
        for node_id in residual:
            lists = bound[node_id].lists_out
            lists_in = self._list_inputs(node_id)
            each = bool(lists_in) and not bound[node_id].definition.input_is_list
            for output in range(bound[node_id].outputs):
                if each or (output < len(lists) and lists[output]):
                    self._lists.add((node_id, output))

    def flow(
        self, sinks: Sinks, nodes: Iterable[str], held: Collection[str], wanted: Collection[str]
    ) -> Flow:
        """``nodes`` in order; outputs of ``held`` nodes come from the other flow, those of ``wanted`` go
        there."""
        self._slots: list[Any] = [None, None, None]
        self._slot_of: dict[Output, Slot] = {}
        order = self._by_depth(list(nodes))
        links = {node_id: self._step_links(node_id) for node_id in order}
        video = [self._slot(link) for link in _links(sinks.video, "images")]
        audio = tuple(self._slot(link) for node in sinks.audio for link in _links(node, "audio"))
        texts = tuple(self._slot(Link(node_id, 0)) for node_id in sinks.texts)
        held_out = tuple(
            (self._slot(Link(*output)), output)
            for output in self._used()
            if output[0] in wanted and (output[0] in links or output[0] not in self._bound)
        )
        held_in = tuple((slot, output) for output, slot in self._slot_of.items() if output[0] in held)
        if any(slot == MASK_SLOT for pairs in links.values() for _, slot in pairs):
            self._slots[MASK_SLOT] = empty_mask()
        last_use = {slot: node_id for node_id in order for _, slot in links[node_id]}
        for slot in (*video, *audio, *texts, *(slot for slot, _ in held_out)):  # wanted after the last step
            last_use.pop(slot, None)
        steps = [self._step(node_id, links[node_id], last_use) for node_id in order]
        steps = _overlapping(steps)
        return Flow(
            sinks=sinks,
            nodes=frozenset(order),
            steps=tuple(steps),
            calls=tuple(step.for_loop() for step in steps),
            slots=self._slots,
            video=video[0] if video else None,
            audio=audio,
            texts=texts,
            held_in=held_in,
            held_out=held_out,
            ticks=self._ticks(steps),
            is_async=any(step.is_async for step in steps),
            slot_of=self._slot_of,
            lists=frozenset(self._lists),
        )

    def _used(self) -> list[Output]:
        links = [link for item in self._residual.values() for _, link in item.links]
        return list(dict.fromkeys((link.node_id, link.output) for link in (*links, *self._outgoing)))

    def _by_depth(self, order: list[str]) -> list[str]:
        """The same order, with what must wait for async nodes behind what need not."""
        depth: dict[str, int] = {}
        for node_id in order:
            feeds = [link.node_id for _, link in self._residual[node_id].links if link.node_id in depth]
            depth[node_id] = max((depth[feed] + self._bound[feed].is_async for feed in feeds), default=0)
        return sorted(order, key=lambda node_id: depth[node_id])

    def _slot(self, link: Link) -> Slot:
        class_type = self._graph.nodes[link.node_id].class_type
        output = (link.node_id, link.output)
        if class_type == stream_rules.LOAD:
            slot = (FRAME_SLOT, MASK_SLOT)[link.output]
            self._slot_of[output] = slot
            return slot
        if class_type == stream_rules.LOAD_AUDIO:
            self._slot_of[output] = AUDIO_SLOT
            return AUDIO_SLOT
        if output not in self._slot_of:
            self._slot_of[output] = len(self._slots)
            constant = self._constants.get(link.node_id)
            self._slots.append(None if constant is None else _plain(constant[link.output]))
        return self._slot_of[output]

    def _list_inputs(self, node_id: str) -> frozenset[str]:
        links = self._residual[node_id].links
        return frozenset(name for name, link in links if (link.node_id, link.output) in self._lists)

    def _step_links(self, node_id: str) -> list[tuple[str, Slot]]:
        """Arguments that another step computes; those of constant nodes are written into the step instead."""
        links = self._residual[node_id].links
        return [(name, self._slot(link)) for name, link in links if link.node_id not in self._constants]

    def _step(self, node_id: str, links: list[tuple[str, Slot]], last_use: Mapping[Slot, str]) -> Step:
        item, residual = self._bound[node_id], self._residual[node_id]
        static = dict.fromkeys(residual.unasked, None) | item.literals()
        fresh = []
        for name, link in residual.links:
            if link.node_id in self._constants:
                static[name] = _plain(self._constants[link.node_id][link.output])
                if link.node_id in self._written:
                    fresh.append(name)
        outputs = tuple((output, slot) for (owner, output), slot in self._slot_of.items() if owner == node_id)
        release = tuple(dict.fromkeys(slot for _, slot in links if last_use.get(slot) == node_id))
        width = 1 + max((index for index, _ in outputs), default=-1)
        call = self._call(node_id, width)
        if fresh:
            call = _with_copies(call, tuple(fresh))
        return Step(item.node, call, item.is_async, width, static, tuple(links), outputs, release)

    def _call(self, node_id: str, width: int) -> Callable[..., Any]:
        item, residual = self._bound[node_id], self._residual[node_id]
        call = item.call
        if residual.is_settled and residual.unasked:
            call = _checked_lazy(item.lazy_check, call, residual.unasked, item.is_async)
        list_inputs = self._list_inputs(node_id)
        if item.definition.input_is_list:
            return taking_lists(call, list_inputs, item.outputs, item.is_async)
        if list_inputs:
            each = mapped_async if item.is_async else mapped
            return each(call, list_inputs, item.lists_out, width, item.outputs)
        return call

    def _ticks(self, steps: Iterable[Step]) -> tuple[Tick, ...]:
        statics = {step.node.id: step.static for step in steps}
        ticks = []
        for rule, places in by_rule(self._rules):
            found = tuple((statics[node_id], name) for node_id, name in places if node_id in statics)
            if found:
                ticks.append((rule, found))
        return tuple(ticks)


def _plain(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _links(node: Node | None, name: str) -> list[Link]:
    value = node.inputs.get(name) if node is not None else None
    return [value] if isinstance(value, Link) else []


def _with_copies(call: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """For a node that writes into what it is given: it gets copies of constants."""

    def on_copies(**arguments: Any) -> Any:
        return call(**arguments | {name: copied(arguments[name]) for name in names})

    return on_copies


def _checked_lazy(
    check: Callable[..., Any], call: Callable[..., Any], unasked: frozenset[str], is_async: bool
) -> Callable[..., Any]:
    """For a node with lazy inputs that it did not ask for when the graph was planned: asks again each
    time."""

    def settled(arguments: dict[str, Any]) -> None:
        answer = check(**arguments)
        if asyncio.iscoroutine(answer):
            answer.close()
            raise NotPlain
        if not unasked.isdisjoint(answer or ()):
            raise NotPlain

    def run(**arguments: Any) -> Any:
        settled(arguments)
        return call(**arguments)

    async def run_async(**arguments: Any) -> Any:
        settled(arguments)
        return await call(**arguments)

    return run_async if is_async else run


def _overlapping(steps: list[Step]) -> list[Step]:
    """Mark the async steps that others can go on beside: where the next step does not need them."""
    marked = []
    for index, step in enumerate(steps):
        if step.is_async and index + 1 < len(steps):
            own = {slot for _, slot in step.outputs}
            overlaps = own.isdisjoint(slot for _, slot in steps[index + 1].links)
            step = Step(**{**vars(step), "overlaps": overlaps})
        marked.append(step)
    return marked


def empty_mask() -> Any:
    import torch

    return torch.zeros(1, 64, 64)
