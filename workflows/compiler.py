"""From a graph and its bound nodes to a `Program`: what has run once, and what is to run each time.

A graph has up to two flows: what goes through it with each picture, and with each stretch of sound. What
depends on sound alone runs with sound; the flow of pictures finds the last of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows import stream_rules
from workflows.binding import BoundNode
from workflows.constants import Counted, Entry, GraphConstants
from workflows.evaluation import Evaluation
from workflows.graph import Graph, Node
from workflows.layout import Flow, Layout, Sinks
from workflows.questions import ALWAYS, fingerprint
from workflows.registry import NodeRegistry
from workflows.rules import Rule, rules_of
from workflows.topology import downstream
from workflows.world import Outputs, Sources, World

VIDEO, AUDIO, TICK = "video", "audio", "tick"
_SOURCE_OF = {stream_rules.LOAD: VIDEO, stream_rules.LOAD_AUDIO: AUDIO}


@dataclass
class Program:
    """All that running needs; replaced as a whole, never changed but for its ``held`` and ``late`` values.

    ``constants`` are the outputs of the nodes that ran once and ``entries`` what they are shared by;
    ``fingerprints`` what their IS_CHANGED said; ``volatile`` the nodes that say that they run each time;
    ``written`` the nodes whose results others write into. ``held`` are values that one flow has for the
    other, ``late`` constants that only turned out to be needed while frames ran.
    """

    graph: Graph
    bound: Mapping[str, BoundNode]
    world: World
    video: Flow
    audio: Flow
    video_node: Node | None
    constants: Mapping[str, Outputs]
    kept: GraphConstants
    constant_texts: tuple[Any, ...]
    fingerprints: Mapping[str, str]
    volatile: frozenset[str]
    written: frozenset[str]
    rules: Mapping[tuple[str, str], Rule]
    shown: Mapping[str, Any]
    blocked: Mapping[str, str]
    guards: tuple[tuple[Any, int], ...]
    changing: frozenset[str]
    held: dict[tuple[str, int], Any] = field(default_factory=dict)
    late: dict[str, Outputs] = field(default_factory=dict)

    @property
    def slow(self) -> dict[str, str]:
        """The nodes for which a flow runs by the slow road, and why."""
        return {**self.audio.slow, **self.video.slow}


async def build(
    graph: Graph,
    bound: Mapping[str, BoundNode],
    registry: NodeRegistry,
    video_node: Node | None,
    previous: Program | None = None,
    changed: frozenset[str] = frozenset(),
    written: frozenset[str] = frozenset(),
    report: Callable[[float], None] = lambda done: None,
) -> Program:
    """Run the constant part and lay out the flows. ``report`` is told how much of it has run, 0 to 1.

    With a ``previous`` program of the same nodes, only what depends on the ``changed`` ones runs again.
    Results of nodes in ``written`` are handed on as copies. Raises `ProcessorError` when a node fails.
    """
    # What others wrote into is the same file as before: a frame waits for it to be made anew.
    fingerprints, volatile = await _fingerprints(bound, previous, changed - written)
    definitions = {node_id: item.definition for node_id, item in bound.items()}
    rules = rules_of(graph, definitions, previous.rules if previous else {})
    ruled = {node_id for node_id, _ in rules}
    sources = _sources(graph, bound)
    ticks = {node_id: frozenset({TICK}) for node_id in volatile | ruled}
    changing = frozenset(downstream(graph, sources.keys() | ticks.keys()))
    done, kept = _reused(graph, fingerprints, previous, changed | (changing if previous else frozenset()))
    world = World(bound, registry, prompt_of(bound, graph), _used_widths(graph, bound))
    keeper = Counted(kept, len(bound.keys() - changing - done.keys()), report)
    evaluation = Evaluation(world, done, sources, ticks, keeper)
    sinks = _sinks(graph, bound, video_node)
    await evaluation.demand(root for sink in sinks for root in sink.roots() if root not in sources)
    for node_id in list(evaluation.done):
        if node_id not in bound:
            del evaluation.done[node_id]  # of an expansion
    constants = evaluation.done
    written = written | (previous.written if previous else frozenset())
    kept.entries = {node_id: entry for node_id, entry in kept.entries.items() if node_id in constants}
    video, audio = _flows(graph, bound, evaluation, sinks, rules, written)
    return Program(
        graph=graph,
        bound=bound,
        world=world,
        video=video,
        audio=audio,
        video_node=video_node,
        constants=constants,
        kept=kept,
        constant_texts=_constant_texts(bound, constants),
        fingerprints=fingerprints,
        volatile=frozenset(volatile),
        written=written,
        rules=rules,
        shown=evaluation.shown,
        blocked=evaluation.blocked,
        guards=_guards(video, audio, kept.entries, evaluation, written),
        changing=changing,
        held=dict(previous.held) if previous else {},
    )


async def _fingerprints(
    bound: Mapping[str, BoundNode], previous: Program | None, changed: frozenset[str]
) -> tuple[dict[str, str], set[str]]:
    """What IS_CHANGED says of each node, and the nodes that are to run each time."""
    found = dict(previous.fingerprints) if previous else {}
    volatile = set(previous.volatile - changed) if previous else set()
    for node_id in changed if previous else bound:
        item = bound.get(node_id)
        if item is None or not item.definition.may_change:
            continue
        found.pop(node_id, None)
        answer = await fingerprint(item)
        if answer is ALWAYS:
            volatile.add(node_id)
        elif answer is not None:
            found[node_id] = answer
    return found, volatile


def _sources(graph: Graph, bound: Mapping[str, BoundNode]) -> dict[str, Sources]:
    return {
        node.id: frozenset({_SOURCE_OF[node.class_type]}) for node in graph if node.class_type in _SOURCE_OF
    }


def _reused(
    graph: Graph, fingerprints: Mapping[str, str], previous: Program | None, stale_from: Iterable[str]
) -> tuple[dict[str, Outputs], GraphConstants]:
    """The constants of ``previous`` that hold still."""
    if previous is None:
        return {}, GraphConstants(fingerprints, {}, {})
    stale = downstream(graph, stale_from)
    done = {
        node_id: outputs
        for node_id, outputs in {**previous.late, **previous.constants}.items()
        if node_id not in stale
    }
    entries = {node_id: item for node_id, item in previous.kept.entries.items() if node_id in done}
    keys = {node_id: key for node_id, key in previous.kept.keys.items() if node_id in done}
    return done, GraphConstants(fingerprints, entries, keys)


def prompt_of(bound: Mapping[str, BoundNode], graph: Graph) -> Any:
    """The graph as the bound nodes see it."""
    for item in bound.values():
        return item.prompt
    from workflows.protocol import DynamicPrompt

    return DynamicPrompt(graph.to_api())


def _used_widths(graph: Graph, bound: Mapping[str, BoundNode]) -> dict[str, int]:
    """How many outputs each node must give, counted to the last one that is used."""
    widths = {node_id: int(item.is_text) for node_id, item in bound.items()}
    for node in graph:
        for _, link in node.links():
            if link.node_id in widths:
                widths[link.node_id] = max(widths[link.node_id], link.output + 1)
    return widths


def _sinks(graph: Graph, bound: Mapping[str, BoundNode], video_node: Node | None) -> tuple[Sinks, Sinks]:
    """What goes out with pictures, and what with sound; by what feeds them, whatever is asked of it."""
    by_video = downstream(graph, (node.id for node in graph if node.class_type == stream_rules.LOAD))
    by_audio = downstream(graph, (node.id for node in graph if node.class_type == stream_rules.LOAD_AUDIO))
    with_pictures = bool(by_video) or video_node is not None or not by_audio
    audio_nodes = tuple(node for node in graph if node.class_type == stream_rules.SAVE_AUDIO)
    run = [node_id for node_id, item in bound.items() if item.is_text or item.definition.is_output]

    def with_sound(node_id: str) -> bool:
        return not with_pictures or (node_id in by_audio and node_id not in by_video)

    texts = [node_id for node_id in run if bound[node_id].is_text]
    others = [node_id for node_id in run if not bound[node_id].is_text]
    return (
        Sinks(
            video_node,
            (),
            tuple(node_id for node_id in texts if not with_sound(node_id)),
            tuple(node_id for node_id in others if not with_sound(node_id)),
        ),
        Sinks(
            None,
            audio_nodes,
            tuple(node_id for node_id in texts if with_sound(node_id)),
            tuple(node_id for node_id in others if with_sound(node_id)),
        ),
    )


def _constant_texts(bound: Mapping[str, BoundNode], constants: Mapping[str, Outputs]) -> tuple[Any, ...]:
    found = [
        constants[node_id][0] for node_id, item in bound.items() if item.is_text and node_id in constants
    ]
    return tuple(text for texts in found for text in texts)


def _flows(
    graph: Graph,
    bound: Mapping[str, BoundNode],
    evaluation: Evaluation,
    sinks: tuple[Sinks, Sinks],
    rules: Mapping[tuple[str, str], Rule],
    written: frozenset[str],
) -> tuple[Flow, Flow]:
    residual = {node_id: item for node_id, item in evaluation.residual.items() if node_id in bound}
    unknown = evaluation.unknown
    feeds = {node_id: [link.node_id for _, link in item.links] for node_id, item in residual.items()}

    def upstream(roots: Iterable[str]) -> set[str]:
        reached: set[str] = set()
        pending = [root for root in roots if root in unknown]
        while pending:
            node_id = pending.pop()
            if node_id not in reached:
                reached.add(node_id)
                pending += (feed for feed in feeds.get(node_id, ()) if feed in unknown)
        return reached

    def is_sound(node_id: str) -> bool:
        return AUDIO in unknown[node_id] and VIDEO not in unknown[node_id]

    def is_picture(node_id: str) -> bool:
        return VIDEO in unknown[node_id] and AUDIO not in unknown[node_id]

    seen, heard = upstream(sinks[0].roots()), upstream(sinks[1].roots())
    to_video = {node_id for node_id in seen if is_sound(node_id)}
    to_audio = {node_id for node_id in heard if is_picture(node_id)}
    seen, heard = seen | upstream(to_audio), heard | upstream(to_video)
    seen -= {node_id for node_id in seen if is_sound(node_id)}
    heard -= {node_id for node_id in heard if is_picture(node_id)}
    slow = {node_id: reason for node_id, reason in evaluation.slow.items() if node_id in residual}
    outgoing = [link for sink in sinks for link in sink.links()]
    layout = Layout(graph, bound, evaluation.done, residual, rules, written, outgoing)
    flows = []
    for sink, among, held, wanted in (
        (sinks[0], seen, to_video, to_audio),
        (sinks[1], heard, to_audio, to_video),
    ):
        needed = [node_id for node_id in residual if node_id in among]
        needed_slow = {node_id: reason for node_id, reason in slow.items() if node_id in among}
        flow = layout.flow(_shown(sink, unknown), needed, held, wanted)
        flow.slow = needed_slow
        flow.is_async = flow.is_async or bool(needed_slow)
        flows.append(flow)
    return flows[0], flows[1]


def _shown(sinks: Sinks, unknown: Mapping[str, Sources]) -> Sinks:
    """Without the texts and nodes that have run for good."""
    return Sinks(
        sinks.video,
        sinks.audio,
        tuple(node_id for node_id in sinks.texts if node_id in unknown),
        tuple(node_id for node_id in sinks.others if node_id in unknown),
    )


def _guards(
    video: Flow, audio: Flow, entries: Mapping[str, Entry], evaluation: Evaluation, written: frozenset[str]
) -> tuple[tuple[Any, int], ...]:
    """The tensors of constants that flows are handed, each with the number of writes to it."""
    users = video.nodes | audio.nodes
    handed = {
        link.node_id
        for node_id, item in evaluation.residual.items()
        if node_id in users
        for _, link in item.links
        if link.node_id in entries and link.node_id not in written
    }
    found = {
        id(tensor): (tensor, version) for node_id in handed for tensor, version in entries[node_id].tensors
    }
    return tuple(found.values())
