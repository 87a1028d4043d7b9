"""Grey-scale dilation: the largest value around a pixel, in a time that hardly grows with the distance.

Neighbourhoods are those that one-pixel steps reach. What lies outside the picture counts for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dilate_square(masks: torch.Tensor, steps: int) -> torch.Tensor:
    """B x H x W; the square of side 2 x steps + 1, as two lines."""
    for axis in (1, 2):
        masks = _dilate_line(masks, min(steps, masks.shape[axis]), axis)
    return masks


def _dilate_line(masks: torch.Tensor, steps: int, axis: int) -> torch.Tensor:
    """Windows of 2 x steps + 1, put together from ever longer ones: each step doubles what is known."""
    import torch

    masks = _padded(masks, steps, (axis,))
    length, wanted = 1, 2 * steps + 1
    while length < wanted:
        shift = min(length, wanted - length)
        size = masks.shape[axis] - shift
        masks = torch.maximum(masks.narrow(axis, 0, size), masks.narrow(axis, shift, size))
        length += shift
    return masks


def dilate_cross(masks: torch.Tensor, steps: int) -> torch.Tensor:
    """B x H x W; all that up to ``steps`` steps up, down, left or right lead to (a square on its corner).

    Four diamonds of radius a, moved by b <= a in the four directions, make one of radius a + b (and b = 1
    does for a = 0, with the pixel itself), so that the radius nearly doubles with each round.
    """
    import torch

    height, width = masks.shape[1:]
    steps = min(steps, height + width)
    if steps == 0:
        return masks.clone()
    padded = _padded(masks, steps, (1, 2))
    radius = 0
    while radius < steps:
        shift = min(max(radius, 1), steps - radius)
        rows, columns = padded.shape[1] - 2 * shift, padded.shape[2] - 2 * shift
        places = [(0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift)]
        if radius == 0:
            places.append((shift, shift))
        moved = [padded[:, down : down + rows, right : right + columns] for down, right in places]
        larger = torch.maximum(moved[0], moved[1])
        for other in moved[2:]:
            torch.maximum(larger, other, out=larger)
        padded = larger
        radius += shift
    return padded


def _padded(masks: torch.Tensor, steps: int, axes: tuple[int, ...]) -> torch.Tensor:
    shape = list(masks.shape)
    for axis in axes:
        shape[axis] += 2 * steps
    padded = masks.new_full(shape, float("-inf"))
    inside = padded
    for axis in axes:
        inside = inside.narrow(axis, steps, masks.shape[axis])
    inside.copy_(masks)
    return padded
