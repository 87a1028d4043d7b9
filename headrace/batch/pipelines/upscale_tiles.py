"""A large picture through a network in tiles, so that its memory does not depend on the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from headrace.batch.pipelines.upscale_networks import Upscaler

Span = tuple[int, int, int, int]
"""Of one axis: where a tile is read from and to, and which part of that is kept."""


def spans(size: int, tile: int, reach: int) -> Iterator[Span]:
    """Cuts ``size`` pixels into parts of at most ``tile``, each read with ``reach`` more on both sides."""
    count = -(-size // tile)
    for number in range(count):
        begin, end = size * number // count, size * (number + 1) // count
        yield max(0, begin - reach), min(size, end + reach), begin, end


def upscale(
    network: Upscaler, picture: torch.Tensor, *, tile: int, on_tile: Callable[[int, int], None]
) -> torch.Tensor:
    """``picture`` [1, 3, height, width] enlarged; ``on_tile`` is told how many of how many are done.

    A network that is not `Upscaler.tiled` gets it whole.
    """
    height, width = picture.shape[-2:]
    if not network.tiled:
        tile = max(height, width)
    rows, columns = (list(spans(size, tile, network.reach)) for size in (height, width))
    scale = network.scale
    result = torch.empty((1, 3, height * scale, width * scale), dtype=torch.float32)
    done = 0
    for read_top, read_bottom, top, bottom in rows:
        for read_left, read_right, left, right in columns:
            part = picture[..., read_top:read_bottom, read_left:read_right]
            made = network(part)[
                ...,
                (top - read_top) * scale : (bottom - read_top) * scale,
                (left - read_left) * scale : (right - read_left) * scale,
            ]
            result[..., top * scale : bottom * scale, left * scale : right * scale] = made.float().cpu()
            done += 1
            on_tile(done, len(rows) * len(columns))
    return result
