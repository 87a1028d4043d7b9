"""What changes the networks for a stream, as `Adapters`. All who have the same LoRAs share a view."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from headrace.diffusion.asked import Adapters
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

    ``field``: whose fault it is if they do not fit. Raises `InvalidInput`.
    """

    def __init__(self, networks: Networks, loras: Sequence[LoraFile], field: str = "lora_dict") -> None:
        self.loras = tuple(loras)
        self.view = _view(networks, self.loras, field)
        self._device = networks.device
        self._kept: dict[tuple[float, ...], Adapters] = {}

    def adapters(self, scales: Sequence[float]) -> Adapters | None:
        """With those weights of the LoRAs, in their order; for the same weights the same, of which more is
        known."""
        if not self.loras:
            return None
        key = tuple(scales)
        found = self._kept.pop(key, None)
        if found is None:
            found = Adapters(self.view, {LORA_SCALES: torch.tensor([key], device=self._device)})
        self._kept[key] = found
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found


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
