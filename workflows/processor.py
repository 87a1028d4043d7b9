"""A workflow, or several in a row, as a `FrameProcessor`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream.errors import InvalidInput, InvalidWorkflow, ProcessorError
from stream.frames import VideoFrame
from stream.processor import FrameProcessor, Params, ProcessorInfo, VideoResult
from workflows import library
from workflows.beside import run_beside
from workflows.check import prepare
from workflows.compiler import Program
from workflows.graph import Graph, load_json, looks_like_graph
from workflows.parameters import ParameterTable, Place
from workflows.plan import Plan
from workflows.registry import NodeRegistry
from workflows.stream_rules import modalities

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

WORKFLOW_KEYS = ("workflow", "prompt", "prompts")
MAX_WORKFLOWS = 16


@dataclass(frozen=True, slots=True)
class _Running:
    """What is in force; replaced as a whole between two frames."""

    plans: tuple[Plan, ...]
    table: ParameterTable
    is_passthrough: bool

    @classmethod
    def of(cls, plans: Sequence[Plan], registry: NodeRegistry) -> _Running:
        return cls(
            tuple(plans),
            ParameterTable([plan.graph for plan in plans], registry.definitions),
            all(plan.is_passthrough for plan in plans),
        )


@dataclass(frozen=True, slots=True)
class _Change:
    """Worked out for ``params`` on top of what was ``running``; `WorkflowProcessor._commit` puts it in force.

    Either other ``programs`` of the same plans, or a ``replacement``.
    """

    running: _Running
    params: Params
    programs: tuple[tuple[Plan, Program], ...] = ()
    replacement: _Running | None = None


class WorkflowProcessor(FrameProcessor):
    """Runs ``workflow`` on every frame.

    ``workflow`` is API-format data, or a list of such where each works on the pictures of the one before.
    ``input_node`` and ``output_node`` choose among several inputs and outputs where the graph leaves that
    open. ``input_folder`` is where LoadImage finds its pictures, with the built-in nodes that are used where
    no ``registry`` is given. Parameters are those of `ParameterTable`; the keys ``workflow``, ``prompt`` and
    ``prompts`` put another workflow in place of the present one, whole or not at all.
    """

    def __init__(
        self,
        workflow: Any = None,
        registry: NodeRegistry | None = None,
        *,
        input_node: str | None = None,
        output_node: str | None = None,
        input_folder: str | Path | None = None,
        error_callback: Any = None,
        **init_kwargs: Any,
    ) -> None:
        super().__init__(error_callback, **init_kwargs)
        self._workflow = workflow
        if registry is None:
            registry = NodeRegistry.builtin(Path(input_folder) if input_folder is not None else None)
        self._registry = registry
        self._input_node = input_node
        self._output_node = output_node
        self._running: _Running | None = None
        self._prepared: _Change | None = None
        self._inference_mode: Any = None

    async def load_model(self, **kwargs: Any) -> None:
        """Compile and run the constant part.

        Raises `InvalidWorkflow` with the problems as its details, `ProcessorError` when a node fails.
        """
        import torch

        self._inference_mode = torch.inference_mode
        self._running = await self._compile(self._first_graphs())

    def info(self) -> ProcessorInfo:
        """From the graphs alone; works before `load_model`. Raises `InvalidWorkflow`."""
        if self._running is not None:
            graphs = [plan.graph for plan in self._running.plans]
            table = self._running.table
        else:
            graphs = self._first_graphs()
            table = ParameterTable(graphs, self._registry.definitions)
        media = modalities(graphs)
        video = media.video_input or media.video_output
        return ProcessorInfo(video=video, audio=media.audio_input, schema=table.schema())

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """The pictures that the workflow makes of ``frame``: one, or several when it gives a batch.

        ``frame`` itself comes back where the workflow leaves it alone or has no video output. Raises
        `ProcessorError` that names the node at fault.
        """
        running = self._loaded()
        if running.is_passthrough:
            return frame
        source = frame.tensor
        version = None if source.is_inference() else source._version
        video: Any = source
        label = "the workflow"
        with self._inference_mode():
            for plan in running.plans:
                image = _one_batch(video, label)
                result, texts = await plan.run_async(image) if plan.is_async else plan.run(image)
                for text in texts:
                    self.emit("text", text)
                if plan.has_video_output:
                    video, label = result, plan.output_label
            if video is source and version is not None and source._version == version:
                return frame
            return _frames(frame, video, label)

    async def prepare_params(self, params: Params) -> None:
        """Compile another workflow, or run the constant nodes again that ``params`` change, in a thread.

        Raises as `update_params` does. Changes that only the next frame needs are left to that.
        """
        self._prepared = None
        running = self._loaded()
        if self._takes_long(running, params):
            self._prepared = await run_beside(lambda: self._work_out(running, params))

    async def update_params(self, params: Params) -> None:
        """New parameters, another workflow, or both. Raises and leaves all as it was, or takes effect whole.

        A workflow that differs from the present one in literals alone becomes a change of parameters.
        """
        running = self._loaded()
        change, self._prepared = self._prepared, None
        if change is None or change.running is not running or change.params != params:
            with self._inference_mode():
                change = await self._work_out(running, params)
        self._commit(change)

    async def on_stream_start(self, params: Params) -> None:
        """Parameters may come with the start of a stream, among others that are none of the workflow's."""
        running = self._running
        if running is None:
            return
        own = {
            name: value
            for name, value in params.items()
            if name in WORKFLOW_KEYS or running.table.knows(name)
        }
        if own:
            await self.update_params(own)

    def _first_graphs(self) -> list[Graph]:
        graphs = self._prepare(self._workflow)
        for choice in (self._input_node, self._output_node):
            if choice is not None and not any(choice in graph.nodes for graph in graphs):
                raise InvalidWorkflow(f"there is no node {choice}, which was chosen", field="workflow")
        return graphs

    def _prepare(self, workflow: Any) -> list[Graph]:
        return [
            prepare(
                data,
                self._registry.definitions,
                input_node=_choice(self._input_node, data),
                output_node=_choice(self._output_node, data),
            )
            for data in _as_list(workflow)
        ]

    async def _compile(self, graphs: Sequence[Graph]) -> _Running:
        with self._inference_mode():
            plans = [
                await Plan.compile(graph, self._registry, output_node=_choice(self._output_node, graph.nodes))
                for graph in graphs
            ]
        return _Running.of(plans, self._registry)

    def _loaded(self) -> _Running:
        if self._running is None:
            raise ProcessorError("the workflow is not loaded")
        return self._running

    def _takes_long(self, running: _Running, params: Params) -> bool:
        """Whether nodes would have to be made or run that no frame waits for."""
        rest = dict(params)
        if _take_workflow(rest, running.table) is not None:
            return True
        places = running.table.resolve(rest)
        known = running.table.parameters.values()
        return any(parameter.place in places and parameter.cost == "recompute" for parameter in known)

    async def _work_out(self, running: _Running, params: Params) -> _Change:
        """All of an update but its effect."""
        rest = dict(params)
        workflow = _take_workflow(rest, running.table)
        if workflow is None:
            values = running.table.resolve(rest)
        else:
            graphs = self._prepare(workflow)
            table = ParameterTable(graphs, self._registry.definitions)
            graphs = _with_values(graphs, table.resolve(rest))
            changes = _literal_changes([plan.graph for plan in running.plans], graphs)
            if changes is None:
                return _Change(running, params, replacement=await self._compile(graphs))
            values = changes
        by_plan: dict[int, dict[tuple[str, str], Any]] = {}
        for place, value in values.items():
            by_plan.setdefault(place.graph, {})[place.node_id, place.input] = value
        plans = running.plans
        programs = [(plans[index], await plans[index].change(of_plan)) for index, of_plan in by_plan.items()]
        return _Change(running, params, programs=tuple(programs))

    def _commit(self, change: _Change) -> None:
        for plan, program in change.programs:
            plan.commit(program)
        self._running = change.replacement or _Running.of(change.running.plans, self._registry)


def _take_workflow(params: dict[str, Any], table: ParameterTable) -> Any:
    """Take the workflow out of ``params``; None without one (null counts as none).

    Raises `InvalidInput` when there are two. A node may be called "prompt"; what is given for it is then only
    a workflow when it looks like one.
    """
    for key in WORKFLOW_KEYS:
        if key in params and params[key] is None:
            del params[key]
    keys = [key for key in WORKFLOW_KEYS if key in params]
    keys = [key for key in keys if not (table.knows(key) and _is_for_node(params[key]))]
    if len(keys) > 1:
        raise InvalidInput(f"{' and '.join(keys)} are the same thing; give one", field=keys[1])
    if not keys:
        return None
    value = params.pop(keys[0])
    return _data(value, keys[0]) if isinstance(value, str | bytes) else value


def _is_for_node(value: Any) -> bool:
    return isinstance(value, Mapping) and not looks_like_graph(value)


def _choice(node_id: str | None, nodes: Any) -> str | None:
    """A choice of node holds for the workflow that has the node, not for another beside or after it."""
    return node_id if isinstance(nodes, Mapping) and node_id in nodes else None


def _as_list(workflow: Any) -> list[Any]:
    if isinstance(workflow, str | bytes):
        workflow = _data(workflow)
    workflows = list(workflow) if isinstance(workflow, list | tuple) else [workflow]
    workflows = [_data(item) if isinstance(item, str | bytes) else item for item in workflows]
    if not workflows:
        raise InvalidWorkflow("an empty list of workflows; give at least one", field="workflow")
    if len(workflows) > MAX_WORKFLOWS:
        raise InvalidWorkflow(
            f"{len(workflows)} workflows in a row; the limit is {MAX_WORKFLOWS}", field="workflow"
        )
    return workflows


def _data(text: str | bytes, name: str = "workflow") -> Any:
    """The workflow that a text is, or names: a bundled one, never a file."""
    if isinstance(text, str) and text.strip() in library.names():
        return library.load_bundled(text.strip())
    return load_json(text, name)


def _with_values(graphs: Sequence[Graph], values: Mapping[Place, Any]) -> list[Graph]:
    return [
        graph.with_values(
            {(place.node_id, place.input): value for place, value in values.items() if place.graph == index}
        )
        for index, graph in enumerate(graphs)
    ]


def _literal_changes(old: Sequence[Graph], new: Sequence[Graph]) -> dict[Place, Any] | None:
    """What differs, when that is the values of literals alone; else None."""
    if len(old) != len(new):
        return None
    changes: dict[Place, Any] = {}
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        if list(before.nodes) != list(after.nodes):
            return None
        for node in after:
            found = before.nodes[node.id].changed_literals(node)
            if found is None:
                return None
            changes.update((Place(index, node.id, name), value) for name, value in found.items())
    return changes


def _one_batch(video: Any, label: str) -> Any:
    """What one workflow gave, as the IMAGE that the next one gets."""
    if not isinstance(video, list):
        return video
    import torch

    if not video or any(_shape(item)[1:] != _shape(video[0])[1:] or len(_shape(item)) != 4 for item in video):
        raise ProcessorError(f"{label}: pictures of different sizes cannot go into the next workflow")
    return video[0] if len(video) == 1 else torch.cat(video)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _frames(frame: VideoFrame, video: Any, label: str) -> VideoResult:
    tensors = video if isinstance(video, list) else [video]
    frames: list[VideoFrame] = []
    for tensor in tensors:
        _check_pictures(tensor, label)
        count = tensor.shape[0]
        pictures = (tensor,) if count == 1 else tensor.split(1)
        frames += (frame.replace_tensor(picture) for picture in pictures)
    return frames[0] if len(frames) == 1 else frames


def _check_pictures(tensor: torch.Tensor, label: str) -> None:
    """Raise `ProcessorError` in words unless this is B x H x W x C of floats or bytes, C of 1, 3 or 4."""
    import torch

    expected = f"{label}: expected pictures of B x H x W x 3 (IMAGE)"
    if not isinstance(tensor, torch.Tensor):
        raise ProcessorError(f"{expected}, got {'nothing' if tensor is None else type(tensor).__name__}")
    shape = " x ".join(map(str, tensor.shape))
    if tensor.ndim in (2, 3):
        raise ProcessorError(
            f"{expected}, got {shape}, which is a mask or lacks an axis; turn a mask into a picture"
        )
    if tensor.ndim != 4 or tensor.shape[-1] not in (1, 3, 4) or 0 in tensor.shape:
        raise ProcessorError(f"{expected}, got {shape or 'a single number'}")
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise ProcessorError(f"{expected} as floats in 0..1, got {tensor.dtype}")
