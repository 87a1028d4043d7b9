"""Which model an endpoint has, and which steps and guidance a model wants.

Clients generated from a gateway's schema send 50 steps and a guidance of 7.5 whether anybody asked for them
or not. A model that was distilled to a few steps gives noise or mud with these, so they are clamped to what
its makers say, and the answer tells it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PIPELINES = (
    "text-to-image",
    "image-to-image",
    "image-to-video",
    "image-to-text",
    "audio-to-text",
    "text-to-speech",
    "upscale",
    "segment-anything-2",
    "llm",
)

DEFAULT_MODELS = {
    "text-to-image": "stabilityai/sdxl-turbo",
    "image-to-image": "stabilityai/sdxl-turbo",
    "image-to-video": "stabilityai/stable-video-diffusion-img2vid-xt",
    "image-to-text": "Salesforce/blip-image-captioning-large",
    "audio-to-text": "openai/whisper-large-v3",
    "text-to-speech": "parler-tts/parler-tts-large-v1",
    "upscale": "stabilityai/stable-diffusion-x4-upscaler",
    "segment-anything-2": "facebook/sam2-hiera-large",
    "llm": "meta-llama/llama-3.1-8B-Instruct",
}
"""What a gateway takes for a request that names no model."""

SUBSTITUTES = {
    "text-to-image": "demo:tiny-sd",
    "image-to-image": "demo:tiny-sd",
    "image-to-video": "demo:tiny-svd",
    "image-to-text": "demo:tiny-blip",
    "audio-to-text": "demo:whisper-tiny.en",
    "text-to-speech": "demo:hibari",
    "upscale": "demo:anime4k",
    "segment-anything-2": "demo:tiny-sam2",
    "llm": "demo:smollm2",
}
"""What answers in its place on a machine that has not got it, where the operator allows that."""

LEAST_MEMORY = {
    "text-to-image": 24 << 30,
    "image-to-image": 20 << 30,
    "image-to-video": 24 << 30,
    "image-to-text": 4 << 30,
    "audio-to-text": 12 << 30,
    "text-to-speech": 12 << 30,
    "upscale": 24 << 30,
    "segment-anything-2": 6 << 30,
    "llm": 16 << 30,
}
"""Bytes of device memory that the network's documentation asks for the default models."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a family of models wants. ``steps`` and ``guidance``: used where nothing is asked for;
    ``step_range`` and ``guidance_range``: bounds that requests are clamped to (None: any)."""

    name: str
    steps: int | None = None
    guidance: float | None = None
    step_range: Range | None = None
    guidance_range: Range | None = None


_LIGHTNING = re.compile(r"bytedance/sdxl-lightning(?:.*?(?P<steps>[248])step)?", re.IGNORECASE)

_FAMILIES: tuple[tuple[re.Pattern[str], Tuning], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), tuning)
    for pattern, tuning in (
        (r"stabilityai/(sd|sdxl)-turbo(@|$)", Tuning("Turbo", 1, 0.0, (1, 4), (0, 0))),
        (r"stable-diffusion-3\.5-large-turbo", Tuning("SD 3.5 Turbo", 4, 0.0, (1, 8), (0, 0))),
        (r"flux\.1-schnell", Tuning("FLUX schnell", 4, 0.0, (1, 4), (0, 0))),
        (r"flux\.1-dev", Tuning("FLUX dev", 28, 3.5)),
        (r"stable-diffusion-3\.5-medium", Tuning("SD 3.5 medium", 40, 4.5)),
        (r"stable-diffusion-3", Tuning("SD 3", 28, 7.0)),
        (r"[-_]lightning", Tuning("Lightning", 5, 1.5, (4, 8), (1, 2))),
        (r"[-_]turbo", Tuning("Turbo", 6, 2.0, (1, 8), (1, 2))),
        (r"(^|[-_/.])lcm([-_.]|$)", Tuning("LCM", 4, 1.0, (1, 8), (1, 2))),
    )
)
"""First match wins, so single models come before families."""
STEPS_FROM_PICTURE = 2
"""Least steps by default where a picture is worked on: of a single one either text or picture counts."""


def tuning_of(model: str) -> Tuning | None:
    """What is known of ``model`` by its name; None for models that take what they are given."""
    if found := _LIGHTNING.search(model):
        steps = int(found["steps"] or 8)
        return Tuning("SDXL Lightning", steps, 0.0, (steps, steps), (0, 0))
    return next((tuning for pattern, tuning in _FAMILIES if pattern.search(model)), None)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A value that was not taken as it was asked for."""

    field: str
    asked: float
    used: float
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"field": self.field, "asked": self.asked, "used": self.used, "reason": self.reason}


def adjust(
    model: str, inputs: dict[str, Any], given: Collection[str]
) -> tuple[dict[str, Any], list[Adjustment]]:
    """``inputs`` with what ``model`` wants: its defaults for fields that are not in ``given``, and the others
    within its bounds. Each clamped value is told of."""
    tuning = tuning_of(model)
    if tuning is None:
        return inputs, []
    changed, told = dict(inputs), []
    steps = tuning.steps
    if steps is not None and "strength" in inputs:
        steps = max(steps, STEPS_FROM_PICTURE)
    for field, default, bounds in (
        ("num_inference_steps", steps, tuning.step_range),
        ("guidance_scale", tuning.guidance, tuning.guidance_range),
    ):
        if field not in inputs:
            continue
        if field not in given:
            changed[field] = inputs[field] if default is None else default
        elif bounds is not None and not bounds[0] <= inputs[field] <= bounds[1]:
            used = type(inputs[field])(min(max(inputs[field], bounds[0]), bounds[1]))
            changed[field] = used
            told.append(Adjustment(field, inputs[field], used, _reason(tuning, bounds)))
    return changed, told


def merged(first: Iterable[Adjustment], later: Iterable[Mapping[str, Any]]) -> tuple[Adjustment, ...]:
    """What was changed in two places one after the other (``later`` as JSON): one item for each field, from
    what was asked for to what was used in the end."""
    found = {item.field: item for item in first}
    for told in later:
        item = Adjustment(**told)
        if (before := found.get(item.field)) is not None:
            reason = f"{before.reason}; {item.reason}"
            item = Adjustment(item.field, before.asked, item.used, reason)
        found[item.field] = item
    return tuple(found.values())


def _reason(tuning: Tuning, bounds: Range) -> str:
    low, high = bounds
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{tuning.name} models are made for {span}"
