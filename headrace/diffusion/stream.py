"""What one stream carries from frame to frame: the chain of its steps, its noise, its guidance.

StreamDiffusion's stream batch (Kodaira et al. 2023, arXiv 2312.12491): with n steps, n frames are under way,
one at each step, and one call of the network takes all of them a step further. Row 0 is the newest frame.

Two things differ from the authors' code, with the same mathematics. Kept is the chain of *clean* predictions,
which get their noise when they are read, so new steps, seeds or noise hold from the next frame on and nothing
has to be flushed. And the chain of a new stream is filled with its first frame, so none comes out of noise.

What a call does with the rows is in `headrace.diffusion.step`. Nothing here reads a value back.
"""

from __future__ import annotations

import torch

from headrace.diffusion.asked import Control, Settings
from headrace.diffusion.rows import RowConstants, constants_of


class Stream:
    """The state of one stream: what holds until settings change, and what each frame leaves for the next.

    ``reference``: as the authors' code starts, from empty slots; for comparing with it.
    """

    def __init__(self, settings: Settings, *, reference: bool = False) -> None:
        self._settings = settings
        self._reference = reference
        self.clean: torch.Tensor | None = None
        """The clean latents of the last call's rows, R x C x h x w; none before the first frame."""
        self.residual: torch.Tensor | None = None
        """Their residual noise, for guidance."""
        self.apply(settings)

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def rounds(self) -> int:
        """Calls of the network that one frame takes."""
        return len(self._settings.steps) if self._settings.sequential else 1

    @property
    def controls(self) -> tuple[Control, ...]:
        """The nets that act."""
        return self._controls

    @property
    def nets(self) -> tuple[object, ...]:
        """Which nets and adapters act, and how long prompts are. Streams with the same ones share calls."""
        nets = (self._settings.positive.text.shape[1], *(id(control.net) for control in self._controls))
        adapters = self._settings.adapters
        if adapters is None:
            return nets
        given = sorted((name, tuple(value.shape[1:])) for name, value in adapters.given.items())
        return (*nets, id(adapters.view), *given)

    @property
    def row_count(self) -> int:
        """Rows of one of its calls."""
        return self._rounds[0].count

    @property
    def delay(self) -> int:
        """Frames by which the result lies behind the input."""
        return 0 if self._settings.sequential else len(self._settings.steps) - 1

    @property
    def guided(self) -> bool:
        """Whether residual noise matters."""
        return _guided(self._settings)

    def apply(self, settings: Settings) -> None:
        """Other settings from the next frame on. Frames under way stay, whatever changes."""
        before = None if self.clean is None else (self._settings, self.clean, self.residual)
        self._settings = settings
        self._controls = tuple(control for control in settings.controls if control.scale > 0)
        self._rounds = [self._constants(number) for number in range(self.rounds)]
        self._first: RowConstants | None = None
        if before is not None:
            self._carry_over(*before)

    def reset(self) -> None:
        """Forget the frames under way: the next one is a first one."""
        self.clean = self.residual = None

    def rows(self, number: int = 0) -> RowConstants:
        """The rows of round ``number`` of the next frame."""
        if self.clean is not None or self._settings.sequential:
            return self._rounds[number]
        if self._first is None:
            self._first = self._constants(0, starts=True)
        return self._first

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents and residual noise of the rows before the next frame; ask for its `rows` first."""
        if self.clean is None:
            self.clean = torch.zeros_like(self._rounds[0].offset)
        if self.residual is None:
            self.residual = self._first_residual()
        return self.clean, self.residual

    def take(self, clean: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Keep what a call has made of the rows; the clean latent that leaves, 1 x C x h x w."""
        self.clean, self.residual = clean, residual
        return clean[-1:]

    # -- inside ----------------------------------------------------------------------------------------

    def _constants(self, number: int, *, starts: bool = False) -> RowConstants:
        return constants_of(self._settings, starts=starts, reference=self._reference, number=number)

    def _first_residual(self) -> torch.Tensor:
        """So that every row finds its own noise there: it takes what the row before it has left.

        The authors' code finds nothing but in the first of several.
        """
        noise, rows = self._settings.noise, self._rounds[0]
        found = torch.zeros_like(rows.offset)
        if not self._reference and not self._settings.sequential:
            found[rows.count - noise.shape[0] :] = noise.roll(-1, 0)
        return found

    def _carry_over(self, before: Settings, clean: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Keep the frames under way when the rows change: the oldest ones wait in new slots."""
        after = self._settings
        if not self.guided or not _guided(before):
            self.residual = residual = None
        if _layout(before) == _layout(after):
            return
        self.reset()
        if before.sequential or after.sequential:
            return
        negatives = self.row_count - len(after.steps)
        count = len(before.steps)
        if residual is not None:
            kept = torch.cat([residual[-count:], after.noise])[: len(after.steps)]
            self.residual = _behind(negatives, kept)
        if count > 1:
            # The last one has left already; its place is free.
            chain = _resized(clean[-count:-1], len(after.steps) - 1)
            self.clean = _behind(negatives, torch.cat([chain, chain.new_zeros((1, *clean.shape[1:]))]))


def _guided(settings: Settings) -> bool:
    return settings.guidance.acting in ("self", "initialize")


def _layout(settings: Settings) -> tuple[object, ...]:
    return settings.sequential, len(settings.steps), settings.guidance.acting


def _behind(count: int, rows: torch.Tensor) -> torch.Tensor:
    """``rows`` with ``count`` empty ones before them."""
    return torch.cat([rows.new_zeros((count, *rows.shape[1:])), rows])


def _resized(chain: torch.Tensor, count: int) -> torch.Tensor:
    if chain.shape[0] >= count:
        return chain[chain.shape[0] - count :]
    return torch.cat([chain, chain[-1:].expand(count - chain.shape[0], -1, -1, -1)])
