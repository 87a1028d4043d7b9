from __future__ import annotations

import asyncio
import copy
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from stream.errors import InvalidInput, InvalidWorkflow, NotFound, ProcessorError  # noqa: E402
from stream.frames import Picture, VideoFrame  # noqa: E402
from stream.processor import Emission  # noqa: E402
from tests.workflows.editor_files import Sheet  # noqa: E402
from workflows.check import not_installed, prepare  # noqa: E402
from workflows.library import load, load_bundled, names  # noqa: E402
from workflows.processor import WorkflowProcessor  # noqa: E402
from workflows.registry import NodeRegistry  # noqa: E402

LOAD = {"class_type": "LoadTensor", "inputs": {}}
INVERT = {
    "1": LOAD,
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
}


def blend(factor: float = 0.5, mode: str = "normal") -> dict[str, Any]:
    """The frame mixed with its inverse."""
    return {
        "1": LOAD,
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {
            "class_type": "ImageBlend",
            "inputs": {"image1": ["1", 0], "image2": ["2", 0], "blend_factor": factor, "blend_mode": mode},
            "_meta": {"title": "Mix"},
        },
        "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}},
    }


def frame(value: float = 0.25, height: int = 8, width: int = 12) -> VideoFrame:
    return VideoFrame(torch.full((1, height, width, 3), value), 90, Fraction(1, 90))


async def loaded(workflow: Any, registry: NodeRegistry | None = None, **options: Any) -> WorkflowProcessor:
    processor = WorkflowProcessor(workflow, registry, **options)
    await processor.load_model()
    return processor


async def shown(processor: WorkflowProcessor, given_frame: VideoFrame | None = None) -> float:
    result = await processor.process_video_async(given_frame or frame())
    assert isinstance(result, VideoFrame)
    return float(result.tensor.mean())


async def test_the_result_keeps_the_times_of_the_frame() -> None:
    processor = await loaded(INVERT)
    source = frame(0.25)
    result = await processor.process_video_async(source)
    assert isinstance(result, VideoFrame)
    assert torch.allclose(result.tensor, torch.full((1, 8, 12, 3), 0.75))
    assert (result.timestamp, result.time_base, result.side_data) == (90, Fraction(1, 90), source.side_data)
    assert torch.equal(source.tensor, torch.full((1, 8, 12, 3), 0.25))


async def test_passing_through_does_not_even_make_a_tensor() -> None:
    processor = await loaded(load("passthrough"))
    source = VideoFrame.from_picture(Picture.from_rgb(np.zeros((4, 4, 3), np.uint8)), 0, Fraction(1, 30))
    assert await processor.process_video_async(source) is source
    assert not source.has_tensor


class GivesBack:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image: Any) -> Any:
        return (image,)


class WritesInPlace(GivesBack):
    def run(self, image: Any) -> Any:
        return (image.mul_(0.5),)


class Repeats(GivesBack):
    def run(self, image: Any) -> Any:
        return (torch.cat([image, image * 2, image * 3]),)


def one(class_type: str) -> dict[str, Any]:
    return {
        **INVERT,
        "2": {"class_type": class_type, "inputs": {"image": ["1", 0]}, "_meta": {"title": "Mine"}},
    }


def with_nodes(*classes: Any) -> NodeRegistry:
    return NodeRegistry.builtin().add({node_class.__name__: node_class for node_class in classes})


async def test_a_frame_that_every_node_left_alone_comes_back_itself() -> None:
    source = frame()
    processor = await loaded(one("GivesBack"), with_nodes(GivesBack))
    assert await processor.process_video_async(source) is source


async def test_a_frame_that_a_node_wrote_into_is_not_taken_for_untouched() -> None:
    picture = Picture.from_rgb(np.full((4, 4, 3), 200, np.uint8))
    source = VideoFrame.from_picture(picture, 0, Fraction(1, 30))
    processor = await loaded(one("WritesInPlace"), with_nodes(WritesInPlace))
    result = await processor.process_video_async(source)
    assert isinstance(result, VideoFrame)
    assert result.picture.rgb()[0, 0].tolist() == [100, 100, 100]


async def test_a_batch_becomes_several_frames() -> None:
    processor = await loaded(one("Repeats"), with_nodes(Repeats))
    result = await processor.process_video_async(frame(0.25))
    assert isinstance(result, list)
    assert [round(float(item.tensor.mean()), 2) for item in result] == [0.25, 0.5, 0.75]
    assert all(item.tensor.shape == (1, 8, 12, 3) and item.timestamp == 90 for item in result)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda image: image[..., 0], "got 1 x 8 x 12, which is a mask or lacks an axis"),
        (lambda image: image[0, ..., 0], "got 8 x 12, which is a mask"),
        (lambda image: image.movedim(-1, 1), "got 1 x 3 x 8 x 12"),
        (lambda image: image.to(torch.int32), "as floats in 0..1, got torch.int32"),
        (lambda image: image[:0], "got 0 x 8 x 12 x 3"),
        (lambda image: "text", "got str"),
        (lambda image: None, "got nothing"),
        (lambda image: torch.tensor(1.0), "got a single number"),
    ],
)
async def test_what_is_no_picture_is_refused_in_words(made: Any, message: str) -> None:
    node_class = type("Odd", (GivesBack,), {"run": lambda self, image: (made(image),)})
    processor = await loaded(one("Odd"), NodeRegistry.builtin().add({"Odd": node_class}))
    with pytest.raises(ProcessorError) as caught:
        await processor.process_video_async(frame())
    assert caught.value.message.startswith("node 3 (SaveTensor): expected pictures of B x H x W x 3 (IMAGE)")
    assert message in caught.value.message


class Fails(GivesBack):
    def run(self, image: Any) -> Any:
        raise MemoryError("no room")


async def test_a_failing_node_is_named() -> None:
    processor = await loaded(one("Fails"), with_nodes(Fails), warm_runs=0)
    cause = r"MemoryError: no room \(out of memory\)"
    expected = rf'^node 2 "Mine" \(Fails\): {cause} \(image: 1 x 8 x 12 x 3 float32\)$'
    with pytest.raises(ProcessorError, match=expected) as caught:
        await processor.process_video_async(frame())
    assert caught.value.details[0]["inputs"] == {"image": "1 x 8 x 12 x 3 float32"}


class Sleeps(GivesBack):
    async def run(self, image: Any) -> Any:
        await asyncio.sleep(0)
        return (image * 2,)


async def test_async_nodes_run() -> None:
    assert await shown(await loaded(one("Sleeps"), with_nodes(Sleeps))) == pytest.approx(0.5)


async def test_nodes_run_without_autograd() -> None:
    seen = []

    class Looks(GivesBack):
        def run(self, image: Any) -> Any:
            seen.append(torch.is_inference_mode_enabled())
            return (image + 1,)

    await (await loaded(one("Looks"), with_nodes(Looks), warm_runs=0)).process_video_async(frame())
    assert seen == [True]
    assert not torch.is_inference_mode_enabled()


async def test_sessions_that_wait_in_turns_leave_autograd_as_it_was() -> None:
    """The mode is the thread's: two that end in the order in which they began would leave it on."""
    steps = [asyncio.Event(), asyncio.Event()]
    seen = []

    class Waits(GivesBack):
        async def run(self, image: Any) -> Any:
            await steps[round(float(image.mean()))].wait()
            seen.append(torch.is_inference_mode_enabled())
            return (image + 1,)

    one_session, other = [await loaded(one("Waits"), with_nodes(Waits), warm_runs=0) for _ in range(2)]
    first = asyncio.create_task(one_session.process_video_async(frame(0.0)))
    second = asyncio.create_task(other.process_video_async(frame(1.0)))
    await asyncio.sleep(0)
    assert not torch.is_inference_mode_enabled()
    steps[0].set()
    await first
    steps[1].set()
    await second
    assert seen == [True, True]
    assert not torch.is_inference_mode_enabled()


async def test_several_workflows_in_a_row_each_take_the_pictures_of_the_one_before() -> None:
    assert await shown(await loaded([INVERT, INVERT, INVERT])) == pytest.approx(0.75)
    processor = await loaded([INVERT, load("passthrough"), blend(1.0)])
    assert await shown(processor) == pytest.approx(0.25)
    await processor.update_params({"2/3.blend_factor": 0.0})
    assert await shown(processor) == pytest.approx(0.75)


async def test_a_batch_goes_on_whole_to_the_next_workflow() -> None:
    processor = await loaded([one("Repeats"), INVERT], with_nodes(Repeats))
    result = await processor.process_video_async(frame(0.25))
    assert isinstance(result, list)
    assert [round(float(item.tensor.mean()), 2) for item in result] == [0.75, 0.5, 0.25]


class Describes(GivesBack):
    RETURN_TYPES = ("STRING",)

    def run(self, image: Any) -> Any:
        return (f"{float(image.mean()):.2f}",)


async def test_a_workflow_that_gives_text_alone_lets_the_frame_pass() -> None:
    graph = {
        "1": LOAD,
        "2": {"class_type": "Describes", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveTextTensor", "inputs": {"data": ["2", 0]}},
    }
    processor = await loaded(graph, with_nodes(Describes))
    said: list[Emission] = []
    processor.bind(said.append)
    source = frame(0.25)
    assert await processor.process_video_async(source) is source
    assert [(emission.kind, emission.data) for emission in said] == [("text", "0.25")]


async def test_a_mask_beside_the_stream_is_empty() -> None:
    class Covers(GivesBack):
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {"image": ("IMAGE",), "mask": ("MASK",)}}

        def run(self, image: Any, mask: Any) -> Any:  # type: ignore[override]
            assert mask.shape == (1, 64, 64)
            return (image + mask.sum(),)

    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "Covers", "inputs": {"image": ["1", 0], "mask": ["1", 1]}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    assert await shown(await loaded(graph, with_nodes(Covers))) == pytest.approx(0.25)


def test_info_follows_from_the_graph_before_anything_is_loaded() -> None:
    info = WorkflowProcessor(blend()).info()
    assert (info.video, info.audio) == (True, False)
    assert set(info.schema["properties"]) == {"3.blend_factor", "3.blend_mode"}
    with pytest.raises(InvalidWorkflow, match="missing input"):
        WorkflowProcessor({"1": {"class_type": "ImageInvert", "inputs": {}}}).info()


@pytest.mark.parametrize("workflow", [None, [], {}, "{", 5, [INVERT, None]])
async def test_what_is_no_workflow_is_refused(workflow: Any) -> None:
    with pytest.raises(InvalidWorkflow):
        await WorkflowProcessor(workflow).load_model()


async def test_without_loading_nothing_is_processed() -> None:
    processor = WorkflowProcessor(INVERT)
    with pytest.raises(ProcessorError, match="not loaded"):
        await processor.process_video_async(frame())
    with pytest.raises(ProcessorError, match="not loaded"):
        await processor.update_params({"x": 1})


async def test_parameters_take_effect_at_the_next_frame() -> None:
    processor = await loaded(blend(0.0))
    assert await shown(processor) == pytest.approx(0.25)
    await processor.update_params({"Mix.blend_factor": 1.0})
    assert await shown(processor) == pytest.approx(0.75)
    assert processor.info().schema["properties"]["3.blend_factor"]["default"] == 1.0


async def test_parameters_are_taken_whole_or_not_at_all() -> None:
    processor = await loaded(blend(0.0))
    with pytest.raises(InvalidInput, match=r"3.blend_mode: must be one of 'normal'.*got 'glow'"):
        await processor.update_params({"3.blend_factor": 1.0, "3.blend_mode": "glow"})
    assert await shown(processor) == pytest.approx(0.25)


@pytest.mark.parametrize("key", ["workflow", "prompt", "prompts"])
@pytest.mark.parametrize(
    "form", [lambda data: data, json.dumps, lambda data: [data], lambda data: json.dumps([data])]
)
async def test_another_workflow_is_swapped_in_by_any_of_its_keys_and_forms(key: str, form: Any) -> None:
    processor = await loaded(blend(0.0))
    await processor.update_params({key: form(INVERT)})
    assert await shown(processor) == pytest.approx(0.75)
    assert processor.info().schema["properties"] == {}


async def test_parameters_beside_a_new_workflow_are_those_of_the_new_one() -> None:
    processor = await loaded(INVERT)
    await processor.update_params({"prompts": [blend(0.0)], "mix.blend_factor": 1.0})
    assert await shown(processor) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "params",
    [
        {"workflow": {"1": {"class_type": "Nope", "inputs": {}}}},
        {"workflow": "not json"},
        {"workflow": []},
        {"workflow": INVERT, "prompt": INVERT},
        {"workflow": INVERT, "3.blend_factor": 0.5},
        {"workflow": blend(0.2), "3.blend_factor": 7},
        {"workflow": one("WillNotBeMade")},
        {"workflow": [blend(1.0), one("WillNotBeMade")]},
    ],
)
async def test_a_workflow_that_fails_to_load_leaves_the_old_one_running(params: dict[str, Any]) -> None:
    class WillNotBeMade(GivesBack):
        def __init__(self) -> None:
            raise OSError("no weights")

    processor = await loaded(blend(0.0), with_nodes(WillNotBeMade))
    with pytest.raises((InvalidInput, ProcessorError)):
        await processor.update_params(params)
    assert await shown(processor) == pytest.approx(0.25)
    await processor.update_params({"Mix.blend_factor": 1.0})
    assert await shown(processor) == pytest.approx(0.75)


async def test_a_node_titled_prompt_is_not_taken_for_a_workflow() -> None:
    graph = blend(0.0)
    graph["3"]["_meta"]["title"] = "prompt"
    processor = await loaded(graph)
    await processor.update_params({"prompt": {"blend_factor": 1.0}})
    assert await shown(processor) == pytest.approx(0.75)
    await processor.update_params({"prompt": INVERT})
    assert processor.info().schema["properties"] == {}


class CountsItself(GivesBack):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1


async def test_a_workflow_that_differs_in_values_alone_keeps_its_nodes() -> None:
    node_class = type("CountsItself", (CountsItself,), {})
    graph = blend(0.0)
    graph["9"] = {"class_type": "CountsItself", "inputs": {"image": ["1", 0]}}
    graph["3"]["inputs"]["image1"] = ["9", 0]
    processor = await loaded(graph, NodeRegistry.builtin().add({"CountsItself": node_class}))
    other = copy.deepcopy(graph)
    other["3"]["inputs"]["blend_factor"] = 1
    await processor.update_params({"prompts": [other]})
    assert await shown(processor) == pytest.approx(0.75)
    assert node_class.made == 1
    other["9"]["_meta"] = {"title": "Something else"}
    await processor.update_params({"prompts": [other]})
    assert node_class.made == 2


async def test_the_same_shape_with_other_classes_is_another_workflow() -> None:
    processor = await loaded(one("GivesBack"), with_nodes(GivesBack, WritesInPlace))
    await processor.update_params({"workflow": one("WritesInPlace")})
    assert await shown(processor) == pytest.approx(0.125)


async def test_parameters_of_a_start_are_taken_among_others() -> None:
    processor = await loaded(blend(0.0))
    await processor.on_stream_start(
        {"width": 512, "height": 512, "Mix.blend_factor": 1.0, "3": {"blend_mode": "normal"}}
    )
    assert await shown(processor) == pytest.approx(0.75)
    with pytest.raises(InvalidInput, match="must be at most"):
        await processor.on_stream_start({"Mix.blend_factor": 2})


async def test_a_choice_holds_for_what_the_editor_saves_too() -> None:
    sheet = Sheet().node(1, "LoadImage", ["a.png"], outputs=["IMAGE", "MASK"]).node(2, "LoadTensor")
    data = sheet.node(3, "SaveTensor", inputs=["images:IMAGE"]).wire(1, 0, 3, "images").file()
    with pytest.raises(InvalidWorkflow, match="it is open whether"):
        await loaded(data)
    assert await shown(await loaded(data, input_node="1")) == pytest.approx(0.25)


async def test_a_choice_of_input_holds_for_the_workflow_that_has_the_node() -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "LoadTensor", "inputs": {}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["1", 0]}},
    }
    with pytest.raises(InvalidWorkflow, match="it is open whether"):
        await loaded(graph)
    processor = await loaded(graph, input_node="1")
    await processor.update_params(
        {"workflow": {**INVERT, "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}}}}
    )
    assert await shown(processor) == pytest.approx(0.75)
    with pytest.raises(InvalidWorkflow, match="there is no node 9, which was chosen"):
        await loaded(INVERT, input_node="9")


changes = st.dictionaries(
    st.sampled_from(["3.blend_factor", "3.blend_mode", "Mix.blend_factor", "nothing.here"]),
    st.floats(-0.5, 1.5) | st.sampled_from(["normal", "multiply", "screen", "glow"]) | st.none(),
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(changes, max_size=5))
def test_any_sequence_of_updates_leaves_what_a_fresh_start_would_give(updates: list[dict[str, Any]]) -> None:
    async def scenario() -> None:
        processor = await loaded(blend(0.5, "multiply"))
        accepted: dict[str, Any] = {"blend_factor": 0.5, "blend_mode": "multiply"}
        for update in updates:
            try:
                await processor.update_params(update)
            except InvalidInput:
                continue
            accepted |= {name.split(".")[1]: value for name, value in update.items()}
        fresh = await loaded(blend(accepted["blend_factor"], accepted["blend_mode"]))
        assert await shown(processor) == await shown(fresh)

    asyncio.run(scenario())


def scene(height: int = 96, width: int = 128) -> Any:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x / width, y / height, (x + y) / (width + height)], -1) * 0.4
    rgb[np.hypot(x - width / 2, y - height / 2) < 25] += 0.5
    return torch.from_numpy(rgb.astype(np.float32))[None]


def installed(name: str) -> bool:
    definitions = NodeRegistry.builtin().definitions
    graph = prepare(load(name), definitions)
    return not not_installed(graph, graph.nodes, definitions)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason="needs headrace[demo]"))
        for name in names()
    ],
)
async def test_bundled_workflows_run_at_any_size_and_keep_it(name: str) -> None:
    processor = await loaded(load(name))
    for height, width in ((96, 128), (512, 512), (90, 161)):
        source = VideoFrame(scene(height, width), 0, Fraction(1, 30))
        result = await processor.process_video_async(source)
        assert isinstance(result, VideoFrame)
        assert result.tensor.shape == (1, height, width, 3)
        assert 0 <= float(result.tensor.min()) <= float(result.tensor.max()) <= 1


async def test_edges_are_white_on_black() -> None:
    result = await (await loaded(load("edges"))).process_video_async(VideoFrame(scene(), 0, Fraction(1, 30)))
    assert isinstance(result, VideoFrame)
    assert set(result.tensor.unique().tolist()) == {0.0, 1.0}
    assert 50 < float(result.tensor[..., 0].sum()) < 1000


async def test_a_cartoon_has_a_dark_line_between_two_flat_colours() -> None:
    tensor = torch.full((1, 384, 512, 3), 0.95)
    tensor[:, :, 256:] = torch.tensor([0.6, 0.4, 0.3])
    processor = await loaded(load("cartoon"))
    result = await processor.process_video_async(VideoFrame(tensor, 0, Fraction(1, 30)))
    assert isinstance(result, VideoFrame)
    brightness = result.tensor[0].max(-1).values
    assert (brightness[:, 250:262].min(1).values < 0.3).all()
    assert (brightness[:, :240] > 0.9).all()
    right = result.tensor[0, :, 272:].reshape(-1, 3)
    assert (right.amax(0) - right.amin(0) < 0.02).all()
    assert right[0, 0] > right[0, 2] + 0.2


def test_names_and_files(tmp_path: Any) -> None:
    assert names() == [
        *("blur-background", "cartoon", "edges", "passthrough", "style-background", "style-transfer")
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(INVERT))
    assert load(str(file)) == load(file) == INVERT
    with pytest.raises(
        NotFound, match=r"no workflow 'edgs' \(did you mean edges\?\); bundled are blur-background, cartoon"
    ):
        load("edgs")
    with pytest.raises(NotFound, match="No such file"):
        load(str(tmp_path / "gone.json"))
    for name in ("../library", "..", "", "edges.json/../edges", str(file)):
        with pytest.raises(NotFound):
            load_bundled(name)
    file.write_text('{"1": {\n  "class_type": }}')
    with pytest.raises(InvalidWorkflow, match=r"mine.json is not JSON: Expecting value at line 2, column 17"):
        load(file)
