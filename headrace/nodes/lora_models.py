"""LoRAs of nodes, through the cache: the tensors of a file, and the copies that they make of modules."""

from __future__ import annotations

import dataclasses
import logging

from headrace.models import loading
from headrace.models.cache import Loaded, LoadProgress
from headrace.models.live_cache import Held, hold
from headrace.models.loras import changed, changes_for
from headrace.nodes.access import Models
from headrace.nodes.handles import Clip, Encoder, Model

log = logging.getLogger(__name__)


def apply_to_model(models: Models, model: Model, name: str, strength: float) -> Model:
    """``model`` with a LoRA; itself where the strength is 0 or nothing in the file is for it."""
    held = _apply(models, model.held, "unet", model.unet, name, strength)
    return model if held is None else model.with_unet(held)


def apply_to_clip(models: Models, clip: Clip, name: str, strength: float) -> Clip:
    """``clip`` with a LoRA."""
    encoders, more = list[Encoder](), list[Held]()
    for number, encoder in enumerate(clip.encoders):
        part = "text_encoder_2" if number else "text_encoder"
        held = _apply(models, clip.held, part, encoder.module, name, strength)
        encoders.append(encoder if held is None else dataclasses.replace(encoder, module=held.model))
        more += [held] if held is not None else []
    return dataclasses.replace(clip, encoders=tuple(encoders), held=(*clip.held, *more))


def _apply(
    models: Models, on: tuple[Held, ...], part: str, module: object, name: str, strength: float
) -> Held | None:
    if not strength:
        return None
    found = models.find("loras", name)
    file = hold(found, "lora", lambda progress: loading.load_tensors(found), device="cpu")
    changes = changes_for(part, module, file.model)  # type: ignore[arg-type]
    if not changes:
        log.info("the LoRA %s has nothing for the %s", name, part)
        return None

    def load(progress: LoadProgress) -> Loaded:
        return Loaded(changed(module, changes, strength), weights=on[0].weights)  # type: ignore[arg-type]

    # What it stands on is a part of what it is.
    base = " + ".join(f"{held.key.ref} {held.key.revision}" for held in on)
    return hold(
        found, f"{part} with lora", load, dtype=on[0].key.dtype, revision=f" x {strength!r} on {base}"
    )
