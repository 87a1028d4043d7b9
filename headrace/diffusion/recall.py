"""Cached attention: the self-attention of a frame sees the tokens of earlier ones too, which steadies it.

The extended attention of StreamV2V (Liang et al. 2024, arXiv 2405.15757), from its description: every layer
keeps keys and values of up to `MAX_FRAMES` earlier frames in a ring, for each row of the call its own, and
attends to them beside its own. A ring begins full of the first frame. Nothing is read back from the device.
"""

from __future__ import annotations

import torch

from headrace.diffusion.attention import Given
from headrace.diffusion.view import NetworkView

MAX_FRAMES = 4
INTERVAL = "recall_interval"
"""In what is given to a view that recalls: every how many frames one is kept, R x 1, whole numbers."""


class Ring:
    """Of one layer: keys and values of ``frames`` earlier frames, R x frames x tokens x width."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._count: torch.Tensor | None = None

    def __call__(self, k: torch.Tensor, v: torch.Tensor, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values, count = self._keys, self._values, self._count
        if keys is None or values is None or count is None or not _fits(keys, k):
            keys, values = (part.unsqueeze(1).repeat(1, self._frames, 1, 1) for part in (k, v))
            count = torch.zeros(1, dtype=torch.long, device=k.device)
            self._keys, self._values, self._count = keys, values, count
        pairs = ((k, keys), (v, values))
        seen_keys, seen_values = (torch.cat([own, ring.flatten(1, 2)], dim=1) for own, ring in pairs)
        interval = given[INTERVAL][:1, 0]
        at, due = (count // interval) % self._frames, count % interval == 0
        for own, ring in pairs:
            before = ring.index_select(1, at)
            ring.index_copy_(1, at, torch.where(due, own.unsqueeze(1), before))
        count.add_(1)
        return seen_keys, seen_values

    def clear(self) -> None:
        """Give the memory back; the next frame is a first one."""
        self._keys = self._values = self._count = None


class Memory:
    """A view of one stream's own on the weights of ``view``, whose layers recall ``frames`` frames."""

    def __init__(self, view: NetworkView, frames: int) -> None:
        self.frames = frames
        self.view = view.twin()
        self._rings = [Ring(frames) for _ in self.view.self_attentions]
        for attention, ring in zip(self.view.self_attentions, self._rings, strict=True):
            attention.recall = ring

    def clear(self) -> None:
        for ring in self._rings:
            ring.clear()


def _fits(ring: torch.Tensor, own: torch.Tensor) -> bool:
    return ring.shape[0] == own.shape[0] and ring.shape[2:] == own.shape[1:]
