"""Loading custom nodes by ComfyUI's own loader, each pack's fault kept to the pack."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)

MAX_REASON = 1000


@dataclass(frozen=True)
class Pack:
    """One file or folder of nodes as it was loaded. ``kind``: ``custom``, ``builtin`` or ``network``."""

    name: str
    kind: str
    loaded: bool
    seconds: float
    classes: int = 0
    reason: str = ""
    skipped: bool = False
    """Left out because the settings say so."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_KINDS = {"custom_nodes": "custom", "comfy_api_nodes": "network"}


def load(nodes: Any, wanted: Mapping[str, bool], skipped: Sequence[str]) -> list[Pack]:
    """Run ComfyUI's own import of extra nodes; what came of each of them. Raises what its own code raises."""
    found: list[Pack] = []
    real = nodes.load_custom_node
    unwanted = {name.lower() for name in skipped}

    async def one(path: str, *arguments: Any, **named: Any) -> bool:
        name = os.path.basename(path.rstrip("/"))
        parent = named.get("module_parent", "custom_nodes")
        kind = _KINDS.get(parent, "builtin")
        if kind == "custom" and name.lower() in unwanted:
            found.append(Pack(name, kind, False, 0.0, reason="is left out by the settings", skipped=True))
            return False
        before, begun = len(nodes.NODE_CLASS_MAPPINGS), time.monotonic()
        with kept_in(name) as trouble:
            loaded = real(path, *arguments, **named)
            trouble.loaded = bool(await loaded if inspect.isawaitable(loaded) else loaded)
        found.append(
            Pack(
                name,
                kind,
                trouble.loaded,
                round(time.monotonic() - begun, 3),
                len(nodes.NODE_CLASS_MAPPINGS) - before,
                "" if trouble.loaded else trouble.reason(),
            )
        )
        return trouble.loaded

    def one_at_once(path: str, *arguments: Any, **named: Any) -> bool:
        return asyncio.run(one(path, *arguments, **named))

    nodes.load_custom_node = one if inspect.iscoroutinefunction(real) else one_at_once
    try:
        made = nodes.init_extra_nodes(**wanted)
        if inspect.isawaitable(made):
            asyncio.run(_awaited(made))
    finally:
        nodes.load_custom_node = real
    return found


async def _awaited(made: Any) -> None:
    await made


def run_prestart_scripts(folder_paths: Any, skipped: Sequence[str]) -> None:
    """The scripts that packs want run before anything else, where the operator allows them."""
    unwanted = {name.lower() for name in skipped}
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name, "prestartup_script.py")
            if name.endswith(".disabled") or name.lower() in unwanted or not os.path.isfile(path):
                continue
            with kept_in(name) as trouble:
                spec = importlib.util.spec_from_file_location(os.path.splitext(path)[0], path)
                if spec is not None and spec.loader is not None:
                    spec.loader.exec_module(importlib.util.module_from_spec(spec))
                    trouble.loaded = True
            if not trouble.loaded:
                log.warning("the pre-start script of %s failed: %s", name, trouble.reason())


class Trouble(logging.Handler):
    """Warnings that are logged while a pack loads: ComfyUI tells there why it did not. ``loaded`` is set by
    whoever loads it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.loaded = False
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def reason(self) -> str:
        return "\n".join(self.lines)[-MAX_REASON:] or "it does not say why"


class _Left(Exception):
    """Raised in the place of the end of the process."""


@contextlib.contextmanager
def kept_in(name: str) -> Iterator[Trouble]:
    """A pack may raise anything and try to end the process; that ends its import alone."""
    trouble = Trouble()
    real, out, err = os._exit, sys.stdout, sys.stderr

    def leave(status: int) -> None:
        raise _Left(f"it called os._exit({status})")

    os._exit = leave  # type: ignore[assignment]
    logging.getLogger().addHandler(trouble)
    try:
        yield trouble
    except SystemExit as error:
        trouble.lines.append(f"it called sys.exit({error.code})")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the edge to a pack)
        trouble.lines.append(f"{type(error).__name__}: {error}")
    finally:
        os._exit = real
        sys.stdout, sys.stderr = out, err
        logging.getLogger().removeHandler(trouble)
    if not trouble.loaded:
        log.warning("pack %s was not loaded: %s", name, trouble.reason())
