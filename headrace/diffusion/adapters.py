"""What changes the networks for a stream, as `Adapters`: LoRAs and a picture as a prompt.

All who have the same LoRAs share a view. A picture needs no other one than the text: its tokens are data.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from headrace.diffusion.asked import Adapters
from headrace.diffusion.attention import IMAGE_ROWS, IMAGE_SCALES
from headrace.diffusion.image_prompts import ImageAdapter, ImagePrompt
from headrace.diffusion.loras import LORA_SCALES, LoraFile, attach
from headrace.diffusion.networks import Networks
from headrace.diffusion.view import NetworkView

MAX_KEPT = 4
"""Of one set of adapters: how strong they were lately."""
_LOCK = threading.Lock()
_VIEWS: WeakKeyDictionary[Networks, WeakValueDictionary[tuple[str, ...], NetworkView]] = WeakKeyDictionary()
"""By the networks and the LoRAs on them."""


class Kit:
    """The adapters that are loaded for a stream. Made beside the frames, since it may make a view for them.

    ``image`` makes prompts of pictures. ``field``: whose fault it is if LoRAs do not fit. Raises
    `InvalidInput`.
    """

    def __init__(
        self,
        networks: Networks,
        loras: Sequence[LoraFile] = (),
        image: ImageAdapter | None = None,
        field: str = "lora_dict",
    ) -> None:
        self.loras, self.image = tuple(loras), image
        self.view = _view(networks, self.loras, field)
        self._device = networks.device
        self._kept: dict[Hashable, Adapters] = {}

    def adapters(
        self, scales: Sequence[float], picture: ImagePrompt | None = None, weights: Sequence[float] = ()
    ) -> Adapters | None:
        """With those weights of the LoRAs, in their order, and those of a ``picture`` in each layer.

        The same again for the same, since more is known of it then; None for nothing.
        """
        if not self.loras and picture is None:
            return None
        key = (tuple(scales), picture, tuple(weights))
        found = self._kept.pop(key, None)
        if found is None:
            found = self._made(scales, picture, weights)
        self._kept[key] = found
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _made(
        self, scales: Sequence[float], picture: ImagePrompt | None, weights: Sequence[float]
    ) -> Adapters:
        given: dict[str, torch.Tensor] = {}
        negative: dict[str, torch.Tensor] = {}
        if self.loras:
            given[LORA_SCALES] = torch.tensor([tuple(scales)], device=self._device)
        if picture is not None:
            given[IMAGE_ROWS], negative[IMAGE_ROWS] = picture.rows, picture.negative
            given[IMAGE_SCALES] = torch.tensor([tuple(weights)], device=self._device)
        return Adapters(self.view, given, negative)


def _view(networks: Networks, loras: tuple[LoraFile, ...], field: str) -> NetworkView:
    if not loras:
        return networks.view
    with _LOCK:
        known = _VIEWS.setdefault(networks, WeakValueDictionary())
        key = tuple(lora.key for lora in loras)
        found = known.get(key)
        if found is None:
            found = networks.view.twin()
            attach(found, networks.unet, loras, field)
            known[key] = found
        return found
