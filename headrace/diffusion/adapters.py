"""What changes the networks for a stream, as `Adapters`: LoRAs, a picture as a prompt, earlier frames.

All who have the same LoRAs share a view. A picture needs no other one than the text: its tokens are data.
What a stream recalls of earlier frames lies in a view of its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from headrace.diffusion.asked import Adapters
from headrace.diffusion.attention import IMAGE_ROWS, IMAGE_SCALES
from headrace.diffusion.image_prompts import ImageAdapter, ImagePrompt
from headrace.diffusion.lora_branch import LORA_SCALES
from headrace.diffusion.loras import LoraFile, attach
from headrace.diffusion.networks import Networks
from headrace.diffusion.recall import INTERVAL, Memory
from headrace.diffusion.view import NetworkView

MAX_KEPT = 4
"""Of one set of adapters: how strong they were lately."""
_LOCK = threading.Lock()
_VIEWS: WeakKeyDictionary[Networks, WeakValueDictionary[tuple[str, ...], NetworkView]] = WeakKeyDictionary()
"""By the networks and the LoRAs on them."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """How many earlier frames attention sees, and every how many frames one of them is kept."""

    frames: int
    interval: int = 1


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
        self._memories: list[Memory] = []
        # Whoever keeps a view would keep what it recalls.
        weakref.finalize(self, _clear, self._memories)

    def adapters(
        self,
        scales: Sequence[float],
        picture: ImagePrompt | None = None,
        weights: Sequence[float] = (),
        recalled: Recalled | None = None,
    ) -> Adapters | None:
        """With those weights of the LoRAs, in their order, and those of a ``picture`` in each layer.

        The same again for the same, since more is known of it then; None for nothing.
        """
        if not self.loras and picture is None and recalled is None:
            return None
        memory = None if recalled is None else self._memory(recalled.frames)
        key = (tuple(scales), picture, tuple(weights), recalled, memory)
        found = self._kept.pop(key, None)
        if found is None:
            found = self._made(scales, picture, weights)
            if recalled is not None and memory is not None:
                every = torch.tensor([[recalled.interval]], device=self._device)
                found = replace(found, view=memory.view, given={**found.given, INTERVAL: every})
        self._kept[key] = found
        while len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def settle(self, adapters: Adapters | None) -> None:
        """These are in force: what others recall is given back."""
        view = None if adapters is None else adapters.view
        _clear([memory for memory in self._memories if memory.view is not view])
        self._memories[:] = [memory for memory in self._memories if memory.view is view]
        self._kept = {
            key: kept
            for key, kept in self._kept.items()
            if kept.view is self.view or any(kept.view is memory.view for memory in self._memories)
        }

    def _memory(self, frames: int) -> Memory:
        """The latest one where it is as long."""
        if not self._memories or self._memories[-1].frames != frames:
            self._memories.append(Memory(self.view, frames))
        return self._memories[-1]

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


def _clear(memories: list[Memory]) -> None:
    for memory in memories:
        memory.clear()


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
