"""The compiled pieces of one set of networks: what is there, what is being made, and why something is not.

A frame asks for a piece and gets it, or None and goes the eager way; what is missing is made meanwhile, and a
later frame that asks for it gets it. Nothing here is awaited by a frame.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headrace.diffusion.compiler import Compiler
from headrace.diffusion.pieces import Described, Kind, NetworkSpec, Piece, Recipe, padded_to

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

MAX_PIECES = 48
"""Pieces that are kept in memory, each without weights."""
_NO_RECIPE = "cached attention, and adapters without a recipe, are not compiled"

Run = Callable[..., Any]
Key = tuple[Kind, object, Described]


class Acceleration:
    """For networks on ``device``. Does nothing until `use` gives it a compiler.

    Its state is ``eager``, ``compiling`` or ``compiled``. Some pieces may be compiled while others are not:
    it is ``compiled`` when nothing is under way and nothing has failed.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._compiler: Compiler | None = None
        self._inductor: Mapping[str, Any] = {}
        self._ready: OrderedDict[Key, Run] = OrderedDict()
        self._asked: dict[Key, str] = {}
        """Pieces under way (empty text), or why there is none."""
        self._lock = threading.Lock()
        self._why_not = "not asked for"

    @property
    def in_use(self) -> bool:
        return self._compiler is not None

    @property
    def state(self) -> tuple[str, str]:
        """The state, and the reason for an eager one."""
        with self._lock:
            asked = list(self._asked.values())
            if "" in asked:
                return "compiling", ""
            if asked:
                return "eager", asked[0]
            return ("compiled", "") if self._ready else ("eager", self._why_not)

    def use(self, compiler: Compiler, inductor: Mapping[str, Any] | None = None) -> None:
        """From now on pieces are made; ``inductor``: options of the compiler."""
        with self._lock:
            if self._compiler is None:
                self._compiler, self._inductor = compiler, inductor or {}
                self._why_not = "no frame has come yet"

    def refuse(self, reason: str) -> None:
        """Nothing will be compiled, and why."""
        with self._lock:
            if self._compiler is None:
                self._why_not = reason

    def padded(self, kind: Kind, count: int) -> int | None:
        """The number of pictures or rows that a piece is asked for; None where none is made for so many."""
        return padded_to(kind, count) if self.in_use else None

    def find(
        self,
        kind: Kind,
        tensors: Described,
        module: nn.Module,
        networks: Sequence[Any],
        *,
        owner: object = None,
        options: Mapping[str, bool] | None = None,
        recipes: tuple[Recipe, ...] | None = (),
    ) -> Run | None:
        """The compiled piece for tensors like these, over the weights of ``module``.

        ``networks``: those of diffusers that it stands on; ``owner`` tells modules of one kind apart, see
        `forget`; ``recipes``: of its adapters, None where they have none.
        """
        compiler = self._compiler
        if compiler is None:
            return None
        key = (kind, owner, tensors)
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                self._ready.move_to_end(key)
                return found
            if key in self._asked:
                return None
            self._asked[key] = "" if recipes is not None else _NO_RECIPE
        if recipes is not None:
            specs = tuple(map(NetworkSpec.of, networks))
            piece = Piece(
                kind,
                str(self._device),
                str(self._dtype)[6:],
                tensors,
                specs,
                options or {},
                self._inductor,
                recipes,
            )
            self._ask(compiler, key, piece, module)
        return None

    def forget(self, owner: object) -> None:
        """Let go of what was made for an ``owner``, with its weights."""
        with self._lock:
            for known in (self._ready, self._asked):
                for key in [key for key in known if key[1] == owner]:
                    del known[key]

    # -- inside ----------------------------------------------------------------------------------------

    def _ask(self, compiler: Compiler, key: Key, piece: Piece, module: nn.Module) -> None:
        own, weak = weakref.ref(self), weakref.ref(module)

        def made(path: Path | None, reason: str) -> None:
            acceleration, target = own(), weak()
            if acceleration is not None and target is not None:
                acceleration._take(key, path, reason, target)

        if not compiler.ask(piece, made, lambda: weak() is not None and own() is not None):
            with self._lock:
                # Asked for again by a later frame.
                self._asked.pop(key, None)

    def _take(self, key: Key, path: Path | None, reason: str, module: nn.Module) -> None:
        """In the compiler's thread: load, lend the weights, and let the next frame have it."""
        run: Run | None = None
        if path is not None:
            try:
                run = loaded(path, module, self._device)
            except (RuntimeError, OSError, KeyError, ValueError) as error:
                path.unlink(missing_ok=True)
                reason = f"the package could not be loaded: {error}".splitlines()[0][:400]
                log.warning("%s", reason)
        with self._lock:
            if run is None:
                self._asked[key] = reason or "unknown"
                return
            self._asked.pop(key, None)
            self._ready[key] = run
            while len(self._ready) > MAX_PIECES:
                self._ready.popitem(last=False)


class _Package:
    """A loaded package that runs over the weights of ``module``, which it keeps."""

    def __init__(self, package: Any, lent: dict[str, torch.Tensor]) -> None:
        self._package, self._lent = package, lent

    def __call__(self, *tensors: torch.Tensor) -> Any:
        return self._package(*tensors)


def loaded(path: Path, module: nn.Module, device: torch.device) -> Run:
    """The package at ``path`` over the weights of ``module``: lent, not copied."""
    index = device.index if device.type == "cuda" and device.index is not None else -1
    package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True, device_index=index)
    weights = {name: value.detach() for name, value in module.state_dict(keep_vars=True).items()}
    lent = {name: weights[name] for name in package.get_constant_fqns()}
    package.load_constants(lent, check_full_update=True, user_managed=True)
    return _Package(package, lent)
