"""Changes that take long are worked out beside the frames and take effect between two of them."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from stream.errors import InvalidInput, InvalidWorkflow, ProcessorError  # noqa: E402
from stream.frames import VideoFrame  # noqa: E402
from workflows import watching  # noqa: E402
from workflows.beside import run_beside  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402

HANG_GUARD = 20.0


class Level:
    """A loader that takes as long as the test wants. It loads in `load`, or already when it is made."""

    RETURN_TYPES = ("LEVEL",)
    FUNCTION = "load"
    CATEGORY = "test"
    may_load: ClassVar[threading.Event] = threading.Event()
    loads: ClassVar[list[tuple[float, str, int, bool]]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"level": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0})}}

    def load(self, level: float) -> tuple[float]:
        if level == 0.13:
            raise OSError("no such weights")
        if not self.may_load.wait(HANG_GUARD):
            raise TimeoutError
        thread = threading.current_thread().name
        self.loads.append((level, thread, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return (level,)


class Fill:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "fill"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "level": ("LEVEL",), "gain": ("FLOAT", {"default": 1.0})}}

    def fill(self, image: Any, level: float, gain: float) -> tuple[Any]:
        return (torch.full_like(image, level * gain),)


def workflow(level: float, **more: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "Level", "inputs": {"level": level}},
        "3": {"class_type": "Fill", "inputs": {"image": ["1", 0], "level": ["2", 0], "gain": 1.0}},
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
        **more,
    }


def other(level: float) -> dict[str, Any]:
    """The same result by another graph."""
    invert = {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}
    return workflow(
        level,
        **{
            "5": invert,
            "3": {**workflow(level)["3"], "inputs": {"image": ["5", 0], "level": ["2", 0], "gain": 1.0}},
        },
    )


async def processor(level: float = 0.25) -> WorkflowProcessor:
    Level.may_load.set()
    Level.loads.clear()
    registry = NodeRegistry.builtin().add({"Level": Level, "Fill": Fill})
    made = WorkflowProcessor(workflow(level), registry)
    await made.load_model()
    Level.loads.clear()
    Level.may_load.clear()
    return made


async def shown(made: WorkflowProcessor) -> float:
    result = await made.process_video_async(VideoFrame.from_tensor(torch.zeros(1, 4, 4, 3)))
    assert isinstance(result, VideoFrame)
    return round(float(result.tensor.mean()), 4)


@pytest.mark.parametrize("params", [{"workflow": other(0.5)}, {"2.level": 0.5}, {"prompt": workflow(0.5)}])
async def test_frames_go_on_with_the_old_while_the_new_loads_and_then_it_holds_at_once(
    params: dict[str, Any],
) -> None:
    made = await processor()
    preparing = asyncio.create_task(made.prepare_params(params))
    for _ in range(20):
        assert await shown(made) == 0.25
        await asyncio.sleep(0.002)
    assert not preparing.done()
    Level.may_load.set()
    await asyncio.wait_for(preparing, HANG_GUARD)
    assert await shown(made) == 0.25
    await made.update_params(params)
    assert await shown(made) == 0.5
    (load,) = Level.loads
    assert load == (0.5, "prepare", torch.get_num_threads(), True)


async def test_without_preparation_the_result_is_the_same_and_the_loop_is_free() -> None:
    made = await processor()
    changing = asyncio.create_task(made.update_params({"workflow": other(0.5)}))
    for _ in range(20):
        await asyncio.sleep(0.001)
    Level.may_load.set()
    await asyncio.wait_for(changing, HANG_GUARD)
    assert await shown(made) == 0.5
    assert Level.loads[0][1] == "prepare"


async def test_a_literal_of_a_large_graph_is_worked_out_beside_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await processor()
    monkeypatch.setattr("workflows.processor.LIGHT", 3)
    await made.prepare_params({"Fill.gain": 2.0})
    assert await shown(made) == 0.25
    worked_out: list[Any] = []
    monkeypatch.setattr(made, "_work_out", worked_out.append)
    await made.update_params({"Fill.gain": 2.0})
    assert await shown(made) == 0.5
    assert worked_out == []
    assert made.info().schema["properties"]["3.gain"]["default"] == 2.0


async def test_what_only_frames_need_is_not_prepared() -> None:
    made = await processor()
    await asyncio.wait_for(made.prepare_params({"Fill.gain": 2.0}), HANG_GUARD)
    await made.update_params({"Fill.gain": 2.0})
    assert await shown(made) == 0.5
    assert Level.loads == []


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"workflow": other(0.13)}, ProcessorError),
        ({"2.level": 0.13}, ProcessorError),
        ({"2.level": 3}, InvalidInput),
        ({"nothing": 3}, InvalidInput),
        ({"workflow": {"1": {"class_type": "Gone"}}}, InvalidWorkflow),
        ({"workflow": other(0.5), "nothing": 3}, InvalidInput),
    ],
)
async def test_what_fails_to_load_fails_in_preparation_and_changes_nothing(
    params: dict[str, Any], error: type[Exception]
) -> None:
    made = await processor()
    Level.may_load.set()
    with pytest.raises(error):
        await made.prepare_params(params)
    assert await shown(made) == 0.25
    await made.update_params({"Fill.gain": 2.0})
    assert await shown(made) == 0.5


async def test_a_preparation_that_no_longer_fits_is_not_used() -> None:
    made = await processor()
    Level.may_load.set()
    await made.prepare_params({"2.level": 0.5})
    await made.update_params({"Fill.gain": 2.0})
    assert await shown(made) == 0.5  # 0.25 twice
    await made.update_params({"2.level": 0.5})
    assert await shown(made) == 1.0
    await made.prepare_params({"workflow": other(0.75)})
    await made.update_params({"workflow": other(0.5)})
    assert await shown(made) == 0.5


async def test_what_a_stream_starts_with_is_worked_out_in_a_thread() -> None:
    made = await processor()
    starting = asyncio.create_task(made.on_stream_start({"2.level": 0.5, "Fill.gain": 2.0, "width": 64}))
    for _ in range(20):
        await asyncio.sleep(0.001)
    Level.may_load.set()
    await asyncio.wait_for(starting, HANG_GUARD)
    assert await shown(made) == 1.0
    assert [load[1] for load in Level.loads] == ["prepare"]


class File:
    """A constant whose file changes whenever it is asked."""

    RETURN_TYPES = ("LEVEL",)
    FUNCTION = "read"
    CATEGORY = "test"
    asked: ClassVar[int] = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> int:  # noqa: N802
        cls.asked += 1
        return cls.asked

    def read(self) -> tuple[float]:
        return (0.25,)


class Tint:
    """Runs for each frame, and answers questions when the test lets it."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "tint"
    CATEGORY = "test"
    may_answer: ClassVar[threading.Event] = threading.Event()
    asked: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "by": ("FLOAT", {"default": 1.0})}}

    @classmethod
    def _answer(cls, what: str) -> bool:
        cls.asked.append((what, threading.current_thread().name))
        if not cls.may_answer.wait(HANG_GUARD):
            raise TimeoutError
        return True

    def tint(self, image: Any, by: float) -> tuple[Any]:
        return (torch.full_like(image, by),)


class Fingerprinted(Tint):
    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> bool:  # noqa: N802
        return cls._answer("fingerprint")


class Validated(Tint):
    @classmethod
    def VALIDATE_INPUTS(cls, by: float) -> bool:  # noqa: N802
        return cls._answer("verdict")


@pytest.mark.parametrize("node_class", [Fingerprinted, Validated])
async def test_a_class_is_asked_beside_the_frames_though_its_node_runs_for_each(
    node_class: type[Tint],
) -> None:
    Tint.may_answer.set()
    graph = workflow(0.25)
    graph["3"] = {"class_type": "Tint", "inputs": {"image": ["1", 0], "by": 0.25}}
    made = WorkflowProcessor(graph, NodeRegistry.builtin().add({"Level": Level, "Tint": node_class}))
    await made.load_model()
    Tint.may_answer.clear()
    Tint.asked.clear()
    preparing = asyncio.create_task(made.prepare_params({"3.by": 0.5}))
    while not Tint.asked:
        assert await shown(made) == 0.25
        await asyncio.sleep(0.002)
    for _ in range(3):
        assert await shown(made) == 0.25
    assert not preparing.done()
    Tint.may_answer.set()
    await asyncio.wait_for(preparing, HANG_GUARD)
    await made.update_params({"3.by": 0.5})
    assert await shown(made) == 0.5
    assert {thread for _, thread in Tint.asked} == {"prepare"}


@pytest.mark.parametrize("params", [{"workflow": other(0.5)}, {"5.level": 0.5}])
async def test_files_that_change_meanwhile_do_not_void_a_preparation(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "ASK_EVERY", 0.0)
    File.asked = 0
    Level.may_load.set()
    graph = workflow(0.25)
    graph["2"] = {"class_type": "File", "inputs": {}}
    graph["5"] = {"class_type": "Level", "inputs": {"level": 0.125}}
    graph["6"] = {**graph["3"], "inputs": {"image": ["3", 0], "level": ["5", 0], "gain": 1.0}}
    graph["4"] = {"class_type": "SaveTensor", "inputs": {"images": ["6", 0]}}
    made = WorkflowProcessor(graph, NodeRegistry.builtin().add({"Level": Level, "Fill": Fill, "File": File}))
    await made.load_model()
    while File.asked < 5:
        assert await shown(made) == 0.125
        await asyncio.sleep(0.002)
    Level.may_load.clear()
    Level.loads.clear()
    preparing = asyncio.create_task(made.prepare_params(params))
    for _ in range(20):
        assert await shown(made) == 0.125
        await asyncio.sleep(0.002)
    Level.may_load.set()
    await asyncio.wait_for(preparing, HANG_GUARD)
    works = []
    monkeypatch.setattr(made, "_work_out", works.append)
    await made.update_params(params)
    assert not works
    assert await shown(made) == 0.5
    assert [load[1] for load in Level.loads] == ["prepare"]


async def test_a_preparation_that_is_given_up_leaves_nothing_behind() -> None:
    made = await processor()
    preparing = asyncio.create_task(made.prepare_params({"2.level": 0.5}))
    await asyncio.sleep(0.05)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    again = asyncio.create_task(made.prepare_params({"2.level": 0.75}))
    Level.may_load.set()
    await asyncio.wait_for(again, HANG_GUARD)
    await made.update_params({"2.level": 0.75})
    assert await shown(made) == 0.75
    for thread in threading.enumerate():
        if thread.name == "prepare":
            thread.join(HANG_GUARD)
            assert not thread.is_alive()


async def test_work_beside_has_its_own_loop_and_torchs_settings() -> None:
    before, here = torch.get_num_threads(), asyncio.get_running_loop()
    torch.set_num_threads(2)

    async def look() -> tuple[bool, int, bool]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop() is here, torch.get_num_threads(), torch.is_inference_mode_enabled()

    try:
        assert await run_beside(look) == (False, 2, True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
async def test_what_is_raised_beside_arrives(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await run_beside(fail)


async def test_another_workflow_may_be_given_by_its_bundled_name_but_not_as_a_file(tmp_path: Path) -> None:
    made = await processor()
    await made.update_params({"workflow": "passthrough"})
    assert await shown(made) == 0
    await made.update_params({"prompts": ["passthrough", "edges"]})
    assert "1/2.low_threshold" in made.info().schema["properties"]
    file = tmp_path / "own.json"
    file.write_text(json.dumps(workflow(0.5)))
    with pytest.raises(InvalidWorkflow, match="workflow is not JSON"):
        await made.update_params({"workflow": str(file)})
