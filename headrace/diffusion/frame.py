"""One frame of one or several streams, from pictures to pictures, in few calls of the networks.

Where pieces are compiled the whole frame goes over fixed addresses (`headrace.diffusion.whole`), with rows
and pictures padded to numbers for which there are pieces; else as many as there are go through the modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headrace.diffusion.networks import Networks
from headrace.diffusion.place import Guest
from headrace.diffusion.stream import Stream
from headrace.diffusion.whole import Runs, WholeFrame


@torch.inference_mode()
def run(
    networks: Networks,
    streams: Sequence[Stream],
    pictures: Sequence[torch.Tensor],
    *,
    eager: bool = False,
) -> list[torch.Tensor]:
    """The next picture of each stream for the new one of each; 1 x H x W x 3, float32, 0..1.

    All pictures have one size, all streams the same nets (`Stream.nets`). The rows of all go through one
    call, whatever their prompts, seeds, steps and guidance. Results lie `Stream.delay` frames behind.
    ``eager``: by the modules themselves, and nothing is compiled for these numbers and sizes.
    """
    with networks.lock, networks.ahead():
        together = torch.cat(list(pictures))
        shown = _control_pictures(streams, together)
        whole = None if eager else _whole(networks, streams, together)
        if whole is not None:
            return list(torch.split(whole(together, shown), 1))
        clean = advance(networks, streams, networks.encode(together), shown)
        return list(torch.split(networks.decode(clean), 1))


def advance(
    networks: Networks,
    streams: Sequence[Stream],
    latents: torch.Tensor,
    shown: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """The clean latents that leave, P x C x h x w, for new ones; ``shown``: for each net what it looks at."""
    step = networks.step_of(streams[0])
    rounds = max(stream.rounds for stream in streams)
    leaving: list[torch.Tensor] = [latents] * len(streams)
    for number in range(rounds):
        guests = [Guest(stream, at) for at, stream in enumerate(streams) if number < stream.rounds]
        place = networks.place(sum(guest.stream.row_count for guest in guests), len(streams), streams[0])
        place.settle(guests, number, networks.conditioned)
        place.take(*step(place.rows(place.sources(latents)), place.controls(shown), place.given()))
        out = place.leaving()
        for guest in guests:
            leaving[guest.picture] = out[guest.picture : guest.picture + 1]
    return torch.cat(leaving)


def _whole(networks: Networks, streams: Sequence[Stream], pictures: torch.Tensor) -> WholeFrame | None:
    """The frame over fixed addresses, settled for these streams; None where it goes the other way."""
    acceleration, first = networks.acceleration, streams[0]
    rows = sum(stream.row_count for stream in streams)
    count, capacity = acceleration.padded("encode", len(streams)), acceleration.padded("step", rows)
    if count is None or capacity is None or any(stream.rounds > 1 for stream in streams):
        return None
    size = (int(pictures.shape[1]), int(pictures.shape[2]))
    encode = networks.compiled("encode", count, (*size, 3))
    step = networks.compiled_step(capacity, first)
    decode = networks.compiled("decode", count, tuple(first.settings.noise.shape[1:]))
    if encode is None or step is None or decode is None:
        return None
    place = networks.place(capacity, count, first)
    place.settle([Guest(stream, at) for at, stream in enumerate(streams)], 0, networks.conditioned)
    runs = Runs(encode, step, decode)
    if place.whole is None or place.whole.runs != runs:
        place.whole = WholeFrame(place, runs, size, len(first.controls))
    return place.whole


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
