"""Real-time diffusion as nodes: against the pipeline of the same name, over the documented workflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from PIL import Image
from safetensors.torch import save_file

from headrace.diffusion.processor import StreamDiffusionProcessor
from headrace.models import tiny_diffusion
from headrace.nodes import builtin
from headrace.nodes.handles import ControlNet
from stream.errors import InvalidWorkflow
from stream.frames import VideoFrame
from tests.headrace.diffusion import tiny_adapters
from tests.headrace.diffusion.test_diffusion_controls import net_for
from tests.headrace.diffusion.test_diffusion_image_prompts import OWN, PICTURE, encoded
from tests.headrace.diffusion.test_diffusion_loras import lora_for
from tests.headrace.diffusion.test_diffusion_processor import frame, result
from workflows.check import prepare
from workflows.parameters import ParameterTable
from workflows.processor import WorkflowProcessor

DOCUMENTED = json.loads((Path(__file__).parents[3] / "docs" / "stream-diffusion.json").read_text())
PROMPT, NEGATIVE = (DOCUMENTED[node]["inputs"]["text"] for node in "34")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    models = tmp_path_factory.mktemp("models")
    (models / "loras").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(models))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield models
        torch.set_num_threads(threads)


def graph(**sampler: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(DOCUMENTED))
    data["5"]["inputs"] |= sampler
    return data


async def loaded(data: dict[str, Any]) -> WorkflowProcessor:
    processor = WorkflowProcessor(data, builtin.registry())
    await processor.load_model(width=64, height=64)
    return processor


async def pipeline(**params: Any) -> StreamDiffusionProcessor:
    given = {"model_id": "demo:tiny-sd", "prompt": PROMPT, "negative_prompt": NEGATIVE}
    made = StreamDiffusionProcessor(**{**given, "t_index_list": [16, 32], **params})
    await made.load_model()
    return made


async def shown(processor: WorkflowProcessor, given: VideoFrame) -> torch.Tensor:
    made = await processor.process_video_async(given)
    assert isinstance(made, VideoFrame)
    tensor: torch.Tensor = made.tensor
    return tensor


def test_every_literal_says_truly_what_a_change_costs() -> None:
    registry = builtin.registry()
    table = ParameterTable([prepare(DOCUMENTED, registry.definitions)], registry.definitions)
    costs = {name: table.parameters[name].cost for name in ("2.model_id", "2.autoencoder", "3.text")}
    assert costs == {"2.model_id": "reload", "2.autoencoder": "reload", "3.text": "recompute"}
    sampler = {parameter.cost for name, parameter in table.parameters.items() if name.startswith("5.")}
    assert sampler == {"frame"}


@pytest.mark.parametrize(
    ("literals", "params"),
    [
        ({}, {}),
        ({"cfg_type": "full", "guidance_scale": 1.5}, {"cfg_type": "full", "guidance_scale": 1.5}),
        ({"use_denoising_batch": False, "seed": 4}, {"use_denoising_batch": False, "seed": 4}),
        ({"recalled_frames": 2}, {"cached_attention": {"enabled": True, "max_frames": 2}}),
    ],
)
async def test_frames_are_those_of_the_pipeline(literals: dict[str, Any], params: dict[str, Any]) -> None:
    """Warming up leaves nothing behind; changes hold from the next frame on with all that is under way."""
    nodes, expected = await loaded(graph(**literals)), await pipeline(**params)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({}, {}),
        ({"3.text": "a lake"}, {"prompt": "a lake"}),
        ({"5.t_index_list": "10, 20, 40"}, {"t_index_list": [10, 20, 40]}),
        ({"5.seed": 8, "5.do_add_noise": False}, {"seed": 8, "do_add_noise": False}),
    ]
    before = torch.zeros(1)
    for number, (change, same) in enumerate(changes):
        await nodes.prepare_params(change)
        await nodes.update_params(change)
        await expected.update_params(same)
        made = await shown(nodes, frame(number))
        torch.testing.assert_close(made, await result(expected, frame(number)), atol=1e-4, rtol=0)
        assert not torch.equal(made, before)
        before = made
    await expected.on_stream_stop()


async def test_sessions_of_graphs_share_calls_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    other = graph(seed=4)
    other["3"]["inputs"]["text"] = "a lake"
    sessions = [await loaded(graph()), await loaded(other), await pipeline(seed=3)]
    assert sessions[2]._held is not None
    networks = sessions[2]._held.networks
    pictures: list[int] = []
    decode = networks.decode

    def counted(latents: torch.Tensor) -> torch.Tensor:
        pictures.append(len(latents))
        found: torch.Tensor = decode(latents)
        return found

    monkeypatch.setattr(networks, "decode", counted)
    await asyncio.gather(*(shown(session, frame(number)) for number, session in enumerate(sessions)))
    assert pictures == [3]
    await sessions[2].on_stream_stop()


@pytest.mark.parametrize(
    ("literals", "text"),
    [
        ({"5.t_index_list": "3, x"}, "commas"),
        ({"5.t_index_list": "32, 16"}, "may not go down"),
        ({"5.num_inference_steps": 20}, "0 to 19"),
        ({"5.cfg_type": "initialize", "5.guidance_scale": 2.0, "5.use_denoising_batch": False}, "batch"),
    ],
)
async def test_what_cannot_stream_is_refused_and_the_stream_goes_on(
    literals: dict[str, Any], text: str
) -> None:
    processor = await loaded(graph())
    await shown(processor, frame())
    with pytest.raises(InvalidWorkflow, match=text):
        await processor.update_params(literals)
    assert (await shown(processor, frame(1))).shape == (1, 64, 64, 3)


async def test_guidance_with_a_negative_needs_one_linked() -> None:
    data = graph(cfg_type="full", guidance_scale=2.0)
    del data["5"]["inputs"]["negative"]
    with pytest.raises(InvalidWorkflow, match="negative condition"):
        await loaded(data)


async def test_frames_that_look_alike_repeat_the_result() -> None:
    processor = await loaded(
        graph(enable_similar_image_filter=True, similar_image_filter_max_skip_frame=1, t_index_list="30, 45")
    )
    outs = [await shown(processor, frame()) for _ in range(3)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


async def test_control_networks_steer_by_the_frame_or_a_linked_picture() -> None:
    classes = builtin.registry()
    model, clip = classes.node_class("StreamDiffusionLoader")().load_stream("demo:tiny-sd", "auto")
    (positive,) = classes.node_class("CLIPTextEncode")().encode(clip, PROMPT)
    net = ControlNet(net_for(model.networks.unet, "edges"), model.loan.held[0])
    steer = classes.node_class("StreamDiffusionControl")().steer
    picture = frame(3).tensor

    async def painted(controls: Any) -> torch.Tensor:
        sample = classes.node_class("StreamDiffusionSampler")().sample
        (made,) = await sample(
            model, frame(1).tensor, positive, controls=controls, t_index_list="32", num_inference_steps=50
        )
        out: torch.Tensor = made
        return out

    (by_frame,) = steer(net, "passthrough", 1.0, 0.0, 1.0)
    (by_picture,) = steer(net, "passthrough", 1.0, 0.0, 1.0, image=picture)
    (by_the_same,) = steer(net, "canny", 1.0, 0.0, 1.0, image=frame(1).tensor)
    (never,) = steer(net, "passthrough", 1.0, 0.9, 1.0)
    plain = await painted(())
    assert torch.equal(await painted(never), plain)
    assert not torch.equal(await painted(by_frame), plain)
    assert not torch.equal(await painted(by_picture), await painted(by_frame))
    # A linked picture is taken as it is, whatever the preprocessor.
    assert torch.equal(await painted(by_the_same), await painted(by_frame))


async def test_loras_are_links_of_the_model(folder: Path) -> None:
    save_file(lora_for(tiny_diffusion._unet(), 1), folder / "loras" / "oil.safetensors")
    data = graph(t_index_list="32")
    lora = {"stream_model": ["2", 0], "lora_name": "oil.safetensors", "strength": 0.5}
    data["7"] = {"class_type": "StreamDiffusionLora", "inputs": lora}
    data["5"]["inputs"]["stream_model"] = ["7", 0]
    nodes = await loaded(data)
    expected = await pipeline(t_index_list=[32], lora_dict={"loras/oil.safetensors": 0.5})
    for number, strength in enumerate((0.5, -1.0)):
        await nodes.update_params({"7.strength": strength})
        await expected.update_params({"lora_dict": {"loras/oil.safetensors": strength}})
        made = await shown(nodes, frame(number))
        torch.testing.assert_close(made, await result(expected, frame(number)), atol=1e-4, rtol=0)
    await expected.on_stream_stop()


async def test_a_picture_is_a_prompt_of_the_model(folder: Path) -> None:
    tiny_adapters.write(folder, tiny_diffusion._unet())
    Image.fromarray(PICTURE).save(folder / "style.png")
    data = graph(t_index_list="32")
    adapter = {"adapter": OWN["model_id"], "image_encoder": OWN["image_encoder"]}
    data["7"] = {"class_type": "StreamDiffusionIPAdapterLoader", "inputs": adapter}
    data["8"] = {"class_type": "LoadImage", "inputs": {"image": "style.png"}}
    links = {"stream_model": ["2", 0], "ip_adapter": ["7", 0], "image": ["8", 0]}
    own = {"strength": 0.5, "weight_type": "linear"}
    data["9"] = {"class_type": "StreamDiffusionIPAdapter", "inputs": {**links, **own}}
    data["5"]["inputs"]["stream_model"] = ["9", 0]
    registry = builtin.registry(folder)
    nodes = WorkflowProcessor(data, registry, input_node="1")
    await nodes.load_model(width=64, height=64)
    costs = {name: found["cost"] for name, found in nodes.info().schema["properties"].items()}
    assert (costs["7.adapter"], costs["7.image_encoder"]) == ("reload", "reload")
    assert costs["9.strength"] == "recompute"
    picture = {"ip_adapter_style_image_url": encoded()}
    expected = await pipeline(t_index_list=[32], ip_adapter={**OWN, "scale": 0.5}, **picture)
    for number, strength in enumerate((0.5, 1.0)):
        await nodes.update_params({"9.strength": strength})
        await expected.update_params({"ip_adapter": {**OWN, "scale": strength}})
        made = await shown(nodes, frame(number))
        torch.testing.assert_close(made, await result(expected, frame(number)), atol=1e-4, rtol=0)
    await expected.on_stream_stop()
