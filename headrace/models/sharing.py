"""An engine's way to the process that holds weights for all engines of its device (`headrace.models.holder`).

An engine has one device, and so one holder: `use` names it once, what loads asks for `current`. Without a
holder, or when it is lost, an engine loads for itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.models.errors import OutOfMemory
from stream.errors import EngineError, HeadraceError

if TYPE_CHECKING:
    import torch

    from headrace.models.holder_client import HolderClient

log = logging.getLogger(__name__)

SHARED = "shared"
_current: Sharing | None = None


def use(address: str | None) -> Sharing | None:
    """From now on this process's loads go by the holder at ``address``; None: by themselves."""
    global _current
    _current = None if address is None else Sharing(address)
    return _current


def current() -> Sharing | None:
    """What `use` has made."""
    return _current


def address_of(prefix: str, device: str) -> str:
    """Where the holder of ``device`` listens; a leading ``@`` is an address without a file (unix(7))."""
    return f"{prefix}-{device}"


class Sharing:
    """Connects when it is first needed, and again after the holder was lost. From any thread.

    ``state``: empty before the first load, ``shared``, or why the last load had weights of its own.
    """

    def __init__(self, address: str) -> None:
        self.state = ""
        self._address = address
        self._client: HolderClient | None = None
        self._given_up: list[HolderClient] = []
        """Lines that broke; kept open while something of theirs is in use."""
        self._lock = threading.Lock()

    def adopt(self, module: torch.nn.Module, files: Iterable[Path]) -> int:
        """Put the holder's memory in the place of what ``module`` maps of ``files``; how many bytes.

        What could not be adopted stays as it is. Raises `OutOfMemory` when the holder's device is full.
        """
        from headrace.models import holder_client
        from headrace.models.memory import is_out_of_memory  # which imports this module

        client: HolderClient | None = None
        try:
            client = self._connect()
            adopted = holder_client.adopt(module, files, client)
        except OutOfMemory:
            raise
        except (HeadraceError, OSError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            message = error.message if isinstance(error, HeadraceError) else str(error)
            log.warning("weights are not shared, this engine loads its own: %s", message)
            self.state = f"own: {message}"
            if isinstance(error, EngineError):
                self._give_up(client)
            return 0
        self.state = SHARED
        return adopted

    def sweep(self) -> None:
        """Let the holder free what this engine does not use any more."""
        with self._lock:
            client = self._client
            for old in tuple(self._given_up):
                if not old.in_use():
                    old.close()
                    self._given_up.remove(old)
        try:
            if client is not None:
                client.sweep()
        except EngineError as error:
            log.warning("the holder of weights is lost: %s", error.message)
            self.state = f"own: {error.message}"
            self._give_up(client)

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            for client in (*self._given_up, *([] if self._client is None else [self._client])):
                client.close()
            self._given_up, self._client = [], None

    def _connect(self) -> HolderClient:
        from headrace.models.holder_client import HolderClient

        with self._lock:
            if self._client is None:
                self._client = HolderClient(self._address)
            return self._client

    def _give_up(self, client: HolderClient | None) -> None:
        with self._lock:
            if client is not None and client is self._client:
                self._given_up.append(client)
                self._client = None


def sweep() -> None:
    """`Sharing.sweep` of what `use` has made, where there is one."""
    if _current is not None:
        _current.sweep()
