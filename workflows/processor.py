"""A workflow, or several in a row, as a `FrameProcessor`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stream.errors import ProcessorError
from stream.frames import AudioFrame, VideoFrame
from stream.processor import AudioResult, FrameProcessor, Params, ProcessorInfo, VideoResult
from workflows import warming
from workflows.beside import run_beside
from workflows.changes import (
    MAX_WORKFLOWS,
    WORKFLOW_KEYS,
    differing_values,
    of_graph,
    take_workflow,
    with_values,
)
from workflows.choosing import Chosen
from workflows.graph import Graph
from workflows.inference import in_inference_mode
from workflows.parameters import ParameterTable, Place
from workflows.pictures import as_frames, one_batch
from workflows.plan import NeedsLoop, Plan
from workflows.protocol import is_blocker
from workflows.registry import NodeRegistry
from workflows.running import Change, Running, Tabled
from workflows.sound import heard
from workflows.stream_rules import modalities
from workflows.warming import Size, warm_up
from workflows.watching import Watch

log = logging.getLogger(__name__)

RATE = 30.0
"""Pictures a second of a workflow that needs no input, where a stream has none."""

LIGHT = 20
"""Nodes up to which another literal of a frame's node is worked out between two frames: about a tenth of a
millisecond for each."""

__all__ = ["MAX_WORKFLOWS", "WORKFLOW_KEYS", "WorkflowProcessor"]


class WorkflowProcessor(FrameProcessor):
    """Runs ``workflow`` on every frame.

    ``workflow`` is workflow data, or a list of such where each works on the pictures and the sound of the one
    before. ``input_node`` and ``output_node`` choose among several inputs and outputs where the graph leaves
    that open. ``input_folder`` is where LoadImage finds its pictures, with the built-in nodes that are used
    where no ``registry`` is given. Parameters are those of `ParameterTable`; the keys ``workflow``,
    ``prompt`` and ``prompts`` put another workflow in place of the present one, whole or not at all.
    ``warm_runs`` is how often a workflow is run on made-up frames before it goes into force; None: as often
    as its device needs.
    """

    def __init__(
        self,
        workflow: Any = None,
        registry: NodeRegistry | None = None,
        *,
        input_node: str | None = None,
        output_node: str | None = None,
        input_folder: str | Path | None = None,
        warm_runs: int | None = None,
        error_callback: Any = None,
        **init_kwargs: Any,
    ) -> None:
        super().__init__(error_callback, **init_kwargs)
        self._workflow = workflow
        if registry is None:
            registry = NodeRegistry.builtin(Path(input_folder) if input_folder is not None else None)
        self._registry = registry
        self._chosen = Chosen(input_node, output_node)
        self._warm_runs = warm_runs
        self._runs = warming.RUNS
        self._running: Running | None = None
        self._prepared: Change | None = None
        self._watch = Watch()
        self._is_preparing = False
        """Meanwhile nodes are not asked: what they say would void what is prepared."""
        self._size = Size()
        self._seen: tuple[Any, Any] | None = None
        self._progress: tuple[str, float | None] = ("Loading", None)

    async def load_model(self, **kwargs: Any) -> None:
        """Compile, run the constant part, and warm up on made-up frames of ``width`` x ``height``.

        Raises `InvalidWorkflow` with the problems as its details, `ProcessorError` when a node fails.
        """
        import torch  # noqa: F401 (from here on there is a mode to work in)

        for side in ("width", "height"):
            if isinstance(kwargs.get(side), int) and kwargs[side] > 0:
                setattr(self._size, side, kwargs[side])
        device = kwargs.get("device") or "cpu"
        if getattr(self, "tensor_device", "cpu") == "engine":
            self._size.device = device
        self._runs = warming.runs_on(device) if self._warm_runs is None else self._warm_runs
        self._running = await in_inference_mode(self._compile(self._first_graphs()))

    def progress(self) -> tuple[str, float | None]:
        """What is being done before frames can be worked on, and how far it is (0 to 1)."""
        return self._progress

    def info(self) -> ProcessorInfo:
        """From the graphs alone; works before `load_model`. Raises `InvalidWorkflow`."""
        if self._running is not None:
            media, table = self._running.media, self._running.table
        else:
            graphs = self._first_graphs()
            media, table = modalities(graphs), ParameterTable(graphs, self._registry.definitions)
        generates = media.video_output and not media.video_input
        silent = not (media.audio_input or media.audio_output)
        return ProcessorInfo(
            video=media.video_input or media.video_output or silent,
            audio=media.audio_input or media.audio_output,
            schema=table.schema(),
            generates=RATE if generates else None,
        )

    async def process_video_async(self, frame: VideoFrame) -> VideoResult:
        """The pictures that the workflow makes of ``frame``: one, or several when it gives a batch.

        ``frame`` itself comes back where the workflow leaves it alone or has no video output, None where an
        execution blocker holds the picture back. Raises `ProcessorError` that names the node at fault.
        """
        running = self._loaded()
        if running.may_change and not self._is_preparing:
            found = self._watch.look(running)
            if found is not None:
                running = self._running = found.in_force(self._registry)
        if running.is_passthrough:
            return frame
        return await in_inference_mode(self._worked_on(frame, running))

    async def _worked_on(self, frame: VideoFrame, running: Running) -> VideoResult:
        source = frame.tensor
        self._seen = source.shape, source.device
        version = None if source.is_inference() else source._version
        video: Any = source
        label = "the workflow"
        for plan in running.plans:
            if not plan.sees:
                continue
            image = one_batch(video, label)
            result, texts = await self._run(plan, image)
            for text in texts:
                self.emit("text", text)
            if plan.has_video_output:
                video, label = result, plan.output_label
                if is_blocker(video) or video == []:
                    return None
            if plan.is_damaged:
                await plan.repair()
        if video is source and version is not None and source._version == version:
            return frame
        return as_frames(frame, video, label)

    async def _run(self, plan: Plan, image: Any) -> tuple[Any, list[str]]:
        if not plan.is_async:
            try:
                return plan.run(image)
            except NeedsLoop:
                log.info("%s: an async node came up; frames are awaited from now on", plan.output_label)
        return await plan.run_async(image)

    async def process_audio_async(self, frame: AudioFrame) -> AudioResult:
        """Sound that the workflow makes; ``frame`` itself where none goes out of it. Raises
        `ProcessorError`."""
        running = self._loaded()
        if not any(plan.hears for plan in running.plans):
            return [frame]
        return await in_inference_mode(self._listened_to(frame, running))

    async def _listened_to(self, frame: AudioFrame, running: Running) -> list[AudioFrame]:
        frames = [frame]
        for plan, ear in zip(running.plans, running.ears, strict=True):
            if plan.hears:
                frames, texts = await heard(plan, ear, frames)
                for text in texts:
                    self.emit("text", text)
                if plan.is_damaged:
                    await plan.repair()
        return frames

    async def prepare_params(self, params: Params) -> None:
        """Compile and warm up another workflow, or run the constant nodes again that ``params`` change, in a
        thread.

        Raises as `update_params` does. Changes that only the next frame needs are left to that, but for those
        of graphs of more than `LIGHT` nodes.
        """
        self._prepared = None
        running = self._loaded()
        if self._takes_long(running, params):
            self._prepared = await self._worked_out_beside(running, params)

    async def update_params(self, params: Params) -> None:
        """New parameters, another workflow, or both. Raises and leaves all as it was, or takes effect whole.

        A workflow that differs from the present one in literals alone becomes a change of parameters. What
        takes long and was not prepared, or no longer fits, is worked out in a thread; no frame of this stream
        is worked on meanwhile.
        """
        running = self._loaded()
        change, self._prepared = self._prepared, None
        if change is None or change.params != params or not change.fits(running):
            if self._takes_long(running, params):
                change = await self._worked_out_beside(running, params)
            else:
                await self._watch.end()
                change = await in_inference_mode(self._work_out(running, params))
        self._running = change.in_force(self._registry)

    async def _worked_out_beside(self, running: Running, params: Params) -> Change:
        await self._watch.end()
        self._is_preparing = True
        try:
            return await run_beside(lambda: self._work_out(running, params))
        finally:
            self._is_preparing = False

    async def on_stream_start(self, params: Params) -> None:
        """Parameters may come with the start of a stream, among others that are none of the workflow's."""
        if own := self._own(params):
            await self.update_params(own)

    def _own(self, params: Params) -> Params:
        running = self._running
        if running is None:
            return {}
        return {
            name: value
            for name, value in params.items()
            if name in WORKFLOW_KEYS or running.table.knows(name)
        }

    async def on_stream_stop(self) -> None:
        await self._watch.end()

    # -- making and changing what runs -----------------------------------------------------------------

    def _first_graphs(self) -> list[Graph]:
        return self._chosen.first_graphs(self._workflow, self._registry.definitions)

    async def _compile(self, graphs: Sequence[Graph]) -> Running:
        plans: list[Plan] = []

        def loaded(done: float) -> None:
            self._report("Loading", 0.5 * (len(plans) + done) / len(graphs))

        for graph in graphs:
            loaded(0.0)
            output_node = self._chosen.output_of(graph)
            plan = await Plan.compile(graph, self._registry, output_node=output_node, report=loaded)
            plans.append(plan)
        await warm_up(
            plans,
            self._frame_size(),
            lambda text, done: self._report(text, 0.5 + 0.5 * done),
            self._runs,
        )
        return Running.of(plans, self._registry)

    def _frame_size(self) -> Size:
        """What the frames of the stream look like, once there have been some."""
        if self._seen is None:
            return self._size
        shape, device = self._seen
        return Size(int(shape[2]), int(shape[1]), device)

    def _report(self, message: str, done: float) -> None:
        (before, was), self._progress = self._progress, (message, done)
        if message != before or was is None or round(100 * was) != round(100 * done):
            self.emit("event", {"type": "progress", "message": message, "percent": round(100 * done)})

    def _loaded(self) -> Running:
        if self._running is None:
            raise ProcessorError("the workflow is not loaded")
        return self._running

    def _takes_long(self, running: Running, params: Params) -> bool:
        """Whether nodes would have to be made, run or asked that no frame waits for, or many laid out
        anew."""
        rest = dict(params)
        if take_workflow(rest, running.table) is not None:
            return True
        if sum(len(plan.graph.nodes) for plan in running.plans) > LIGHT:
            return True
        places = running.table.resolve(rest)
        known = running.table.parameters.values()
        if any(parameter.place in places and parameter.cost != "frame" for parameter in known):
            return True
        return any(_is_asked(running, place) for place in places)

    async def _work_out(self, running: Running, params: Params) -> Change:
        """All of an update but its effect."""
        rest = dict(params)
        workflow = take_workflow(rest, running.table)
        if workflow is None:
            values = running.table.resolve(rest)
        else:
            graphs = self._chosen.graphs(workflow, self._registry.definitions)
            table = ParameterTable(graphs, self._registry.definitions)
            graphs = with_values(graphs, table.resolve(rest))
            changes = differing_values([plan.graph for plan in running.plans], graphs)
            if changes is None:
                return Change(running, params, replacement=await self._compile(graphs))
            values = changes
        programs = []
        graphs = [plan.graph for plan in running.plans]
        for index in sorted({place.graph for place in values}):
            plan = running.plans[index]
            base = plan.program
            program = await plan.change(of_graph(values, index))
            programs.append((plan, base, program))
            graphs[index] = program.graph
        tabled = Tabled.of(graphs, self._registry)
        return Change(running, params, programs=tuple(programs), tabled=tabled)


def _is_asked(running: Running, place: Place) -> bool:
    item = running.plans[place.graph].program.bound.get(place.node_id)
    return item is not None and item.is_asked
