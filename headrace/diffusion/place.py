"""Where the rows of a call lie: tensors of fixed sizes and addresses, which are filled in place.

So whatever changes while streams run, the same addresses are read, and what was captured for them goes on.
Rows beyond those of the streams are empty and change nothing of the others. As long as the same streams come
with the same settings, nothing is copied: what a call leaves of them lies where the next one reads it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headrace.diffusion.rows import NEW, RowConstants
from headrace.diffusion.step import ControlRows, StepRows
from headrace.diffusion.stream import Stream

if TYPE_CHECKING:
    from headrace.diffusion.whole import WholeFrame

Conditioned = Callable[[Stream, RowConstants], Sequence[tuple[torch.Tensor, torch.Tensor]]]
"""Time and text of a stream's rows, for the network and then for each net."""


@dataclass(frozen=True, slots=True, eq=False)
class Guest:
    """A stream in a call, and which of its pictures is the stream's."""

    stream: Stream
    picture: int


@dataclass(slots=True)
class _Resident:
    stream: weakref.ref[Stream]
    picture: int
    constants: RowConstants
    clean: torch.Tensor
    residual: torch.Tensor

    def is_still(self, guest: Guest, constants: RowConstants) -> bool:
        stream = guest.stream
        return (
            self.stream() is stream
            and self.picture == guest.picture
            and self.constants is constants
            and stream.clean is self.clean
        )

    def leave(self) -> None:
        """Take along what is still the stream's own."""
        stream = self.stream()
        if stream is not None and stream.clean is self.clean:
            stream.clean, stream.residual = self.clean.clone(), self.residual.clone()


class Place:
    """For up to ``capacity`` rows that stand on ``pictures`` new frames. For one thread at a time."""

    def __init__(self, capacity: int, pictures: int) -> None:
        self.capacity, self.pictures = capacity, pictures
        self.tensors: dict[str, torch.Tensor] = {}
        """All that calls read and streams leave, by name; each capacity x ... ."""
        self.whole: WholeFrame | None = None
        """The frame that was captured here."""
        self._residents: list[_Resident] = []

    def settle(self, guests: Sequence[Guest], number: int, conditioned: Conditioned) -> None:
        """Lay out the rows of round ``number``."""
        constants = [guest.stream.rows(number) for guest in guests]
        if len(guests) == len(self._residents) and all(
            resident.is_still(guest, rows)
            for resident, guest, rows in zip(self._residents, guests, constants, strict=True)
        ):
            return
        self.clear()
        self._lay_out([guest.stream for guest in guests], constants, conditioned)
        self._number(guests, constants)
        self._let_in(guests, constants)

    def clear(self) -> None:
        """All streams leave, with what is theirs."""
        for resident in self._residents:
            resident.leave()
        self._residents = []

    def sources(self, latents: torch.Tensor) -> torch.Tensor:
        """The clean latents that the rows stand on, with those of the new frames."""
        return torch.cat([latents, self.tensors["clean"]])[self.tensors["source"]]

    def rows(self, sources: torch.Tensor) -> StepRows:
        own = self.tensors
        return StepRows(
            sources, own["residual"], own["columns"], own["offset"], own["base"], own["next_noise"],
            own["residual_from"], own["partner"], own["time 0"], own["text 0"],
        )  # fmt: skip

    def controls(self, pictures: Sequence[torch.Tensor]) -> tuple[ControlRows, ...]:
        """``pictures``: for each net those of all new frames, P x 3 x H x W."""
        own = self.tensors
        return tuple(
            ControlRows(
                given[own["picture"]], own[f"scales {net}"], own[f"time {net + 1}"], own[f"text {net + 1}"]
            )
            for net, given in enumerate(pictures)
        )

    def given(self) -> dict[str, torch.Tensor]:
        """What adapters are given."""
        begin = "given "
        own = self.tensors
        return {name.removeprefix(begin): own[name] for name in own if name.startswith(begin)}

    def take(self, clean: torch.Tensor, residual: torch.Tensor) -> None:
        """What a call made of all rows is what the next one begins with."""
        self.tensors["clean"].copy_(clean)
        self.tensors["residual"].copy_(residual)

    def leaving(self) -> torch.Tensor:
        """The clean latents that leave, one for each picture; of pictures without a stream anything."""
        return self.tensors["clean"][self.tensors["leaving"]]

    # -- inside ----------------------------------------------------------------------------------------

    def _lay_out(
        self, streams: Sequence[Stream], constants: Sequence[RowConstants], conditioned: Conditioned
    ) -> None:
        states = [stream.state() for stream in streams]
        self._fill("clean", [clean for clean, _ in states])
        self._fill("residual", [residual for _, residual in states])
        for name in ("columns", "offset", "base", "next_noise"):
            self._fill(name, [getattr(rows, name) for rows in constants])
        pairs = [conditioned(stream, rows) for stream, rows in zip(streams, constants, strict=True)]
        for number, parts in enumerate(zip(*pairs, strict=True)):
            self._fill(f"time {number}", [time for time, _ in parts])
            self._fill(f"text {number}", [text for _, text in parts])
        for number, scales in enumerate(zip(*(rows.scales for rows in constants), strict=True)):
            self._fill(f"scales {number}", scales)
        adapters = streams[0].settings.adapters
        for name in () if adapters is None else adapters.given:
            self._fill(
                f"given {name}", [_given(*pair, name) for pair in zip(streams, constants, strict=True)]
            )

    def _number(self, guests: Sequence[Guest], constants: Sequence[RowConstants]) -> None:
        """Each stream's own numbers of rows, as numbers among all."""
        numbers: dict[str, list[int]] = {
            name: [] for name in ("source", "residual_from", "partner", "picture")
        }
        leaving = [0] * self.pictures
        first = 0
        for guest, rows in zip(guests, constants, strict=True):
            behind = self.pictures + first
            numbers["source"] += [guest.picture if one == NEW else behind + one for one in rows.source]
            numbers["residual_from"] += [first + one for one in rows.residual_from]
            numbers["partner"] += [first + one for one in rows.partner]
            numbers["picture"] += [guest.picture] * rows.count
            first += rows.count
            leaving[guest.picture] = first - 1
        device = constants[0].offset.device
        padded = {name: values + [0] * (self.capacity - len(values)) for name, values in numbers.items()}
        for name, values in {**padded, "leaving": leaving}.items():
            filled = torch.tensor(values, device=device)
            if name in self.tensors:
                self.tensors[name].copy_(filled)
            else:
                self.tensors[name] = filled

    def _let_in(self, guests: Sequence[Guest], constants: Sequence[RowConstants]) -> None:
        first = 0
        for guest, rows in zip(guests, constants, strict=True):
            own = slice(first, first + rows.count)
            stream = guest.stream
            stream.clean, stream.residual = self.tensors["clean"][own], self.tensors["residual"][own]
            self._residents.append(
                _Resident(weakref.ref(stream), guest.picture, rows, stream.clean, stream.residual)
            )
            first += rows.count

    def _fill(self, name: str, parts: Sequence[torch.Tensor]) -> None:
        like = parts[0]
        if name not in self.tensors:
            self.tensors[name] = like.new_zeros((self.capacity, *like.shape[1:]))
        own = self.tensors[name]
        count = sum(part.shape[0] for part in parts)
        torch.cat(list(parts), out=own[:count])
        own[count:] = 0


def _given(stream: Stream, rows: RowConstants, name: str) -> torch.Tensor:
    adapters = stream.settings.adapters
    assert adapters is not None
    value, negative = adapters.given[name], adapters.negative.get(name)
    if negative is None:
        return value.expand(rows.count, *value.shape[1:])
    parts = [(negative, rows.negatives), (value, rows.count - rows.negatives)]
    return torch.cat([part.expand(count, *part.shape[1:]) for part, count in parts])
