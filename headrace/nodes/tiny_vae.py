"""The tiny autoencoder (TAESD): two files in vae_approx, as its makers give them away."""

from __future__ import annotations

import re

from headrace.models import loading, weights
from headrace.models.cache import Loaded, LoadProgress
from headrace.models.errors import LoadFailed
from headrace.models.live_cache import Held, device_of_engine, hold
from headrace.nodes.access import Models


def load(models: Models, encoder: str, decoder: str) -> Held:
    """Both sides in one `AutoencoderTiny`, under the key of the first. Raises `LoadFailed`."""
    sides = {"encoder": models.find("vae_approx", encoder), "decoder": models.find("vae_approx", decoder)}
    device = device_of_engine()
    dtype = loading.dtype_for(device)

    def make(progress: LoadProgress) -> Loaded:
        import torch
        from diffusers import AutoencoderTiny

        state = {}
        for side, found in sides.items():
            for name, value in loading.load_tensors(found).model.items():
                # Theirs begins with the layer that keeps values in bounds, which diffusers' does not number.
                number, _, rest = re.sub(r"^taesd_\w+?\.", "", name).partition(".")
                place = int(number) - 1 if side == "decoder" else int(number)
                state[f"{side}.layers.{place}.{rest}"] = value.to(dtype)
        with torch.device("meta"):
            module = AutoencoderTiny(latent_channels=state["decoder.layers.0.weight"].shape[1])
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[2].strip()[:200]
            raise LoadFailed(f"{encoder} and {decoder} are no tiny autoencoder: {reason}") from None
        module = module.to(device)
        weights.freeze(module)
        return Loaded({"vae": module})

    revision = f" {sides['decoder'].revision}"
    return hold(
        sides["encoder"], "taesd", make, dtype=loading.name_of(dtype), device=device, revision=revision
    )
