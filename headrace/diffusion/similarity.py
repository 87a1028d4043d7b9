"""Leaves out frames that look like the last one: the stochastic similarity filter of arXiv 2312.12491.

Works on a thumbnail on the host, with random numbers of its own from a seed, so the same frames are left out
each time.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

Thumbnail = npt.NDArray[np.float32]


class SimilarityFilter:
    """Decides frame by frame. ``threshold`` in 0..1: cosine similarity from which frames may be left out;
    at most ``max_skip`` in a row are."""

    def __init__(self, threshold: float, max_skip: int, seed: int = 0) -> None:
        self.threshold = threshold
        self.max_skip = max_skip
        self._random = random.Random(seed)
        self._last: Thumbnail | None = None
        self._skipped = 0

    def skips(self, thumbnail: Thumbnail) -> bool:
        """Whether this frame is left out; else it is what later ones are compared with. Values in -1..1."""
        last = self._last
        if last is not None and last.shape == thumbnail.shape and self._skipped < self.max_skip:
            chance = skip_chance(cosine(last, thumbnail), self.threshold)
            if self._random.random() < chance:
                self._skipped += 1
                return True
        self._last, self._skipped = thumbnail, 0
        return False

    def reset(self) -> None:
        """The next frame is worked on, whatever it looks like."""
        self._last, self._skipped = None, 0


def skip_chance(similarity: float, threshold: float) -> float:
    """0 below the threshold, rising to 1 for equal pictures; 0 where the threshold is 1 or more."""
    if threshold >= 1.0:
        return 0.0
    return min(1.0, max(0.0, 1.0 - (1.0 - similarity) / (1.0 - threshold)))


def cosine(first: Thumbnail, second: Thumbnail) -> float:
    a, b = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    return float(a @ b) / max(float(np.linalg.norm(a)) * float(np.linalg.norm(b)), 1e-12)
