"""Networks, text encoders and upscalers out of files of their own, by the loaders' nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ldm_checkpoint as ldm
import pytest
import torch

from headrace.batch.pipelines.upscale_networks import RrdbNet, Upscaler
from headrace.models.errors import LoadFailed
from headrace.models.roots import Roots
from headrace.nodes import loaders, upscaling
from headrace.nodes.files import ModelFiles
from headrace.nodes.handles import Clip
from headrace.nodes.schedules import Levels
from headrace.nodes.text_nodes import CLIPTextEncode
from workflows.check import examine
from workflows.registry import NodeRegistry

PADDED = {"l": 49407, "g": 0}
TEXT = "a cat"
TOKENS = [49406, 320, 2368, 49407]


class Files:
    """A models folder, what was written there, and the nodes that load it."""

    def __init__(self, top: Path) -> None:
        self.models = top / "models"
        self.nodes = loaders.bound_to(ModelFiles(Roots(self.models, top / "hub", top / "cache")))
        self.unet = ldm.drawn(ldm.small_unet(), 1)
        self.clips = {name: ldm.drawn(ldm.small_clip(width=64), n) for n, name in enumerate(PADDED)}
        generator = torch.Generator().manual_seed(5)
        self.network = RrdbNet(1, 16, 8, 1, 1).eval().requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        big = ldm.open_clip_tensors(self.clips["g"])
        self.projection = big["text_projection"]
        ldm.write(self.models / "unet/u.safetensors", ldm.unet_tensors(self.unet, (True, False), ""))
        ldm.write(self.models / "clip/l.safetensors", ldm.clip_tensors(self.clips["l"], ""))
        ldm.write(self.models / "text_encoders/g.safetensors", big)
        ldm.write(self.models / "upscale_models/x2.safetensors", self.network.state_dict())
        flux = dict.fromkeys(("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), torch.zeros(1))
        ldm.write(self.models / "diffusion_models/flux.safetensors", flux)

    def hidden(self, name: str) -> tuple[torch.Tensor, ...]:
        """What each layer of an encoder says of `TEXT`, by transformers."""
        ids = torch.tensor([TOKENS + [PADDED[name]] * (77 - len(TOKENS))])
        made: Any = self.clips[name](ids, output_hidden_states=True)
        return (*made.hidden_states, made.last_hidden_state)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    with torch.inference_mode():
        yield Files(tmp_path_factory.mktemp("parts"))


def encoded(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    ((states, options),) = CLIPTextEncode().encode(clip, TEXT)[0]
    return states, options["pooled_output"]


def test_a_network_alone(files: Files) -> None:
    (model,) = files.nodes["UNETLoader"]().load_unet("u.safetensors", "default")
    state = model.unet.state_dict()
    assert state.keys() == files.unet.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in files.unet.state_dict().items())
    assert (model.levels.least, model.levels.most) == (Levels.of({}).least, Levels.of({}).most)
    assert not model.xl
    assert not model.v_prediction


def test_one_text_encoder_ends_in_its_last_layer(files: Files) -> None:
    (clip,) = files.nodes["CLIPLoader"]().load_clip("l.safetensors", "stable_diffusion")
    states, pooled = encoded(clip)
    expected = files.hidden("l")[-1]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, expected[:, TOKENS.index(49407)], atol=1e-5, rtol=1e-5)


def test_two_text_encoders_are_those_of_sdxl_whatever_their_order(files: Files) -> None:
    loader = files.nodes["DualCLIPLoader"]()
    states, pooled = encoded(loader.load_clip("l.safetensors", "g.safetensors", "sdxl")[0])
    before_last = [files.hidden(name)[-3] for name in ("l", "g")]
    torch.testing.assert_close(states, torch.cat(before_last, dim=-1), atol=1e-5, rtol=1e-5)
    end = files.hidden("g")[-1][:, TOKENS.index(49407)]
    torch.testing.assert_close(pooled, end @ files.projection, atol=1e-5, rtol=1e-5)
    other = encoded(loader.load_clip("g.safetensors", "l.safetensors", "sdxl")[0])
    assert torch.equal(other[0], states)


@pytest.mark.parametrize(
    ("kind", "name", "value", "supported"),
    [
        ("CLIPLoader", "type", "sd3", "stable_diffusion"),
        ("CLIPLoader", "type", "qwen_image", "stable_diffusion"),
        ("CLIPLoader", "device", "cpu", "default"),
        ("DualCLIPLoader", "type", "flux", "sdxl"),
        ("DualCLIPLoader", "type", "hunyuan_video", "sdxl"),
        ("UNETLoader", "weight_dtype", "fp8_e4m3fn", "default"),
    ],
)
def test_what_the_loaders_do_not_do_is_refused_by_name(
    files: Files, kind: str, name: str, value: str, supported: str
) -> None:
    names = {"CLIPLoader": ["clip_name"], "DualCLIPLoader": ["clip_name1", "clip_name2"]}
    inputs = dict.fromkeys(
        names.get(kind, ["unet_name"]), "u.safetensors" if kind == "UNETLoader" else "l.safetensors"
    )
    known = {"type": "sdxl" if kind == "DualCLIPLoader" else "stable_diffusion"}
    inputs |= {"weight_dtype": "default"} if kind == "UNETLoader" else known
    registry = NodeRegistry.from_mappings(files.nodes)
    registry.add({"Ends": Ends})
    graph = {
        "1": {"class_type": kind, "inputs": inputs | {name: value}},
        "2": {"class_type": "Ends", "inputs": {"anything": ["1", 0]}},
    }
    found = [one for one in examine(graph, registry.definitions)[1] if one.node_id == "1"]
    assert [(one.input, one.code) for one in found] == [(name, "not_a_choice")]
    assert f"got '{value}'" in found[0].message
    assert f"'{supported}'" in found[0].message


class Ends:
    RETURN_TYPES: tuple[str, ...] = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"anything": ("*",)}}

    def run(self, anything: Any) -> tuple[()]:
        return ()


def test_a_network_of_flux_is_refused_before_it_is_read(files: Files) -> None:
    with pytest.raises(LoadFailed, match=r"flux\.safetensors is a network of Flux"):
        files.nodes["UNETLoader"]().load_unet("flux.safetensors", "default")


@pytest.mark.parametrize("tile", [512, 8])
def test_pictures_are_enlarged_whole_or_in_tiles(
    files: Files, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscaling, "_TILE", tile)
    (model,) = files.nodes["UpscaleModelLoader"]().load_model("x2.safetensors")
    pictures = torch.rand(2, 13, 18, 3, generator=torch.Generator().manual_seed(3))
    (made,) = upscaling.ImageUpscaleWithModel().upscale(model, pictures)
    assert made.shape == (2, 26, 36, 3)
    expected = files.network(pictures.movedim(-1, 1)).movedim(1, -1).clamp(0, 1)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert isinstance(model.network, Upscaler)
