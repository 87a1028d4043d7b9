"""What can go wrong between a model's name and its weights in memory."""

from __future__ import annotations

from stream.errors import AtCapacity, HeadraceError, InvalidInput, NotFound


class ModelNotFound(NotFound):
    """The model is not on this machine, or not all of it; the message says how to get it."""

    code = "model_not_found"


class ModelTooLarge(InvalidInput):
    """The model does not fit into the budget, whatever else is unloaded: no retry can help."""

    code = "model_too_large"


class NoRoom(AtCapacity):
    """The model would fit, but what is in memory is in use or pinned at the moment."""

    code = "no_room"


class OutOfMemory(AtCapacity):
    """The device had no memory left, also after everything idle was unloaded."""

    code = "out_of_memory"


class LoadFailed(HeadraceError):
    """A model's files were there and could not be loaded."""

    code = "load_failed"
    status = 500


class UnsafeFile(InvalidInput):
    """A file of weights that could run code when it is read, or that asks for it."""

    code = "unsafe_file"


def amount(size: int) -> str:
    """Bytes for people: ``3.4 GB`` (powers of ten, as file listings and the hub have them)."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
