"""The version of this installation."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    """As the package's metadata have it; ``0.0.0`` for a source tree that is not installed."""
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "0.0.0"
