"""torch's modes, which are the thread's: what a call leaves set while it waits is not for others."""

from __future__ import annotations

import contextlib
from typing import Any


class Modes:
    """Those of the present thread at the moment: inference, gradients, autocast, the CUDA stream."""

    def __init__(self) -> None:
        import torch

        self._torch: Any = torch
        self._kept = self._present()

    def _present(self) -> tuple[Any, ...]:
        torch = self._torch
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            *(_casts(torch, kind) for kind in ("cpu", "cuda")),
            torch.cuda.current_stream() if torch.cuda.is_initialized() else None,
        )

    def lay_aside(self) -> contextlib.ExitStack | None:
        """Set them as they were kept, where they differ; closing what is given sets them as they are now."""
        present = self._present()
        if present == self._kept:
            return None
        torch = self._torch
        inference, grad, on_cpu, on_cuda, stream = self._kept
        aside = contextlib.ExitStack()
        aside.enter_context(torch.inference_mode(inference))
        aside.enter_context(torch.set_grad_enabled(grad))
        aside.enter_context(torch.autocast("cpu", enabled=on_cpu))
        if torch.cuda.is_available():
            aside.enter_context(torch.autocast("cuda", enabled=on_cuda))
        if stream is not None:
            aside.enter_context(torch.cuda.stream(stream))
        return aside


def _casts(torch: Any, kind: str) -> bool:
    try:
        return bool(torch.is_autocast_enabled(kind))
    except TypeError:  # torch 2.3 and older
        return bool(torch.is_autocast_cpu_enabled() if kind == "cpu" else torch.is_autocast_enabled())
