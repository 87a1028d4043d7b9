"""The folders that models live in: by setting, and where other programs have put them already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODEL_DIR")


@dataclass(frozen=True, slots=True)
class Roots:
    """``models``: the operator's own folders and files. ``hub``: the hub's cache, shared with other programs
    (``models--OWNER--NAME`` folders). ``cache``: what Headrace makes itself and can make again."""

    models: Path
    hub: Path
    cache: Path

    @classmethod
    def from_environment(cls, models: Path | None = None, environ: Mapping[str, str] | None = None) -> Roots:
        """From the setting ``models_folder`` and the hub's own variables.

        In this order: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, MODEL_DIR (ai-runner's), HF_HOME, XDG_CACHE_HOME.
        """
        env = os.environ if environ is None else environ
        home = Path(env.get("HOME") or Path.home())
        caches = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
        data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share")
        named = next((env[name] for name in _HUB_VARIABLES if env.get(name)), None)
        hub = Path(named) if named else Path(env.get("HF_HOME") or caches / "huggingface") / "hub"
        own = env.get("HEADRACE_MODELS_FOLDER")
        return cls(
            models=(models or (Path(own) if own else data / "headrace" / "models")).expanduser(),
            hub=hub.expanduser(),
            cache=Path(env.get("HEADRACE_CACHE") or caches / "headrace").expanduser(),
        )
