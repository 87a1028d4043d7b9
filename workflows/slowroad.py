"""One run of a flow by the slow road, from its beginning or from where the planned calls could not go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workflows import stream_rules
from workflows.compiler import Program
from workflows.constants import copied
from workflows.evaluation import Evaluation
from workflows.graph import Link
from workflows.layout import LAST_SOUND, Flow, Step, empty_mask
from workflows.protocol import is_blocker
from workflows.rules import by_rule
from workflows.world import Outputs


@dataclass
class Given:
    """What a run begins with: a picture, a stretch of sound, and the slots before ``step`` if planned calls
    have come that far; ``result`` holds what that step gave, if it was called."""

    slots: list[Any] | None = None
    step: Step | None = None
    result: tuple[Any, ...] = ()
    image: Any = None
    audio: Any = None


@dataclass
class Result:
    """What a run gave. ``values`` are its slots, as far as the other flow wants them."""

    video: Any = None
    audio: list[Any] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, flow: Flow, slots: list[Any]) -> Result:
        video = None if flow.video is None else slots[flow.video]
        return cls(video, [slots[slot] for slot in flow.audio], [slots[slot] for slot in flow.texts], slots)


async def by_slow_road(program: Program, flow: Flow, given: Given) -> tuple[Result, Evaluation]:
    """Raises as `Evaluation.demand` does."""
    slots = given.slots
    done = _known(program, flow, given.image, given.audio)
    prompt = program.world.prompt
    for ephemeral in (prompt.ephemeral_prompt, prompt.ephemeral_parents, prompt.ephemeral_display):
        ephemeral.clear()
    program.world.source_values = {
        node.class_type: done[node.id]
        for node in program.graph
        if node.class_type in (stream_rules.LOAD, stream_rules.LOAD_AUDIO)
    }
    program.world.overrides = _overrides(program, flow, fresh=slots is None)
    evaluation = Evaluation(program.world, done)
    if slots is not None and given.step is not None:
        _take_over(evaluation, flow, slots, given.step, given.result)
    await evaluation.demand(root for root in flow.sinks.roots() if root not in evaluation.done)
    for _, (node_id, _output) in flow.held_out:
        if node_id not in evaluation.done:
            await evaluation.demand([node_id])
    _keep_late(program, evaluation)
    return _result(flow, evaluation), evaluation


def _known(program: Program, flow: Flow, image: Any, audio: Any) -> dict[str, Outputs]:
    done: dict[str, Outputs] = {**program.late, **program.constants}
    for node_id in program.written & done.keys():
        done[node_id] = tuple(copied(values) for values in done[node_id])
    for node in program.graph:
        if node.class_type == stream_rules.LOAD:
            picture = program.held.get((node.id, 0)) if image is None else image
            done[node.id] = ([picture], [empty_mask()])
        elif node.class_type == stream_rules.LOAD_AUDIO:
            sound = program.held.get(LAST_SOUND) if audio is None else audio
            done[node.id] = ([sound],)
    held: dict[str, dict[int, Any]] = {}
    for _, (node_id, output) in flow.held_in:
        value = program.held.get((node_id, output))
        if node_id in program.bound and value is not None:
            held.setdefault(node_id, {})[output] = value
    for node_id, outputs in held.items():
        done[node_id] = _spread(outputs, node_id, flow)
    return done


def _spread(outputs: dict[int, Any], node_id: str, flow: Flow) -> Outputs:
    width = max(outputs) + 1
    return tuple(
        (outputs[index] if (node_id, index) in flow.lists else [outputs[index]]) if index in outputs else []
        for index in range(width)
    )


def _overrides(program: Program, flow: Flow, *, fresh: bool) -> dict[str, dict[str, Any]]:
    """The literals of this run; those that the planned calls began with where they did."""
    found: dict[str, dict[str, Any]] = {}
    if fresh:
        for rule, places in by_rule(program.rules):
            value = rule.next()
            for node_id, name in places:
                found.setdefault(node_id, {})[name] = value
        return found
    statics = {id(step.static): step.node.id for step in flow.steps}
    for _, ticked in flow.ticks:
        for static, name in ticked:
            found.setdefault(statics[id(static)], {})[name] = static[name]
    return found


def _take_over(
    evaluation: Evaluation, flow: Flow, slots: list[Any], last: Step, result: tuple[Any, ...]
) -> None:
    """Let the evaluation know what the planned calls up to ``last`` gave, as far as it is still there."""
    for step in flow.steps:
        if step is last:
            break
        values = {index: slots[slot] for index, slot in step.outputs}
        if any(value is None for value in values.values()):
            continue  # given up already; whatever needs it runs it again
        if values:
            evaluation.done[step.node.id] = _spread(values, step.node.id, flow)
        else:
            evaluation.done[step.node.id] = ()
    if result:
        evaluation.raw[last.node.id] = result[0]


def _keep_late(program: Program, evaluation: Evaluation) -> None:
    """Nodes that depend on nothing that changes run once, even if only a frame called for them."""
    for node_id in program.bound.keys() - program.changing:
        if node_id in evaluation.done and node_id not in program.constants and node_id not in program.late:
            program.late[node_id] = evaluation.done[node_id]


def _result(flow: Flow, evaluation: Evaluation) -> Result:
    def value(link: Link) -> Any:
        outputs = evaluation.done[link.node_id]
        values = outputs[link.output]
        shown = [item for item in values if not is_blocker(item)]
        if not shown and values:
            return values[0]
        return shown[0] if len(values) == 1 else shown

    sinks = flow.sinks
    video_link = sinks.video.inputs.get("images") if sinks.video is not None else None
    audio_links = [node.inputs.get("audio") for node in sinks.audio]
    result = Result()
    result.video = value(video_link) if isinstance(video_link, Link) else None
    result.audio = [value(link) for link in audio_links if isinstance(link, Link)]
    result.texts = [value(Link(node_id, 0)) for node_id in sinks.texts]
    result.values = [None] * len(flow.slots)
    for slot, (node_id, output) in flow.held_out:
        result.values[slot] = value(Link(node_id, output))
    return result
