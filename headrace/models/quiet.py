"""Keeps the progress bars of the libraries out of an engine's log; progress is told in other ways."""

from __future__ import annotations

import functools
import sys


@functools.lru_cache
def _quiet(*loaded: bool) -> None:
    """Once for every set of libraries that are loaded."""
    if "tqdm" in sys.modules:
        import tqdm

        # The first bar, shown or not, would begin a thread that lives as long as the process.
        tqdm.tqdm.monitor_interval = 0
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()


def hide_progress_bars() -> None:
    """Switch them off in those libraries that are loaded by now."""
    _quiet(*(name in sys.modules for name in ("tqdm", "huggingface_hub", "transformers", "diffusers")))
