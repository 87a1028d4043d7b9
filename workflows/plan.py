"""A graph compiled to a flat list of calls.

What does not depend on the stream has run once when the plan is ready, and its results are written into the
arguments of the calls that need them. What does depend on it is a list of steps, each a bound method, its
arguments by name, and the numbered slots from which it takes and into which it puts values; running a frame
looks up nothing else. Stream nodes are no steps: slot 0 is the frame, and the picture that goes out is the
slot that the SaveTensor is linked to. A step whose result is none that could be planned (an execution
blocker, a graph to expand into) hands the frame over to the slow road, which is `workflows.evaluation`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from stream.errors import ProcessorError
from workflows.binding import BoundNode, bind, rebind
from workflows.check import needed_nodes, not_installed, prepare
from workflows.compiler import Program, build
from workflows.evaluation import EXPANDS
from workflows.failures import node_failed
from workflows.graph import Graph
from workflows.layout import AUDIO_SLOT, FRAME_SLOT, LAST_SOUND, Flow, Step
from workflows.problems import invalid_workflow
from workflows.protocol import IS_BLOCKER, TRIAL, is_blocker
from workflows.questions import ALWAYS, fingerprint, refusals
from workflows.registry import NodeRegistry
from workflows.results import NotPlain, checked, read
from workflows.slowroad import Given, Result, by_slow_road
from workflows.stream_rules import video_output
from workflows.topology import execution_order

T = TypeVar("T")


class NeedsLoop(ProcessorError):
    """A frame met an async node where none was planned; `Plan.run_async` can take it."""


class Plan:
    """A graph that is ready to run, with node instances of its own.

    `run` or `run_async` (where `is_async` says so), `hear` and `commit` must not overlap, nor two of
    `change`. That may run in another thread while frames run: it calls none of the nodes that they call.
    """

    def __init__(self, registry: NodeRegistry, program: Program) -> None:
        self._registry = registry
        self._program = program
        self._texts_due = True
        self._met_async = False
        self._expands: set[str] = set()
        self.shown: dict[str, Any] = dict(program.shown)
        """What nodes last gave for an editor to show (``ui``), by node id."""
        self.blocked: dict[str, str] = dict(program.blocked)
        """What execution blockers last said, by the id of the node that they kept from running."""

    @classmethod
    async def compile(
        cls,
        workflow: Any,
        registry: NodeRegistry,
        *,
        input_node: str | None = None,
        output_node: str | None = None,
        report: Callable[[float], None] = lambda done: None,
    ) -> Plan:
        """Check ``workflow`` (API-format data, or a graph from `prepare`) and run its constant part, of which
        ``report`` is told how much has run, 0 to 1.

        Raises `InvalidWorkflow` with every problem at once, `ProcessorError` when a node fails.
        """
        graph = workflow
        if not isinstance(workflow, Graph):
            graph = prepare(workflow, registry.definitions, input_node=input_node, output_node=output_node)
        order = execution_order(graph, needed_nodes(graph, registry.definitions, output_node))
        problems = not_installed(graph, order, registry.definitions)
        bound = bind(graph, order, registry)
        problems += await refusals(graph, order, bound, registry)
        if problems:
            raise invalid_workflow(problems)
        video_node, _ = video_output(graph, output_node)
        return cls(registry, await build(graph, bound, registry, video_node, report=report))

    @property
    def graph(self) -> Graph:
        return self._program.graph

    @property
    def is_async(self) -> bool:
        """Whether a picture may meet an async node, so that `run_async` must be used."""
        return self._program.video.is_async or self._met_async

    @property
    def has_video_output(self) -> bool:
        return self._program.video_node is not None

    @property
    def has_audio_output(self) -> bool:
        return bool(self._program.audio.sinks.audio)

    @property
    def hears(self) -> bool:
        """Whether anything is to be done with sound."""
        return bool(self._program.audio.sinks) or bool(self._program.audio.held_out)

    @property
    def sees(self) -> bool:
        """Whether anything is to be done with pictures, or they are to pass."""
        return bool(self._program.video.sinks) or bool(self._program.video.held_out) or not self.hears

    @property
    def needs_sound(self) -> bool:
        """Whether pictures are worked on with the last stretch of sound."""
        program = self._program
        return bool(program.video.held_in) or (bool(program.video.slow) and self.hears)

    @property
    def needs_pictures(self) -> bool:
        """Whether sound is worked on with the last picture."""
        return bool(self._program.audio.held_in)

    @property
    def output_label(self) -> str:
        """The node through which pictures leave, for messages."""
        node = self._program.video_node
        return "the workflow" if node is None else node.label

    @property
    def is_passthrough(self) -> bool:
        """Whether there is nothing to do: the frame goes out as it came in, and no node wants to see it."""
        video = self._program.video
        if video.steps or video.slow or video.held_out or self._program.constant_texts:
            return False
        return video.video == FRAME_SLOT or not self.has_video_output

    @property
    def is_plain(self) -> bool:
        """Whether nothing in it has a network, as far as is known; see `NodeRegistry.is_plain`."""
        return all(self._registry.is_plain(item.node.class_type) for item in self._program.bound.values())

    @property
    def steps(self) -> tuple[Step, ...]:
        """The calls made for each frame."""
        return self._program.video.steps

    @property
    def slow_nodes(self) -> dict[str, str]:
        """Ids of the nodes because of which the slow road is taken, and why."""
        return {**dict.fromkeys(self._expands, EXPANDS), **self._program.slow}

    def constant_nodes(self) -> set[str]:
        """Ids of the nodes that have run once and are kept."""
        return set(self._program.constants)

    # -- running ---------------------------------------------------------------------------------------

    def run(self, image: Any) -> tuple[Any, list[str]]:
        """Work on one frame; what goes out as pictures (None without a video output), and the texts.

        Pictures are a list where the graph gives a list of values, and an execution blocker where nothing is
        to go out. Raises `ProcessorError` that names the node, its class, its title and the cause.
        """
        program = self._program
        flow = program.video
        if flow.slow or self._expands:
            return self._told(self._driven(self._slowly(flow, Given(image=image))), flow)
        slots = flow.slots.copy()
        slots[FRAME_SLOT] = image
        if flow.held_in or flow.ticks:
            self._begin(flow, slots)
        arguments: dict[str, Any] = {}
        call: Any = None
        result: Any = None
        usual = image.__class__
        try:
            for call, static, kept, taken, width, outputs in flow.calls:
                arguments = static()
                for name, slot in kept:
                    arguments[name] = slots[slot]
                for name, slot in taken:
                    arguments[name] = slots[slot]
                    slots[slot] = None
                result = call(**arguments)
                if result.__class__ is not tuple or len(result) < width:
                    result = self._plain(flow, call, result, width)
                for index, slot in outputs:
                    value = slots[slot] = result[index]
                    # Most values are of the frame's class: that saves looking them up.
                    if value.__class__ is not usual and IS_BLOCKER[value.__class__]:
                        raise NotPlain(made=True)
        except NotPlain as surprise:
            step = _step_of(flow, call)
            step.give_back(slots, arguments)
            given = Given(slots, step, (result,) if surprise.made else (), image=image)
            return self._told(self._driven(self._slowly(flow, given)), flow)
        except (Exception, SystemExit) as error:
            raise node_failed(_step_of(flow, call).node, error, arguments) from error
        return self._output(flow, slots)

    async def run_async(self, image: Any) -> tuple[Any, list[str]]:
        """`run` for plans with async nodes; those that do not need each other are awaited at once."""
        return await self._flow(self._program.video, Given(image=image))

    async def hear(self, audio: Any) -> tuple[list[Any], list[str]]:
        """Work on one stretch of sound (AUDIO); the sound that goes out, and the texts.

        Raises as `run` does.
        """
        flow = self._program.audio
        given = Given(audio=audio)
        self._program.held[LAST_SOUND] = audio
        if flow.slow or self._expands:
            result = await self._slowly(flow, given)
        else:
            result = await self._planned(flow, given)
        self._finish(flow, result.values)
        return result.audio, self._texts(flow, result.texts)

    async def _flow(self, flow: Flow, given: Given) -> tuple[Any, list[str]]:
        if flow.slow or self._expands:
            return self._told(await self._slowly(flow, given), flow)
        return self._told(await self._planned(flow, given), flow)

    async def _planned(self, flow: Flow, given: Given) -> Result:
        from workflows.asynchronous import run_steps

        slots = flow.slots.copy()
        slots[FRAME_SLOT], slots[AUDIO_SLOT] = given.image, given.audio
        if flow.held_in or flow.ticks:
            self._begin(flow, slots)
        stopped = await run_steps(flow, slots, given, self._plain)
        if stopped is not None:
            return await self._slowly(flow, stopped)
        return Result.of(flow, slots)

    async def _slowly(self, flow: Flow, given: Given) -> Result:
        program = self._program
        result, evaluation = await by_slow_road(program, flow, given)
        self.shown.update(evaluation.shown)
        self.blocked.update(evaluation.blocked)
        self._expands |= {
            node_id
            for node_id, reason in evaluation.slow.items()
            if reason == EXPANDS and node_id in program.bound
        }
        return result

    def _driven(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` gives without an event loop; `NeedsLoop` when it has to wait for something, as
        further frames then may."""
        try:
            work.send(None)
        except StopIteration as stop:
            value: T = stop.value
            return value
        work.close()
        self._met_async = True
        raise NeedsLoop("an async node came up where none was planned")

    def _begin(self, flow: Flow, slots: list[Any]) -> None:
        """Take what the other flow holds, and the literals of this run."""
        held = self._program.held
        for slot, output in flow.held_in:
            slots[slot] = held.get(output)
        for rule, places in flow.ticks:
            value = rule.next()
            for static, name in places:
                static[name] = value

    def _plain(self, flow: Flow, call: Any, result: Any, width: int) -> Any:
        """The outputs of a step that returned something else than a tuple. Raises `NotPlain`,
        `ValueError`."""
        step = _step_of(flow, call)
        outcome = read(result, self._program.bound[step.node.id].outputs)
        if outcome.expand is not None:
            raise NotPlain(made=True)
        if outcome.shown is not None:
            self.shown[step.node.id] = outcome.shown
        return checked(outcome, width)

    def _told(self, result: Result, flow: Flow) -> tuple[Any, list[str]]:
        self._finish(flow, result.values)
        return result.video, self._texts(flow, result.texts)

    def _output(self, flow: Flow, slots: list[Any]) -> tuple[Any, list[str]]:
        texts: list[str] = []
        if flow.held_out:
            self._finish(flow, slots)
        if self._texts_due or flow.texts:
            texts = self._texts(flow, [slots[slot] for slot in flow.texts])
        return (None if flow.video is None else slots[flow.video]), texts

    def _finish(self, flow: Flow, values: list[Any]) -> None:
        for slot, output in flow.held_out:
            self._program.held[output] = values[slot]

    def _texts(self, flow: Flow, values: list[Any]) -> list[str]:
        texts: list[str] = []
        if self._texts_due:
            self._texts_due = False
            texts += [text for text in self._program.constant_texts if not is_blocker(text)]
        for value in values:
            texts += [
                text for text in (value if isinstance(value, list) else [value]) if not is_blocker(text)
            ]
        return texts

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """What runs within leaves nothing behind: no text, nothing to show, no step of a rule."""
        shown = dict(self.shown)
        mark = TRIAL.set(True)
        try:
            yield
        finally:
            TRIAL.reset(mark)
            self._texts_due = True
            self.shown = shown
            self.blocked = dict(self._program.blocked)
            for rule in self._program.rules.values():
                rule.rewind()

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Held while the plan runs outside the frames' path; see `NodeRegistry.guard`."""
        return self._registry.guard()

    # -- changing --------------------------------------------------------------------------------------

    async def change(
        self,
        values: Mapping[tuple[str, str], Any],
        graph: Graph | None = None,
        also: frozenset[str] = frozenset(),
    ) -> Program:
        """The program with other literals (checked ones, by node id and input); nothing is in force yet.

        ``graph`` may be given with other rules of the same nodes; nodes in ``also`` count as changed. Runs
        only the constant nodes that depend on the changes. Raises `InvalidWorkflow` when a node refuses a
        value, `ProcessorError` when one fails; the plan then stays as it is.
        """
        program = self._program
        graph = (graph or self.graph).with_values(values)
        changed = frozenset(node_id for node_id, _ in values) | also
        changed |= {
            node.id for node in graph if node.after_generate != self.graph.nodes[node.id].after_generate
        }
        bound: Mapping[str, BoundNode] = rebind(program.bound, graph)
        problems = await refusals(graph, sorted(changed & bound.keys()), bound, self._registry)
        if problems:
            raise invalid_workflow(problems)
        return await build(graph, bound, self._registry, program.video_node, program, changed)

    def commit(self, program: Program) -> None:
        """Put what `change` or `recheck` gave in force: the next frame is worked on with it."""
        self._texts_due = program.constant_texts != self._program.constant_texts or self._texts_due
        program.held.update(self._program.held)
        self._program = program
        self.shown.update(program.shown)
        self.blocked.update(program.blocked)

    async def recheck(self) -> Program | None:
        """Ask the nodes that may change by themselves (IS_CHANGED); the program with what has changed.

        None when nothing has. May run beside frames, as `change`; raises as that does.
        """
        program = self._program
        changed: set[str] = set()
        for node_id, before in program.fingerprints.items():
            answer = await fingerprint(program.bound[node_id])
            if answer is ALWAYS or answer not in (None, before):
                changed.add(node_id)
        return await self.change({}, also=frozenset(changed)) if changed else None

    @property
    def program(self) -> Program:
        """What is in force."""
        return self._program

    @property
    def may_change(self) -> bool:
        """Whether there is anything for `recheck` to ask."""
        return bool(self._program.fingerprints)

    @property
    def is_damaged(self) -> bool:
        """Whether a node has written into a constant, so that `repair` is due before the next frame."""
        return any(tensor._version != version for tensor, version in self._program.guards)

    async def repair(self) -> None:
        """Make the constants anew that a node wrote into; whoever gets them gets copies from now on."""
        program = self._program
        damaged = frozenset(node_id for node_id, entry in program.kept.entries.items() if entry.is_written())
        bound = program.bound
        self.commit(
            await build(program.graph, bound, self._registry, program.video_node, program, damaged, damaged)
        )


def _step_of(flow: Flow, call: Any) -> Step:
    return next(step for step in flow.steps if step.call is call)
