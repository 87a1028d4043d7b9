"""One frame of one or several streams, from pictures to pictures, in few calls of the networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headrace.diffusion.networks import Networks
from headrace.diffusion.stream import Stream


@torch.inference_mode()
def run(
    networks: Networks, streams: Sequence[Stream], pictures: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The next picture of each stream for the new one of each; 1 x H x W x 3, float32, 0..1.

    All pictures have one size, all streams the same nets (`Stream.nets`). The rows of all go through one
    call, whatever their prompts, seeds, steps and guidance. Results lie `Stream.delay` frames behind.
    """
    latents = networks.encode(torch.cat([to_network(picture) for picture in pictures]))
    clean: list[torch.Tensor | None] = [None] * len(streams)
    for number in range(max(stream.rounds for stream in streams)):
        taking = [index for index, stream in enumerate(streams) if number < stream.rounds]
        rows = [streams[index].rows(latents[index : index + 1], number, pictures[index]) for index in taking]
        for index, prediction in zip(taking, networks.predict(rows), strict=True):
            clean[index] = streams[index].take(prediction, number)
    decoded = networks.decode(torch.cat([latent for latent in clean if latent is not None]))
    return [from_network(picture) for picture in torch.split(decoded, 1)]


def to_network(picture: torch.Tensor) -> torch.Tensor:
    """1 x H x W x 3, 0..1, as 1 x 3 x H x W, -1..1."""
    return picture.permute(0, 3, 1, 2) * 2.0 - 1.0


def from_network(picture: torch.Tensor) -> torch.Tensor:
    """The way back; what overshoots is cut off."""
    return (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
