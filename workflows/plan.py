"""A graph compiled to a flat list of calls.

What does not depend on the frame has run once when the plan is ready, and its results are written into the
arguments of the calls that need them. What does depend on it is a list of steps, each a bound method, its
arguments by name, and the numbered slots from which it takes and into which it puts values; running a frame
looks up nothing else. Stream nodes are no steps: slot 0 is the frame, and the picture that goes out is the
slot that the SaveTensor is linked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflows.binding import BoundNode, bind, node_failed, refusals
from workflows.check import needed_nodes, not_installed, prepare
from workflows.compiler import FRAME_SLOT, Program, Step, build
from workflows.graph import Graph
from workflows.problems import invalid_workflow
from workflows.registry import NodeRegistry
from workflows.results import unpack
from workflows.stream_rules import video_output
from workflows.topology import execution_order


class Plan:
    """A graph that is ready to run, with node instances of its own.

    `run` or `run_async` (where `is_async` says so) and `commit` must not overlap, nor two of `change`. It may
    run in another thread while frames run: it calls none of the nodes that they call.
    """

    def __init__(self, registry: NodeRegistry, bound: Mapping[str, BoundNode], program: Program) -> None:
        self._registry = registry
        self._bound = bound
        self._program = program
        self._texts_due = True
        self.shown: dict[str, Any] = dict(program.shown)
        """What nodes last gave for an editor to show (``ui``), by node id."""

    @classmethod
    async def compile(
        cls,
        workflow: Any,
        registry: NodeRegistry,
        *,
        input_node: str | None = None,
        output_node: str | None = None,
    ) -> Plan:
        """Check ``workflow`` (API-format data, or a graph from `prepare`) and run its constant part.

        Raises `InvalidWorkflow` with every problem at once, `ProcessorError` when a node fails.
        """
        graph = workflow
        if not isinstance(workflow, Graph):
            graph = prepare(workflow, registry.definitions, input_node=input_node, output_node=output_node)
        order = execution_order(graph, needed_nodes(graph, registry.definitions, output_node))
        problems = not_installed(graph, order, registry.definitions)
        problems += await refusals(graph, order, registry)
        if problems:
            raise invalid_workflow(problems)
        bound = bind(graph, order, registry)
        video_node, _ = video_output(graph, output_node)
        return cls(registry, bound, await build(graph, bound, video_node))

    @property
    def graph(self) -> Graph:
        return self._program.graph

    @property
    def is_async(self) -> bool:
        """Whether a node is an async function, so that `run_async` must be used."""
        return self._program.is_async

    @property
    def has_video_output(self) -> bool:
        return self._program.video is not None

    @property
    def output_label(self) -> str:
        """The node through which pictures leave, for messages."""
        node = self._program.video_node
        return "the workflow" if node is None else node.label

    @property
    def is_passthrough(self) -> bool:
        """Whether there is nothing to do: the frame goes out as it came in, and no node wants to see it."""
        program = self._program
        return not program.steps and not program.constant_texts and program.video == FRAME_SLOT

    @property
    def steps(self) -> tuple[Step, ...]:
        """The calls made for each frame."""
        return self._program.steps

    def constant_nodes(self) -> set[str]:
        """Ids of the nodes that have run once and are kept."""
        return set(self._program.constants)

    def run(self, image: Any) -> tuple[Any, list[str]]:
        """Work on one frame; what goes out as pictures (None without a video output), and the texts.

        Raises `ProcessorError` that names the node, its class, its title and the cause.
        """
        program = self._program
        slots = program.slots.copy()
        slots[FRAME_SLOT] = image
        step: Step | None = None
        try:
            for step in program.steps:
                arguments = step.static.copy()
                for name, slot in step.links:
                    arguments[name] = slots[slot]
                for slot in step.release:
                    slots[slot] = None
                result = step.call(**arguments)
                if result.__class__ is not tuple or len(result) < step.width:
                    result = self._unpack(step, result)
                for index, slot in step.outputs:
                    slots[slot] = result[index]
        except (Exception, SystemExit) as error:
            assert step is not None
            raise node_failed(step.node, error) from error
        return self._output(program, slots)

    async def run_async(self, image: Any) -> tuple[Any, list[str]]:
        """`run` for plans with async nodes, which are awaited one after the other."""
        program = self._program
        slots = program.slots.copy()
        slots[FRAME_SLOT] = image
        for step in program.steps:
            arguments = step.static | {name: slots[slot] for name, slot in step.links}
            for slot in step.release:
                slots[slot] = None
            try:
                result = step.call(**arguments)
                if step.is_async:
                    result = await result
                values = self._unpack(step, result)
            except (Exception, SystemExit) as error:
                raise node_failed(step.node, error) from error
            for index, slot in step.outputs:
                slots[slot] = values[index]
        return self._output(program, slots)

    def _unpack(self, step: Step, result: Any) -> Any:
        values, shown = unpack(result, step.width)
        if shown is not None:
            self.shown[step.node.id] = shown
        return values

    def _output(self, program: Program, slots: list[Any]) -> tuple[Any, list[str]]:
        texts: list[str] = []
        if self._texts_due:
            self._texts_due = False
            _collect(program.constant_texts, texts)
        if program.texts:
            _collect([slots[slot] for slot in program.texts], texts)
        return (None if program.video is None else slots[program.video]), texts

    async def change(self, values: Mapping[tuple[str, str], Any]) -> Program:
        """The program with other literals (checked ones, by node id and input); nothing is in force yet.

        Runs only the constant nodes that depend on them. Raises `InvalidWorkflow` when a node refuses a
        value, `ProcessorError` when one fails; the plan then stays as it is.
        """
        graph = self.graph.with_values(values)
        changed = frozenset(node_id for node_id, _ in values)
        problems = await refusals(graph, sorted(changed & self._bound.keys()), self._registry)
        if problems:
            raise invalid_workflow(problems)
        return await build(graph, self._bound, self._program.video_node, self._program, changed)

    def commit(self, program: Program) -> None:
        """Put what `change` gave in force: the next frame is worked on with it."""
        self._texts_due = program.constant_texts != self._program.constant_texts or self._texts_due
        self._program = program
        self.shown.update(program.shown)


def _collect(values: Any, texts: list[str]) -> None:
    for value in values:
        texts.extend(value if isinstance(value, list) else [value])
