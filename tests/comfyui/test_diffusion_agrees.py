"""The built-in diffusion nodes against a real ComfyUI: one small checkpoint, the same noise, the same result.

`make test-comfyui COMFYUI=DIR [COMFYUI_PYTHON=PATH]`. With HEADRACE_TEST_AGREEMENT=FILE the difference of
every pair is written there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

COMFYUI = os.environ.get("HEADRACE_TEST_COMFYUI", "")
PYTHON = os.environ.get("HEADRACE_TEST_COMFYUI_PYTHON") or None
pytestmark = pytest.mark.skipif(not COMFYUI, reason="no ComfyUI is named (make test-comfyui COMFYUI=DIR)")

sys.path.insert(0, str(Path(__file__).parent.parent / "headrace" / "nodes"))
import ldm_checkpoint as ldm  # noqa: E402

from headrace.comfyui.installation import Installation  # noqa: E402
from headrace.models.roots import Roots  # noqa: E402
from headrace.nodes.access import Models  # noqa: E402
from headrace.nodes.handles import Clip, ControlNet, Model  # noqa: E402
from headrace.nodes.names import sampler_names, scheduler_names  # noqa: E402

TOLERANCE = 5e-4
"""Of the greatest value of a latent. Both compute in float32; the sampler on Brownian paths asks for them at
levels that are rounded in another order."""
EXACT = 2e-5

TEXTS = {
    "plain": "a cat",
    "weights": "a (cat:1.3) in the ((rain)), (soft:0.4)",
    "escapes": "(a:0.5) \\(b\\) [c]",
    "two chunks": "photograph of a red bicycle, " * 18,
    "unbalanced": "half (a (b",
    "letters": "A Ünï  café's <x> 12345 !!! (very (deep:2.0):0.4)",
    "empty": "",
    "embedding": "a embedding:mark, (in the embedding:mark:1.4) rain",
    "no embedding": "a embedding:none, here",
}


@dataclass
class Both:
    """What ComfyUI made, and what is needed to make the same here."""

    folder: Path
    wishes: dict[str, Any]
    given: dict[str, torch.Tensor]
    made: dict[str, torch.Tensor]
    models: Models

    def model(self) -> tuple[Model, Clip]:
        held = self.models.parts("checkpoints", "tiny.safetensors")
        return Model.of(held), Clip.of((held,), self.models.files)

    def sample(
        self, model: Model, wish: dict[str, Any], positive: Any = None, negative: Any = None
    ) -> torch.Tensor:
        from headrace.nodes.inpainting import SetLatentNoiseMask
        from headrace.nodes.sampling import KSampler, KSamplerAdvanced

        more = {
            "model": model,
            "positive": positive or [[self.given["positive"], {}]],
            "negative": negative or [[self.given["negative"], {}]],
            "latent_image": {"samples": self.given[wish["latent"]]},
        }
        if "mask" in wish:
            (more["latent_image"],) = SetLatentNoiseMask().set_mask(
                more["latent_image"], self.given[wish["mask"]]
            )
        if "advanced" in wish:
            return KSamplerAdvanced().sample(**more, **wish["advanced"])[0]["samples"]
        return KSampler().sample(**more, **wish["node"])[0]["samples"]


def node(sampler: str, scheduler: str, **more: Any) -> dict[str, Any]:
    wish = {
        "seed": 7,
        "steps": 4,
        "cfg": 3.0,
        "denoise": 1.0,
        "sampler_name": sampler,
        "scheduler": scheduler,
    }
    return {"latent": "empty", "node": {**wish, **more}}


def samples() -> dict[str, Any]:
    wishes = {f"{a} {b}": node(a, b) for a in sampler_names() for b in scheduler_names()}
    wishes |= {
        f"{a} changing": {**node(a, "karras", steps=3, denoise=0.6), "latent": "latent"}
        for a in sampler_names()
    }
    wishes["without guidance"] = node("euler", "normal", cfg=1.0)
    for name, sampler in (("masked", "euler"), ("masked, ancestral", "dpmpp_2s_ancestral")):
        wishes[name] = {**node(sampler, "karras", denoise=0.8), "latent": "latent", "mask": "mask"}
    common = {"noise_seed": 9, "steps": 6, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    for name, add, start, end, left in (
        ("first part", "enable", 0, 3, "enable"), ("last part", "disable", 3, 10000, "disable"),
        ("cut short", "enable", 1, 4, "disable"),
    ):  # fmt: skip
        advanced = {**common, "add_noise": add, "start_at_step": start, "end_at_step": end}
        wishes[name] = {"latent": "latent", "advanced": {**advanced, "return_with_leftover_noise": left}}
    return wishes


def write_files(folder: Path) -> dict[str, Any]:
    """A checkpoint, a LoRA, a control network and autoencoders; what ComfyUI needs to know of them."""
    from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from safetensors.torch import save_file

    common: dict[str, Any] = {
        "block_out_channels": (320, 320),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    unet = ldm.drawn(UNet2DConditionModel(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **common), 1)
    clip = ldm.drawn(ldm.small_clip(), 3)
    tensors = ldm.unet_tensors(unet, (True, False))
    tensors |= ldm.clip_tensors(clip, "cond_stage_model.transformer.")
    checkpoint = ldm.write(folder / "checkpoints/tiny.safetensors", tensors, torch.Tensor.half)
    mark = torch.randn(3, 768, generator=torch.Generator().manual_seed(4))
    ldm.write(folder / "embeddings/mark.safetensors", {"emb_params": mark})
    lora = ldm.write(folder / "loras/l.safetensors", lora_tensors(unet, clip))
    net = ldm.drawn(ControlNetModel(**common), 5)
    names = list(ldm.controlnet_names(2, 1, "control_model."))
    control = {
        next(o + n.removeprefix(a) for a, o in names if n.startswith(a)): v
        for n, v in net.state_dict().items()
    }
    control_file = ldm.write(folder / "controlnet/c.safetensors", control)
    whole = ldm.write(folder / "vae/v.safetensors", ldm.vae_tensors(ldm.drawn(ldm.small_vae(), 2), ""))
    tiny = AutoencoderTiny().state_dict()
    sides = {}
    for side, step in (("encoder", 0), ("decoder", 1)):
        start = f"{side}.layers."
        state = {n.removeprefix(start): v for n, v in tiny.items() if n.startswith(start)}
        state = {f"{int(n.split('.')[0]) + step}.{n.partition('.')[2]}": v for n, v in state.items()}
        sides[side] = folder / f"vae_approx/taesd_{side}.safetensors"
        sides[side].parent.mkdir(exist_ok=True)
        save_file({n: v.contiguous() for n, v in state.items()}, sides[side])
    config = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    run = node("euler", "normal")
    return {
        "checkpoint": str(checkpoint),
        "embeddings": str(folder / "embeddings"),
        "clip": {"num_hidden_layers": 2, "intermediate_size": 64},
        "loras": {"lora": {"file": str(lora), "strength": 0.7, "text": "a (cat:1.2)", "sample": run}},
        "controls": {
            f"control {start} {end}": {
                "file": str(control_file), "strength": 0.8, "start": start, "end": end,
                "sample": run,
            }
            for start, end in ((0.0, 1.0), (0.2, 0.6))
        },
        "vaes": {"whole": str(whole), "config": {"ddconfig": config, "embed_dim": 4},
                 **{side: str(path) for side, path in sides.items()}},
    }  # fmt: skip


def lora_tensors(unet: torch.nn.Module, clip: torch.nn.Module) -> dict[str, torch.Tensor]:
    """In kohya's names: the attention and one convolution of the network, and a layer of the encoder."""
    generator = torch.Generator().manual_seed(6)
    places = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight", unet),
        "lora_unet_mid_block_resnets_0_conv1": ("mid_block.resnets.0.conv1.weight", unet),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": ("encoder.layers.1.mlp.fc1.weight", clip),
    }  # fmt: skip
    found = {}
    for key, (name, module) in places.items():
        shape = module.get_parameter(name).shape
        wide = shape[2:]
        found[f"{key}.lora_down.weight"] = torch.randn(4, shape[1], *wide, generator=generator) * 0.05
        found[f"{key}.lora_up.weight"] = (
            torch.randn(shape[0], 4, *(1 for _ in wide), generator=generator) * 0.3
        )
        found[f"{key}.alpha"] = torch.tensor(2.0)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("agrees")
    wishes = write_files(folder)
    generator = torch.Generator().manual_seed(5)
    shapes = {"positive": (1, 77, 768), "negative": (1, 77, 768), "latent": (1, 4, 8, 8)}
    given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    given["empty"] = torch.zeros(1, 4, 8, 8)
    given |= {n: torch.rand(1, 67, 70, 3, generator=generator) for n in ("picture", "hint")}
    given["mask"] = torch.zeros(1, 64, 64)
    given["mask"][:, 10:40, 5:50] = 1
    save_file(given, folder / "inputs.safetensors")
    texts = {name: {"text": text, "stop_at": None} for name, text in TEXTS.items()}
    texts["earlier layer"] = {"text": "a cat (x:1.2)", "stop_at": -2}
    wishes |= {"inputs": str(folder / "inputs.safetensors"), "texts": texts, "samples": samples()}
    (folder / "wishes.json").write_text(json.dumps(wishes))
    results = folder / "results.safetensors"
    script = Path(__file__).with_name("comfy_side.py")
    python = Installation.at(Path(COMFYUI), PYTHON).python
    done = subprocess.run(
        [python, str(script), COMFYUI, str(folder / "wishes.json"), str(results)],
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with safe_open(results, "pt") as file:
        assert json.loads(file.metadata()["failed"]) == {}
    models = Models(Roots(folder, folder / "hub", folder / "cache"))
    return Both(folder, wishes, given, load_file(results), models)


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def test_every_pair_of_sampler_and_scheduler_agrees(both: Both) -> None:
    model, _ = both.model()
    with torch.inference_mode():
        found = {
            name: far(both.sample(model, wish), both.made[name])
            for name, wish in both.wishes["samples"].items()
        }
    if path := os.environ.get("HEADRACE_TEST_AGREEMENT"):
        Path(path).write_text(json.dumps(found))
    assert not {name: error for name, error in found.items() if not error < TOLERANCE}
    assert sorted(found.values())[len(found) // 2] < EXACT


def test_texts_make_the_same_conditions(both: Both) -> None:
    from headrace.nodes.text_nodes import CLIPSetLastLayer, CLIPTextEncode

    _, clip = both.model()
    for name, wish in both.wishes["texts"].items():
        one = clip if wish["stop_at"] is None else CLIPSetLastLayer().set_last_layer(clip, wish["stop_at"])[0]
        ((states, options),) = CLIPTextEncode().encode(one, wish["text"])[0]
        assert far(states, both.made[f"{name} states"]) < EXACT, name
        assert far(options["pooled_output"], both.made[f"{name} pooled"]) < EXACT, name


def test_a_lora_changes_both_alike(both: Both) -> None:
    from headrace.nodes.lora_models import apply_to_clip, apply_to_model
    from headrace.nodes.text_nodes import CLIPTextEncode

    model, clip = both.model()
    wish = both.wishes["loras"]["lora"]
    changed = apply_to_model(both.models, model, "l.safetensors", wish["strength"])
    made = both.sample(changed, wish["sample"])
    assert far(made, both.made["lora"]) < TOLERANCE
    assert far(both.sample(model, wish["sample"]), both.made["lora"]) > 10 * TOLERANCE
    other = apply_to_clip(both.models, clip, "l.safetensors", wish["strength"])
    ((states, _),) = CLIPTextEncode().encode(other, wish["text"])[0]
    # On a CPU ComfyUI keeps the encoder, and so what the LoRA makes of it, in half precision.
    assert far(states, both.made["lora text states"]) < TOLERANCE


def test_a_control_network_steers_alike(both: Both) -> None:
    from headrace.nodes.control import ControlNetApplyAdvanced

    model, _ = both.model()
    held = both.models.parts("controlnet", "c.safetensors")
    net = ControlNet(held.model["controlnet"], held)
    for name, wish in both.wishes["controls"].items():
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(
            [[both.given["positive"], {}]], [[both.given["negative"], {}]], net, both.given["hint"],
            wish["strength"], wish["start"], wish["end"],
        )  # fmt: skip
        made = both.sample(model, wish["sample"], positive, negative)
        assert far(made, both.made[name]) < TOLERANCE, name
        assert far(both.sample(model, wish["sample"]), both.made[name]) > 10 * TOLERANCE


def test_autoencoders_agree(both: Both) -> None:
    from headrace.nodes.handles import Vae
    from headrace.nodes.inpainting import VAEEncodeForInpaint
    from headrace.nodes.latents import VAEDecode, VAEEncode
    from headrace.nodes.loaders import bound_to, vae_of

    whole = vae_of(both.models.parts("vae", "v.safetensors"))
    (small,) = bound_to(both.models.files)["VAELoader"]().load_vae("taesd")
    found: dict[str, Vae] = {"whole": whole, "tiny": small}
    for name, vae in found.items():
        (latent,) = VAEEncode().encode(vae, both.given["picture"])
        assert far(latent["samples"], both.made[f"{name} latent"]) < EXACT * 10, name
        (hole,) = VAEEncodeForInpaint().encode(both.given["picture"], vae, both.given["mask"], 5)
        assert far(hole["samples"], both.made[f"{name} hole"]) < EXACT * 10, name
        assert torch.equal(hole["noise_mask"], both.made[f"{name} hole mask"]), name
        (picture,) = VAEDecode().decode(vae, {"samples": both.given["latent"]})
        assert far(picture, both.made[f"{name} picture"]) < EXACT * 10, name
