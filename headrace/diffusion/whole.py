"""A frame over fixed addresses, from end to end: what is captured as one graph on CUDA.

On a CPU the same is called instead of replayed. Parameters, prompts and streams change in the place's tensors
between two frames; the graph stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.diffusion.acceleration import Run
from headrace.diffusion.pieces import flat_rows
from headrace.diffusion.place import Place


@dataclass(frozen=True, slots=True)
class Runs:
    """The three pieces of a frame, compiled or not: two are the same when all of their parts are."""

    encode: Run
    step: Run
    decode: Run


class WholeFrame:
    """For a settled ``place`` and pictures of ``size``, height and width; ``nets``: how many look at them."""

    def __init__(self, place: Place, runs: Runs, size: tuple[int, int], nets: int) -> None:
        self.runs = runs
        self._place = place
        device = place.tensors["clean"].device
        self._pictures = torch.zeros((place.pictures, *size, 3), device=device)
        self._shown = [torch.zeros((place.pictures, 3, *size), device=device) for _ in range(nets)]
        self._out: torch.Tensor | None = None
        self._graph = self._captured() if device.type == "cuda" else None

    def __call__(self, pictures: torch.Tensor, shown: Sequence[torch.Tensor]) -> torch.Tensor:
        """The pictures that are due for new ones, P x H x W x 3; ``shown`` to nets, each P x 3 x H x W."""
        count = pictures.shape[0]
        self._pictures[:count].copy_(pictures)
        for own, new in zip(self._shown, shown, strict=True):
            own[:count].copy_(new)
        if self._graph is None:
            return self._through()[:count]
        self._graph.replay()
        assert self._out is not None
        # The next replay writes there again, for other streams perhaps.
        return self._out[:count].clone()

    def _through(self) -> torch.Tensor:
        place, runs = self._place, self.runs
        sources = place.sources(runs.encode(self._pictures))
        rows = flat_rows(place.rows(sources), place.controls(self._shown), place.given())
        place.take(*runs.step(*rows.values()))
        out: torch.Tensor = runs.decode(place.leaving())
        return out

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The frame once, so that everything is set up, and then as a graph; the state is as before."""
        kept = {name: self._place.tensors[name].clone() for name in ("clean", "residual")}
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._through()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._out = self._through()
        for name, value in kept.items():
            self._place.tensors[name].copy_(value)
        return graph
