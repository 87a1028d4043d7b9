"""The networks of a real-time pipeline out of the engine's cache: one copy for all streams on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch

from headrace.diffusion import image_prompts, loras
from headrace.diffusion.adapters import Kit
from headrace.diffusion.calls import SharedCalls
from headrace.diffusion.networks import Networks
from headrace.diffusion.parameters import StreamDiffusionParams
from headrace.diffusion.safety import LiveSafety
from headrace.diffusion.safety import find as find_checker
from headrace.models import loading
from headrace.models.cache import Loaded, LoadProgress
from headrace.models.errors import ModelNotFound
from headrace.models.live_cache import Held, device_of_engine, hold, hold_parts
from headrace.models.roots import Roots
from headrace.models.store import Located, ModelStore
from stream.errors import InvalidInput

Progress = Callable[[float, str], None]

SMALL_AUTOENCODERS = {False: "madebyollin/taesd", True: "madebyollin/taesdxl"}
"""TAESD (MIT) for the latents of Stable Diffusion, and for those of SDXL (True)."""
LCM_LORAS = {
    False: "latent-consistency/lcm-lora-sdv1-5",
    True: "latent-consistency/lcm-lora-sdxl",
}
"""Luo et al. 2023, arXiv 2311.05556; for Stable Diffusion 1, and for SDXL (True)."""
IP_ADAPTERS = {
    False: ("h94/IP-Adapter/models/ip-adapter_sd15.safetensors", "h94/IP-Adapter/models/image_encoder"),
    True: (
        "h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors",
        "h94/IP-Adapter/sdxl_models/image_encoder",
    ),
}
"""The adapter and the image encoder that it was trained on, for Stable Diffusion 1, and for SDXL (True)."""
_CALLS: WeakValueDictionary[tuple[int, int], SharedCalls] = WeakValueDictionary()
"""By the UNet and the autoencoder: sessions with the same ones share calls."""
_LOCK = threading.Lock()


@dataclass
class Loan:
    """Networks, and what keeps their weights in memory until `release`; ``nets``: ControlNets by id."""

    calls: SharedCalls
    nets: dict[str, Any]
    kit: Kit
    safety: LiveSafety | None
    autoencoder: str
    weights: str
    held: list[Held]

    @property
    def networks(self) -> Networks:
        return self.calls.networks

    def release(self) -> None:
        self.kit.settle(None)
        for one in self.held:
            one.release()


def borrow(params: StreamDiffusionParams, on_progress: Progress, store: ModelStore | None = None) -> Loan:
    """Load, or share, what ``params`` name. Blocks; for a thread beside the frames.

    Raises `ModelNotFound` with the command that fetches the model, `InvalidInput` for one that cannot stream.
    """
    store = store or ModelStore(Roots.from_environment())
    on_progress(0.05, f"loading {params.model_id}")
    device = device_of_engine()
    held = [hold_parts(store.find(params.model_id, variant=loading.variant_for(device)), store)]
    try:
        parts = dict(held[0].model)
        found = _small_autoencoder(params.autoencoder, store, is_xl=parts.get("text_encoder_2") is not None)
        if found is not None:
            held.append(_autoencoder(found, store))
            parts["vae"] = held[-1].model
        calls = _calls_of(parts, torch.device(device))
        nets: dict[str, Any] = {}
        for control in params.controlnets:
            on_progress(0.5, f"loading {control.model_id}")
            held.append(_control_net(control.model_id, calls.networks, store))
            nets[control.model_id] = held[-1].model
        wanted = _loras(params, calls.networks, store, on_progress)
        held += [lora.held for lora in wanted]
        image = _image_adapter(params, calls.networks, store, held, on_progress)
        name = str(found.ref) if found is not None else "the model's own"
        kit = Kit(calls.networks, wanted, image)
        safety = _safety(params, store, held, on_progress)
        return Loan(calls, nets, kit, safety, name, held[0].weights, held)
    except BaseException:
        for one in held:
            one.release()
        raise


def _calls_of(parts: Mapping[str, Any], device: torch.device) -> SharedCalls:
    with _LOCK:
        key = (id(parts.get("unet")), id(parts.get("vae")))
        calls = _CALLS.get(key)
        if calls is None:
            calls = SharedCalls(Networks(parts, device, loading.dtype_for(str(device))))
            _CALLS[key] = calls
        return calls


def _small_autoencoder(name: str, store: ModelStore, *, is_xl: bool) -> Located | None:
    if name == "none":
        return None
    if name != "auto":
        return store.find(name)
    try:
        return store.find(SMALL_AUTOENCODERS[is_xl])
    except ModelNotFound:
        return None


def _autoencoder(found: Located, store: ModelStore) -> Held:
    from diffusers import AutoencoderTiny

    return _network(found, AutoencoderTiny, "autoencoder", store)


def _control_net(name: str, networks: Networks, store: ModelStore) -> Held:
    from diffusers import ControlNetModel

    try:
        found = store.find(name)
    except ModelNotFound as error:
        raise ModelNotFound(error.message, field="controlnets") from None
    held = _network(found, ControlNetModel, "controlnets", store)
    width, wanted = held.model.config.cross_attention_dim, networks.unet.config.cross_attention_dim
    if width != wanted:
        held.release()
        raise InvalidInput(
            f"controlnets: {name} is made for prompts of width {width}, this model's are {wanted} wide",
            field="controlnets",
        )
    return held


def _loras(
    params: StreamDiffusionParams, networks: Networks, store: ModelStore, on_progress: Progress
) -> list[loras.LoraFile]:
    """Those of ``lora_dict`` by name, then the LCM-LoRA. What is loaded goes back if one fails."""
    wanted = [(name, "lora_dict") for name in sorted(params.lora_dict or ())]
    if params.takes_lcm_lora:
        given = params.lcm_lora_id
        by_family = given is None or given in LCM_LORAS.values()
        wanted.append((LCM_LORAS[networks.is_xl] if by_family or not given else given, "lcm_lora_id"))
    found: list[loras.LoraFile] = []
    try:
        for name, field in wanted:
            on_progress(0.7, f"loading {name}")
            found.append(loras.find(name, store, field))
    except BaseException:
        for lora in found:
            lora.held.release()
        raise
    return found


def _image_adapter(
    params: StreamDiffusionParams,
    networks: Networks,
    store: ModelStore,
    held: list[Held],
    on_progress: Progress,
) -> image_prompts.ImageAdapter | None:
    """What it stands on is added to ``held``."""
    wanted = params.image_prompt
    if wanted is None:
        return None
    adapter, encoder = IP_ADAPTERS[networks.is_xl]
    on_progress(0.8, f"loading {wanted.model_id or adapter}")
    files = image_prompts.find(
        wanted.model_id or adapter, wanted.image_encoder or encoder, store, "ip_adapter"
    )
    held += [files.tensors, files.encoder]
    return image_prompts.on(networks, files, "ip_adapter")


def _safety(
    params: StreamDiffusionParams, store: ModelStore, held: list[Held], on_progress: Progress
) -> LiveSafety | None:
    """What it stands on is added to ``held``."""
    if not params.use_safety_checker:
        return None
    on_progress(0.85, "loading the safety checker")
    held.append(find_checker(store))
    return LiveSafety(held[-1].model)


def _network(found: Located, kind: Any, field: str, store: ModelStore) -> Held:
    """One network in a folder of its own, by its class."""
    device = device_of_engine()
    dtype = loading.dtype_for(device)

    def load(progress: LoadProgress) -> Loaded:
        if found.kind not in ("transformers", "diffusers"):
            raise InvalidInput(f"{field}: {found.ref} is a {found.kind}, not a folder", field=field)
        return loading.load_transformers(
            found, kind, cache=store.roots.cache, device=device, dtype=dtype, progress=progress
        )

    return hold(found, field, load, dtype=loading.name_of(dtype), device=device)
