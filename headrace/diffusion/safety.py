"""The safety checker of Stable Diffusion over every frame that goes out: what it flags is black.

The same network as over pictures of requests (`headrace.batch.pipelines.safety`), asked without reading its
answer back: frame and answer stay on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from headrace.batch.pipelines.safety import MODEL
from headrace.models import loading
from headrace.models.errors import ModelNotFound
from headrace.models.live_cache import Held, device_of_engine, hold
from headrace.models.store import ModelStore

# CLIP's own, of red, green and blue.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def find(store: ModelStore) -> Held:
    """The checker, shared by all who ask. Raises `ModelNotFound` with the command that fetches it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    device = device_of_engine()
    dtype = loading.dtype_for(device)
    try:
        found = store.find(MODEL, variant=loading.variant_for(device))
    except ModelNotFound as error:
        raise ModelNotFound(error.message, field="use_safety_checker") from None
    return hold(
        found,
        "safety checker",
        lambda progress: loading.load_transformers(
            found, StableDiffusionSafetyChecker, cache=store.roots.cache, device=device, dtype=dtype,
            progress=progress,
        ),
        dtype=loading.name_of(dtype),
        device=device,
    )  # fmt: skip


class LiveSafety:
    """Over frames of any size. ``checker``: as `find` gives it."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker
        self._side = int(checker.config.vision_config.image_size)
        weight = checker.visual_projection.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._mean, self._deviation = (
            torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION)
        )

    @torch.inference_mode()
    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        """``picture``, 1 x H x W x 3 in 0..1, or a black one of its size."""
        seen = (self._cut(picture.to(self._device).permute(0, 3, 1, 2)) - self._mean) / self._deviation
        shown, _ = self._checker.forward_onnx(seen.to(self._dtype), picture.to(self._device, copy=True))
        made: torch.Tensor = shown
        return made.to(picture.device)

    def _cut(self, planes: torch.Tensor) -> torch.Tensor:
        """The square in the middle, at the size that the network looks at."""
        side, (height, width) = self._side, planes.shape[-2:]
        scale = side / min(height, width)
        sizes = max(side, round(height * scale)), max(side, round(width * scale))
        resized = torch.nn.functional.interpolate(planes, sizes, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (sizes[0] - side) // 2, (sizes[1] - side) // 2
        return resized[..., top : top + side, left : left + side]
