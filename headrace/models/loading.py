"""From located files to modules in memory, with mapped weights where the device is the CPU.

For the engine alone: imports torch, and diffusers and transformers when they are needed.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import logging
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from headrace.models import sharing, tensors, weights
from headrace.models.cache import Loaded, Progress
from headrace.models.errors import LoadFailed
from headrace.models.files import components as components_of
from headrace.models.quiet import hide_progress_bars
from headrace.models.store import Located
from stream.errors import InvalidInput, NotInstalled

log = logging.getLogger(__name__)

P = TypeVar("P")
_CPU = torch.device("cpu")

Components = dict[str, Any]
"""The parts of a pipeline by their names in ``model_index.json``. Modules are shared and read-only."""


def variant_for(device: str) -> str | None:
    """The variant of files to look for: half precision where the device is fast at it."""
    return "fp16" if device.startswith("cuda") else None


def dtype_for(device: str, *, wide: bool = False) -> torch.dtype:
    """The type to compute in: float32 on a CPU; on CUDA float16, for models of a ``wide`` range bfloat16."""
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if wide and torch.cuda.is_bf16_supported() else torch.float16


def name_of(dtype: torch.dtype) -> str:
    """``float32`` for `torch.float32`, as keys have it."""
    return str(dtype).removeprefix("torch.")


def expected_bytes(found: Located, dtype: torch.dtype | None = None) -> int:
    """Bytes that loading will take, from the headers of the files; an estimate where it is not built."""
    if not found.built or found.kind not in ("diffusers", "transformers", "safetensors"):
        return found.bytes
    files = [found.path] if found.path.is_file() else [found.path / name for name in found.files]
    safe = [file for file in files if file.suffix == ".safetensors"]
    return tensors.bytes_as(safe, None if dtype is None else name_of(dtype)) or found.bytes


# -- pipelines -----------------------------------------------------------------------------------------


def load_diffusers(
    found: Located,
    *,
    cache: Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """The components of a pipeline, each loaded by its own class: ``model`` is a `Components`.

    ``cache``: where converted copies are kept (`Roots.cache`). ``only``: names of the components to load;
    None: all but the safety checker. Weights come from the holder where there is one
    (`headrace.models.sharing`). Runs no code of the repository. Raises `LoadFailed`, `NotInstalled`.
    """
    if found.kind != "diffusers":
        raise InvalidInput(f"model {found.ref} is not a diffusers pipeline", field="model_id")
    dtype = dtype or dtype_for(device)
    folder = _in_type(found, device, dtype, cache)
    index = json.loads((folder / "model_index.json").read_text())
    wanted = {
        name: kind
        for name, kind in components_of(index).items()
        if (name in only if only is not None else name != "safety_checker")
    }
    parts: Components = {}
    for number, (name, (library, class_name)) in enumerate(wanted.items()):
        if progress is not None:
            progress(number / len(wanted), f"loading {name}")
        # What stays wide is not taken from a narrow copy.
        top = found.path if _must_be_wide(found.path / name, dtype) else folder
        parts[name] = _component(found, top / name, library, class_name, device, dtype)
    weights.freeze(parts)
    weights.protect(top / name for top in {folder, found.path} for name in found.files)
    return Loaded(parts, weights=found.weights)


def _component(
    found: Located,
    folder: Path,
    library: str,
    class_name: str,
    device: str,
    dtype: torch.dtype,
) -> Any:
    kind = _class(library, class_name)
    hide_progress_bars()
    options: dict[str, Any] = {"local_files_only": True}
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder, **options)
    wide = _must_be_wide(folder, dtype)
    options["torch_dtype" if _is_diffusers(kind) else "dtype"] = torch.float32 if wide else dtype
    if found.variant is not None and list(folder.glob(f"*.{found.variant}*.safetensors")):
        options["variant"] = found.variant
    module = kind.from_pretrained(folder, use_safetensors=True, **options)
    module = _to_device(module, device, folder.glob("*.safetensors"))
    return steady(module) if wide else module


def _class(library: str, name: str) -> Any:
    """A class that ``model_index.json`` names: of diffusers, transformers, or one of diffusers' pipelines."""
    if library not in ("diffusers", "transformers"):
        library = f"diffusers.pipelines.{library}"
    try:
        return getattr(importlib.import_module(library), name)
    except ModuleNotFoundError as error:
        if error.name in ("diffusers", "transformers"):
            raise NotInstalled(
                f"{error.name} is not installed: pip install 'headrace[engine,batch]'"
            ) from error
        raise LoadFailed(
            f"the pipeline wants {name} of {library}; code of repositories is not run", field="model_id"
        ) from error
    except AttributeError as error:
        raise LoadFailed(f"{library} has no {name}; a newer release may", field="model_id") from error


def _is_diffusers(kind: type) -> bool:
    return any(base.__module__.startswith("diffusers.") for base in kind.__mro__)


def _must_be_wide(folder: Path, dtype: torch.dtype) -> bool:
    """Whether an autoencoder overflows in float16 (SDXL's) and so has to stay float32."""
    if dtype != torch.float16 or not (folder / "config.json").exists():
        return False
    return bool(json.loads((folder / "config.json").read_text()).get("force_upcast"))


def steady(module: torch.nn.Module) -> torch.nn.Module:
    """An autoencoder of float32 that takes and keeps to any type, so that no pipeline casts it in place.

    Pipelines change the type of a shared float16 autoencoder while they use it, and back; one that says it
    needs no such thing is left alone.
    """
    shared = type(module)

    class Steady(shared):  # type: ignore[misc, valid-type]
        """Casts what comes in to its own type."""

        def encode(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().encode(x.to(self.dtype), *args, **kwargs)

        def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().decode(z.to(self.dtype), *args, **kwargs)

    Steady.__name__ = Steady.__qualname__ = shared.__name__
    module.__class__ = Steady
    cast(Any, module).register_to_config(force_upcast=False)
    return module


@functools.cache
def arguments_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's class."""
    found: Mapping[str, inspect.Parameter] = inspect.signature(kind.__init__).parameters
    return found


@functools.cache
def call_arguments_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """What a pipeline of that class takes when it is called."""
    found: Mapping[str, inspect.Parameter] = inspect.signature(kind.__call__).parameters
    return found


def view(kind: type[P], parts: Mapping[str, Any], *, scheduler: Any = None, **more: Any) -> P:
    """A fresh pipeline of class ``kind`` over shared components, with a scheduler of its own.

    ``scheduler``: an instance for this request alone; None makes one from the shared one's configuration.
    ``more``: other arguments of the class, such as ``requires_safety_checker=False``. Components that the
    class does not take are left out, optional ones that are not there are None. ``parts`` are not changed.
    """
    takes = arguments_of(cast(Any, kind))
    given: dict[str, Any] = {name: part for name, part in parts.items() if name in takes}
    for name in getattr(kind, "_optional_components", ()):
        if name in takes:
            given.setdefault(name, None)
    for name in [name for name in given if name == "scheduler" or name.endswith("_scheduler")]:
        # To make one takes most of a millisecond.
        if name != "scheduler" or scheduler is None:
            given[name] = fresh_scheduler(given[name])
    if scheduler is not None:
        given["scheduler"] = scheduler
    given.update(more)
    if "requires_safety_checker" in takes and given.get("safety_checker") is None:
        given.setdefault("requires_safety_checker", False)
    missing = [
        name
        for name, parameter in takes.items()
        if name != "self"
        and name not in given
        and parameter.default is parameter.empty
        and parameter.kind == 1
    ]
    if missing:
        raise InvalidInput(
            f"{kind.__name__} needs {', '.join(missing)}, which this model does not have", field="model_id"
        )
    made = cast(P, _on_one_device(cast(Any, kind))(**given))
    cast(Any, made).set_progress_bar_config(disable=True)
    return made


@functools.cache
def _on_one_device(kind: Hashable) -> Any:
    """``kind``, for modules that stay where they are: diffusers' own looks through all of them for hooks that
    move them, several times in a call, which takes milliseconds."""
    base: Any = kind

    class View(base):  # type: ignore[misc]
        @functools.cached_property
        def device(self) -> torch.device:
            modules = (part for part in self.components.values() if isinstance(part, torch.nn.Module))
            return next((tensor.device for part in modules for tensor in part.parameters()), _CPU)

        @property
        def _execution_device(self) -> torch.device:
            return self.device

    View.__name__ = View.__qualname__ = base.__name__
    return View


def fresh_scheduler(scheduler: Any, kind: type | None = None, **changes: Any) -> Any:
    """A scheduler with the configuration of ``scheduler``, of its class or another ``kind``."""
    return cast(Any, kind or type(scheduler)).from_config(scheduler.config, **changes)


def unused_copy(scheduler: Any) -> Any:
    """A scheduler like one that was made and never run; takes a tenth of the time to make another."""
    other = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            setattr(other, name, value.clone())
        elif name != "_internal_dict":  # its configuration, which nobody changes in place
            setattr(other, name, copy.deepcopy(value))
    return other


# -- single models -------------------------------------------------------------------------------------


def load_transformers(
    found: Located,
    kind: Any,
    *,
    cache: Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Loaded:
    """One model by its class (of transformers or diffusers, or an Auto class): ``model`` is the module.

    ``options`` go to ``from_pretrained``. GGUF files are read as float32 once and kept as safetensors.
    """
    dtype = dtype or dtype_for(device)
    if found.kind == "gguf":
        from headrace.models.gguf import prepared

        if progress is not None:
            progress(0.05, "converting GGUF, once")
        found = prepared(found, cache)
    if found.kind not in ("transformers", "diffusers"):
        raise InvalidInput(
            f"model {found.ref} is a {found.kind} file, not a model with a configuration", field="model_id"
        )
    folder = _in_type(found, device, dtype, cache)
    if progress is not None:
        progress(0.3, "loading")
    options.setdefault("local_files_only", True)
    hide_progress_bars()
    options["torch_dtype" if isinstance(kind, type) and _is_diffusers(kind) else "dtype"] = dtype
    if found.variant is not None:
        options["variant"] = found.variant
    module = kind.from_pretrained(folder, use_safetensors=True, **options)
    module = _to_device(module, device, folder.glob("*.safetensors"))
    weights.freeze(module)
    weights.protect(folder / name for name in found.files)
    return Loaded(module, weights=found.weights)


def text_folder(found: Located, cache: Path) -> Path:
    """Where a model's tokenizer and processor lie: beside the weights, or beside what a GGUF became."""
    if found.kind == "gguf":
        from headrace.models.gguf import prepared

        return prepared(found, cache).path
    return found.path


def load_tensors(found: Located, *, device: str = "cpu") -> Loaded:
    """The tensors of a single file by their names: mapped for safetensors, ``weights_only`` for pickles."""
    if found.kind == "pickle":
        return Loaded(dict(tensors.read_pickle(found.path)), weights=found.weights)
    if found.kind != "safetensors":
        raise InvalidInput(f"model {found.ref} is not a file of tensors", field="model_id")
    from safetensors.torch import load_file

    data = load_file(found.path, device=device)
    if device == "cpu":
        weights.protect([found.path])
    return Loaded(data, weights=found.weights)


def _to_device(module: Any, device: str, files: Iterable[Path]) -> Any:
    """The module on its device: what the holder has is used from there, the rest is moved."""
    holder = sharing.current()
    if holder is not None:
        holder.adopt(module, files)
    return module if device == "cpu" else module.to(device)


def _in_type(found: Located, device: str, dtype: torch.dtype, cache: Path) -> Path:
    """The model's folder; where weights are shared one whose files have ``dtype``, to be used as they are."""
    if (device != "cpu" and sharing.current() is None) or not found.files:
        return found.path
    identity = f"{found.ref} {found.revision}"
    return tensors.converted_folder(found.path, found.files, name_of(dtype), cache, identity)
