"""Async work in torch's inference mode.

The mode is the thread's, not the task's: held across an ``await`` it would be that of whatever runs
meanwhile, and two that end in another order than they began would leave it on for good.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from stream.stretches import in_stretches

T = TypeVar("T")


async def in_inference_mode(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; the mode is on while it runs, and as it was while it waits.

    Where nobody has imported torch there is no mode.
    """
    torch = sys.modules.get("torch")
    return await in_stretches(work, contextlib.nullcontext if torch is None else torch.inference_mode)
