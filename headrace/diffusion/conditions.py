"""What prompts and times are to a view, worked out once and kept, and stacked for the rows of a stream."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from weakref import WeakKeyDictionary

import torch

from headrace.diffusion.asked import Adapters, Conditioning
from headrace.diffusion.attention import Given
from headrace.diffusion.rows import RowConstants
from headrace.diffusion.view import NOTHING, NetworkView

MAX_KEPT = 64
"""Of one prompt: its text with some adapters, or one time."""

_Key = tuple[Hashable, ...]


class Conditions:
    """Of one view. For any thread; two that want the same at once may both work it out."""

    def __init__(self, view: NetworkView) -> None:
        self._view = weakref.ref(view)
        self._device = next(view.parameters()).device
        self._kept: WeakKeyDictionary[Conditioning, OrderedDict[_Key, torch.Tensor]] = WeakKeyDictionary()

    def prepare(
        self,
        prompts: Sequence[Conditioning],
        times: Sequence[int],
        size: tuple[int, int],
        adapters: Adapters | None,
    ) -> None:
        """Work out, beside the frames, what `text` and `time` will be asked for."""
        for prompt in prompts:
            self._text(prompt, adapters)
            for time in times:
                self._time(time, prompt, size, adapters)

    def text(self, rows: RowConstants, adapters: Adapters | None) -> torch.Tensor:
        """R x tokens x total."""
        return torch.cat([self._text(prompt, adapters) for prompt in rows.prompts])

    def time(self, rows: RowConstants, size: tuple[int, int], adapters: Adapters | None) -> torch.Tensor:
        """R x total, for pictures of ``size``, height and width."""
        pairs = zip(rows.times, rows.prompts, strict=True)
        return torch.cat([self._time(time, prompt, size, adapters) for time, prompt in pairs])

    def _text(self, prompt: Conditioning, adapters: Adapters | None) -> torch.Tensor:
        return self._once(
            prompt, ("text", _ref(adapters)), lambda: self._of().text_rows(prompt.text, _given(adapters))
        )

    def _time(
        self, time: int, prompt: Conditioning, size: tuple[int, int], adapters: Adapters | None
    ) -> torch.Tensor:
        def work_out() -> torch.Tensor:
            times = torch.tensor([time], device=self._device)
            return self._of().time_rows(times, prompt.pooled, size, _given(adapters))

        return self._once(prompt, (time, size, _ref(adapters)), work_out)

    def _of(self) -> NetworkView:
        view = self._view()
        assert view is not None
        return view

    def _once(self, prompt: Conditioning, key: _Key, work_out: Callable[[], torch.Tensor]) -> torch.Tensor:
        kept = self._kept.setdefault(prompt, OrderedDict())
        found = kept.pop(key, None)
        if found is None:
            found = work_out()
            for gone in [one for one in kept if isinstance(one[-1], weakref.ref) and one[-1]() is None]:
                kept.pop(gone, None)
        kept[key] = found
        while len(kept) > MAX_KEPT:
            kept.popitem(last=False)
        return found


def _ref(adapters: Adapters | None) -> weakref.ref[Adapters] | None:
    """What was worked out for adapters goes with them: a LoRA's weight may be moved a hundred times."""
    return None if adapters is None else weakref.ref(adapters)


def _given(adapters: Adapters | None) -> Given:
    return NOTHING if adapters is None else adapters.given
