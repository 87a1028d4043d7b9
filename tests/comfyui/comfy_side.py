"""Runs in ComfyUI's own interpreter: does with its code what a file of wishes says, and writes the results.

    python comfy_side.py COMFYUI WISHES.json RESULTS.safetensors

No part of the tests imports this; it imports nothing of Headrace.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

folder, wishes_file, results_file = sys.argv[1:4]
sys.path.insert(0, folder)
sys.argv = ["comfy_side", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.controlnet  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

comfy.utils.set_progress_bar_enabled(False)
torch.set_num_threads(1)


def main() -> None:
    wishes = json.loads(Path(wishes_file).read_text())
    given = load_file(wishes["inputs"])
    made: dict[str, torch.Tensor] = {}
    failed: dict[str, str] = {}
    with torch.inference_mode():
        model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(
            wishes["checkpoint"],
            output_vae=False,
            embedding_directory=wishes["embeddings"],
            te_model_options={f"{name}_model_config": wishes["clip"] for name in ("clip_l", "clip_g")},
        )
        for name, wish in wishes["texts"].items():
            one = (
                clip
                if wish["stop_at"] is None
                else nodes.CLIPSetLastLayer().set_last_layer(clip, wish["stop_at"])[0]
            )
            attempt(
                name,
                failed,
                lambda one=one, wish=wish, name=name: made.update(texts(one, wish["text"], name)),
            )
        for name, wish in wishes["samples"].items():
            attempt(
                name, failed, lambda wish=wish, name=name: made.update({name: sample(model, wish, given)})
            )
        # `LoraLoader` looks for a name in its folders; here names are paths.
        nodes.folder_paths.get_full_path_or_raise = lambda kind, name: name
        for name, wish in wishes.get("loras", {}).items():
            patched, patched_clip = nodes.LoraLoader().load_lora(
                model, clip, wish["file"], wish["strength"], wish["strength"]
            )
            made[name] = sample(patched, wish["sample"], given)
            made.update(texts(patched_clip, wish["text"], f"{name} text"))
        for name, wish in wishes.get("controls", {}).items():
            net = comfy.controlnet.load_controlnet(wish["file"])
            positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
                [[given["positive"], {}]], [[given["negative"], {}]], net, given["hint"], wish["strength"],
                wish["start"], wish["end"],
            )  # fmt: skip
            made[name] = sample(model, wish["sample"], given, positive, negative)
        if "vaes" in wishes:
            made.update(vaes(wishes["vaes"], given))
    save_file(
        {k: v.contiguous().clone() for k, v in made.items()},
        results_file,
        metadata={"failed": json.dumps(failed)},
    )


def attempt(name: str, failed: dict[str, str], work: Any) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001 (told to the test, which decides)
        failed[name] = traceback.format_exc(limit=-2)


def texts(clip: Any, text: str, name: str) -> dict[str, torch.Tensor]:
    ((states, options),) = nodes.CLIPTextEncode().encode(clip, text)[0]
    return {f"{name} states": states, f"{name} pooled": options["pooled_output"]}


def sample(model: Any, wish: Any, given: Any, positive: Any = None, negative: Any = None) -> torch.Tensor:
    more = {} if not wish.get("pooled") else {"pooled_output": given["pooled"]}
    positive = positive or [[given["positive"], dict(more)]]
    negative = negative or [[given["negative"], dict(more)]]
    latent = {"samples": given[wish["latent"]].clone()}
    if "mask" in wish:
        (latent,) = nodes.SetLatentNoiseMask().set_mask(latent, given[wish["mask"]])
    if "advanced" in wish:
        return nodes.KSamplerAdvanced().sample(
            model=model, positive=positive, negative=negative, latent_image=latent, **wish["advanced"]
        )[0]["samples"]
    return nodes.KSampler().sample(
        model=model, positive=positive, negative=negative, latent_image=latent, **wish["node"]
    )[0]["samples"]


def vaes(wish: Any, given: Any) -> dict[str, torch.Tensor]:
    made = {}
    whole = comfy.sd.VAE(sd=load_file(wish["whole"]), config={"params": wish["config"]})
    state = {}
    for side in ("encoder", "decoder"):
        state |= {f"taesd_{side}.{k}": v for k, v in load_file(wish[side]).items()}
    small = comfy.sd.VAE(sd={**state, "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)})
    for name, vae in (("whole", whole), ("tiny", small)):
        made[f"{name} latent"] = nodes.VAEEncode().encode(vae, given["picture"])[0]["samples"]
        (hole,) = nodes.VAEEncodeForInpaint().encode(vae, given["picture"], given["mask"], 5)
        made[f"{name} hole"], made[f"{name} hole mask"] = hole["samples"], hole["noise_mask"]
        made[f"{name} picture"] = nodes.VAEDecode().decode(vae, {"samples": given["latent"]})[0]
    return made


main()
