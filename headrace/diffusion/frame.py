"""One frame of one or several streams, from pictures to pictures, in few calls of the networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headrace.diffusion.networks import Networks
from headrace.diffusion.place import Guest
from headrace.diffusion.stream import Stream


@torch.inference_mode()
def run(
    networks: Networks, streams: Sequence[Stream], pictures: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The next picture of each stream for the new one of each; 1 x H x W x 3, float32, 0..1.

    All pictures have one size, all streams the same nets (`Stream.nets`). The rows of all go through one
    call, whatever their prompts, seeds, steps and guidance. Results lie `Stream.delay` frames behind.
    """
    with networks.lock:
        together = torch.cat(list(pictures))
        clean = advance(networks, streams, networks.encode(together), together)
        return list(torch.split(networks.decode(clean), 1))


def advance(
    networks: Networks,
    streams: Sequence[Stream],
    latents: torch.Tensor,
    pictures: torch.Tensor | None = None,
) -> torch.Tensor:
    """The clean latents that leave, P x C x h x w, for new ones; ``pictures`` are for nets, P x H x W x 3."""
    step = networks.step_of(streams[0])
    shown = [] if pictures is None else _control_pictures(streams, pictures)
    leaving: dict[int, torch.Tensor] = {}
    for number in range(max(stream.rounds for stream in streams)):
        guests = [Guest(stream, at) for at, stream in enumerate(streams) if number < stream.rounds]
        rows = sum(guest.stream.row_count for guest in guests)
        place = networks.place(rows, len(streams), streams[0])
        place.settle(guests, number, networks.conditioned)
        given = place.rows(place.sources(latents))
        place.take(*step(given, place.controls(shown), place.given()))
        out = place.leaving()
        if len(guests) == len(streams) and number == max(stream.rounds for stream in streams) - 1:
            return out
        leaving.update(zip((guest.picture for guest in guests), torch.split(out, 1), strict=True))
    return torch.cat([leaving[at] for at in range(len(streams))])


def _control_pictures(streams: Sequence[Stream], pictures: torch.Tensor) -> list[torch.Tensor]:
    """For each net what it looks at, P x 3 x H x W."""
    return [
        torch.cat(
            [
                stream.controls[net].preprocess(picture).permute(0, 3, 1, 2)
                for stream, picture in zip(streams, torch.split(pictures, 1), strict=True)
            ]
        )
        for net in range(len(streams[0].controls))
    ]
