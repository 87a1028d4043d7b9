"""IP-Adapter in the stream: against diffusers' own, live scale and picture, what is refused."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from PIL import Image
from transformers import CLIPImageProcessor

from headrace.diffusion.adapters import Kit
from headrace.diffusion.asked import Guidance
from headrace.diffusion.attention import IMAGE_ROWS, IMAGE_SCALES
from headrace.diffusion.image_prompts import AdapterFiles, ImageAdapter
from headrace.diffusion.networks import Networks
from headrace.diffusion.stream import Stream
from headrace.models import tiny_diffusion
from stream.errors import InvalidInput
from tests.headrace.diffusion import tiny_adapters
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result
from tests.headrace.diffusion.tiny_networks import networks, pipeline

PICTURE = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(models))
        tiny_adapters.write(models, tiny_diffusion._unet())
        yield models
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


class Held:
    """A model that nothing has to be given back for."""

    def __init__(self, model: Any) -> None:
        self.model = model


def on(net: Networks, tensors: Any) -> ImageAdapter:
    held: Any = Held(tensors)
    encoder: Any = Held(tiny_adapters.image_encoder())
    return ImageAdapter(AdapterFiles("tiny", held, encoder), net, "ip_adapter")


def theirs(kind: str, tiny: Path, tensors: Any) -> Any:
    """diffusers' pipeline with the adapter on a network of its own."""
    base = pipeline(kind, tiny)
    parts = dict(base.components)
    side = 32
    parts |= {
        "unet": copy.deepcopy(base.unet), "image_encoder": tiny_adapters.image_encoder(),
        "feature_extractor": CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
    }  # fmt: skip
    pipe = type(base)(**parts)
    state = {
        part: {
            name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(part)
        }
        for part in ("image_proj", "ip_adapter")
    }
    pipe.load_ip_adapter(state, subfolder="", weight_name="", low_cpu_mem_usage=False)
    return pipe


@pytest.mark.parametrize(("kind", "layout"), [("sd", "plain"), ("sd", "plus"), ("sdxl", "plain")])
def test_equals_diffusers(kind: str, layout: str, tiny: Path) -> None:
    """Two rows: one of the negative prompt, one of the prompt."""
    net = networks(kind, tiny)
    tensors = tiny_adapters.adapter(net.unet, layout)
    pipe = theirs(kind, tiny, tensors)
    pipe.set_ip_adapter_scale(0.6)
    random = torch.Generator().manual_seed(1)
    sample, times = torch.randn((2, 4, 9, 10), generator=random), torch.tensor([500, 500])
    text = torch.randn((2, 7, net.unet.config.cross_attention_dim), generator=random)
    pooled = torch.randn((2, 32), generator=random)
    embeds = pipe.prepare_ip_adapter_image_embeds(Image.fromarray(PICTURE), None, "cpu", 1, True)
    more = (
        {"text_embeds": pooled, "time_ids": torch.tensor([[72, 80, 0, 0, 72, 80]] * 2)} if net.is_xl else {}
    )
    (expected,) = pipe.unet(
        sample, times, text, added_cond_kwargs={"image_embeds": embeds, **more}, return_dict=False
    )
    adapter = on(net, tensors)
    prompt = adapter.prompt(PICTURE)
    given = {
        IMAGE_ROWS: torch.cat([prompt.negative, prompt.rows]),
        IMAGE_SCALES: torch.tensor([adapter.scales(0.6, "linear")]).expand(2, -1),
    }
    time = net.view.time_rows(times, pooled if net.is_xl else None, (72, 80))
    found = net.view(sample, time, net.view.text_rows(text), given=given)
    plain = net.view(sample, time, net.view.text_rows(text))
    assert relative(found, expected) < 1e-4
    assert relative(plain, expected) > 1e-2


def test_rows_of_the_negative_prompt_have_a_picture_of_their_own(tiny: Path) -> None:
    net = networks("sd", tiny)
    adapter = on(net, tiny_adapters.adapter(net.unet))
    prompt, weights = adapter.prompt(PICTURE), adapter.scales(1.0, "linear")
    assert adapter.prompt(PICTURE.copy()) is prompt
    other = replace(prompt, negative=prompt.rows)
    kit = Kit(net, image=adapter)
    for mode, changes in (("none", False), ("self", False), ("initialize", True), ("full", True)):
        guidance: Any = Guidance(mode, 1.5)
        made = [
            play(
                net,
                Stream(settings(net, INDICES[2], guidance=guidance, adapters=kit.adapters([], one, weights))),
                pictures(3),
            )[-1]
            for one in (prompt, other)
        ]
        assert torch.equal(*made) != changes


def test_parts_of_sdxl_have_weights_of_their_own(tiny: Path) -> None:
    net = networks("sdxl", tiny)
    adapter = on(net, tiny_adapters.adapter(net.unet))
    names = [layer.name for layer in net.view.cross]
    weights = adapter.scales(0.5, "style and composition")
    assert set(weights) <= {0.0, 0.5}
    acting = [name for name, weight in zip(names, weights, strict=True) if weight]
    assert acting == [name for name in names if name.startswith("up_blocks.0.attentions.1.")]
    with pytest.raises(InvalidInput, match="composition is for SDXL"):
        adapter.scales(0.5, "composition")


def test_files_that_do_not_fit_are_refused_by_name(tiny: Path) -> None:
    net = networks("sd", tiny)
    tensors = tiny_adapters.adapter(net.unet)
    with pytest.raises(InvalidInput, match="tiny is no IP-Adapter"):
        on(net, {"conv.weight": torch.zeros(1)})
    with pytest.raises(InvalidInput, match="FaceID"):
        on(net, {**{k: v for k, v in tensors.items() if k.startswith("ip_")}, "image_proj.proj.0.weight": 0})
    with pytest.raises(InvalidInput, match="another kind of network"):
        on(networks("sdxl", tiny), tensors)


# -- the pipeline --------------------------------------------------------------------------------------


def encoded(picture: Any = PICTURE) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


OWN = {"model_id": "ip-adapter.safetensors", "image_encoder": "image_encoder"}


async def test_scale_and_picture_are_live() -> None:
    first = {"ip_adapter_style_image_url": encoded()}
    steps = {"t_index_list": [32]}
    processor = await loaded(ip_adapter={**OWN, "scale": 0.0}, **first, **steps)
    plain = await loaded(ip_adapter={"enabled": False, "type": "regular"}, **steps)
    assert torch.allclose(await result(processor, frame()), await result(plain, frame()), atol=1e-5)
    held = processor._held
    shown = []
    for change in (
        {"ip_adapter": {**OWN, "scale": 0.8}},
        {"ip_adapter_style_image_url": "data:image/png;base64," + encoded(255 - PICTURE)},
    ):
        await processor.prepare_params(change)
        await processor.update_params(change)
        shown.append(await result(processor, frame()))
    assert processor._held is held
    assert not torch.allclose(shown[0], await result(plain, frame()), atol=1e-3)
    assert not torch.allclose(shown[0], shown[1], atol=1e-4)
    assert processor.info().schema["properties"]["ip_adapter_style_image_url"]["default"] is None
    await processor.update_params({"ip_adapter_style_image_url": None})
    assert torch.allclose(await result(processor, frame()), await result(plain, frame()), atol=1e-5)
    for one in (processor, plain):
        await one.on_stream_stop()


@pytest.mark.parametrize(
    ("params", "field", "text"),
    [
        ({"ip_adapter": {"type": "faceid"}}, "ip_adapter.type", "regular"),
        ({"ip_adapter": {"scale": 20}}, "ip_adapter.scale", "10"),
        ({"ip_adapter_style_image_url": "http://a/b.png"}, "ip_adapter_style_image_url", "no addresses"),
        ({"ip_adapter_style_image_url": "data:text/plain,a"}, "ip_adapter_style_image_url", "base64"),
        ({"ip_adapter_style_image_url": "(*)"}, "ip_adapter_style_image_url", "base64"),
        ({"ip_adapter": {}, "ip_adapter_style_image_url": encoded()}, "ip_adapter", "h94/IP-Adapter"),
    ],
)
async def test_what_is_wrong_is_told_by_field(params: dict[str, Any], field: str, text: str) -> None:
    with pytest.raises(Exception, match=text) as caught:
        await loaded(**params)
    assert getattr(caught.value, "field", None) == field


async def test_what_is_no_picture_is_told() -> None:
    processor = await loaded(t_index_list=[32])
    await result(processor, frame())
    with pytest.raises(Exception, match="not a picture") as caught:
        await processor.prepare_params({"ip_adapter": OWN, "ip_adapter_style_image_url": "aGVsbG8="})
    assert getattr(caught.value, "field", None) == "ip_adapter_style_image_url"
    await processor.on_stream_stop()
