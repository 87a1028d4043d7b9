"""What went wrong in a load, as those who wait for it get it."""

from __future__ import annotations

import copy
import logging
import traceback

from headrace.models import memory
from headrace.models.errors import LoadFailed, OutOfMemory
from headrace.models.refs import ModelKey
from stream.errors import HeadraceError

log = logging.getLogger(__name__)


def described(key: ModelKey, error: BaseException) -> HeadraceError:
    """The error as those who wait get it: without a traceback, so without the tensors of its frames."""
    if isinstance(error, HeadraceError):
        return error
    if memory.is_out_of_memory(error):
        reason = str(error).partition("\n")[0] or type(error).__name__
        return OutOfMemory(f"{key.device} has no memory left for model {key.ref}: {reason}", field="model_id")
    log.error("loading %s failed:\n%s", key, "".join(traceback.format_exception(error)))
    return LoadFailed(f"model {key.ref} cannot be loaded: {type(error).__name__}: {error}", field="model_id")


def let_go(error: BaseException) -> None:
    """Let go of every frame that the error and what led to it hold."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
        one.__traceback__ = None


def fresh(error: HeadraceError) -> HeadraceError:
    """A copy to raise: one object raised in several threads would gather all their tracebacks."""
    other = copy.copy(error)
    other.__traceback__ = other.__cause__ = other.__context__ = None
    return other
