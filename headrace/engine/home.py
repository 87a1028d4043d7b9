"""What an engine lives in beside torch: an installation with start-up steps, nodes and memory of its own.

An engine of ours has no home. One that is started for an existing installation names a lent module, whose
``open_home`` makes the object that is described here; `headrace.comfyui.host` is such a module. Standard
library only.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from stream.errors import EngineError, HeadraceError

if TYPE_CHECKING:
    import torch

    from stream.processor import FrameProcessor


class NotNow(EngineError):
    """A frame cannot be worked on at the moment; the session is sound and the next one may be."""


SESSION = "*home*"
"""The name under which a home tells the worker of itself; no stream has one like it."""


class Home(Protocol):
    """Everything but `answer` is called from the main thread."""

    def before_torch(self) -> None:
        """The start-up steps that come before torch is imported. Raises `HeadraceError`."""

    def after_torch(self) -> torch.device | None:
        """The rest of them; the device that it works on, None where that is the engine's choice."""

    def blobs(self) -> Mapping[str, bytes]:
        """What it tells of itself when the engine is ready."""

    def build(self, spec: Mapping[str, Any]) -> FrameProcessor:
        """A processor for a workflow's specification; its model is not loaded yet."""

    def connect(self, say: Callable[[Mapping[str, Any]], None], tell_memory: Callable[[], None]) -> None:
        """``say`` sends what it has to say to the worker (``what``: ``admit``, before it loads), and
        ``tell_memory`` what `memory` gives; both from any thread."""

    def memory(self) -> Mapping[str, int]:
        """Bytes of its device: ``total``, ``free``, ``held``, ``reclaimable`` models, and those of them that
        are ``idle``, which it gives back when asked to ``release``; ``busy``: 1 while frames are worked on,
        which would need the others again. From any thread."""

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Does what the worker asks (``do``: ``release``, ``admitted``), in a thread of its own. Raises
        `HeadraceError`."""


def open_home(text: str | None) -> Home | None:
    """The home that the engine was started with: JSON with ``module`` and ``options``, or nothing."""
    if not text:
        return None
    described = json.loads(text)
    module = importlib.import_module(described["module"])
    home: Home = module.open_home(described["options"])
    return home


def step(home: Home | None, name: str) -> Any:
    """Take one of the start-up steps; whatever goes wrong there becomes an error that says so."""
    if home is None:
        return None
    try:
        return getattr(home, name)()
    except HeadraceError:
        raise
    except (Exception, SystemExit) as error:  # the edge to an installation that is not ours
        said = str(error) or "no message"
        raise EngineError(f"the installation does not start: {type(error).__name__}: {said}") from error
