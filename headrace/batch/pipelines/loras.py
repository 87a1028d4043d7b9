"""LoRAs of one request: low-rank branches on copies of the modules that share all their tensors.

Nothing is merged, and nothing shared is touched: the request has module objects of its own whose parameters
are the shared ones, so a copy costs no memory but that of the branches, and goes with the request.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headrace.batch.contract import Job
from headrace.models import loading, memory
from headrace.models.building import building
from headrace.models.cache import Lease, Loaded, LoadProgress, ModelCache
from headrace.models.refs import ModelKey
from headrace.models.store import Located
from stream.errors import HeadraceError, InvalidInput, NotFound, NotInstalled

MAX_LORAS = 4
_BRANCHED = ("unet", "transformer", "text_encoder", "text_encoder_2")
_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers saves under."""


@dataclass(frozen=True)
class Lora:
    """One LoRA in memory. ``tensors`` are shared and read-only."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    strength: float


@contextlib.contextmanager
def wanted(job: Job, models: ModelCache) -> Iterator[list[Lora]]:
    """The LoRAs of the job's input ``loras`` ({name: strength}), leased until the block ends.

    Those of strength 0 are left out. Raises `InvalidInput` (field ``loras``) in ai-runner's words.
    """
    strengths: Mapping[str, float] = job.inputs.get("loras") or {}
    if len(strengths) > MAX_LORAS:
        raise InvalidInput(f"Too many LoRas provided. Maximum is {MAX_LORAS}.", field="loras")
    if any(not isinstance(s, int | float) or isinstance(s, bool) or s < 0 for s in strengths.values()):
        raise InvalidInput("All strengths must be numbers greater than or equal to 0.0.", field="loras")
    with contextlib.ExitStack() as leases:
        loras = []
        for name, strength in strengths.items():
            if strength:
                lease = leases.enter_context(_acquire(job, models, name))
                loras.append(Lora(name, lease.model, float(strength)))
        yield loras


def likeness(job: Job) -> Hashable:
    """Equal for jobs with the same LoRAs."""
    return frozenset((job.inputs.get("loras") or {}).items())


def with_branches(parts: loading.Components, loras: list[Lora]) -> loading.Components:
    """``parts``, with modules that branches can be put on where there are LoRAs."""
    if not loras:
        return parts
    return {**parts, **{name: twin(parts[name]) for name in _BRANCHED if parts.get(name) is not None}}


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """Module objects of one's own over the same tensors."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def attach(job: Job, pipe: Any, loras: list[Lora]) -> None:
    """Put the branches on the pipeline's own modules (`with_branches`); before the job takes its turn."""
    if loras:
        with building(job.check):
            _attach(pipe, loras)


def _attach(pipe: Any, loras: list[Lora]) -> None:
    try:
        import peft  # noqa: F401 (diffusers asks for it late, in a message of its own)
    except ModuleNotFoundError as error:
        raise NotInstalled("LoRAs need peft: pip install 'headrace[engine,batch]'", field="loras") from error
    if not hasattr(pipe, "load_lora_weights"):
        raise InvalidInput(f"LoRa incompatible with base model: '{loras[0].name}'.", field="loras")
    for number, lora in enumerate(loras):
        _attach_one(pipe, lora, f"lora{number}")
    there = {name for names in pipe.get_list_adapters().values() for name in names}
    for number, lora in enumerate(loras):
        if f"lora{number}" not in there:
            raise InvalidInput(f"LoRa incompatible with base model: '{lora.name}'.", field="loras")
    pipe.set_adapters([f"lora{n}" for n in range(len(loras))], [lora.strength for lora in loras])


def _attach_one(pipe: Any, lora: Lora, adapter: str) -> None:
    try:
        pipe.load_lora_weights(dict(lora.tensors), adapter_name=adapter)
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        if memory.is_out_of_memory(error):
            raise
        text = f"Unable to load LoRas for adapter '{lora.name}'."
        if isinstance(error, RuntimeError | ValueError):  # shapes or modules that the base does not have
            text = f"LoRa incompatible with base model: '{lora.name}'."
        raise InvalidInput(text, field="loras") from error


# -- loading -------------------------------------------------------------------------------------------


def _acquire(job: Job, models: ModelCache, name: str) -> Lease:
    found = _find(job, name)
    key = ModelKey(name, found.revision, "as stored", "cpu", "lora")

    def load(progress: LoadProgress) -> Loaded:
        try:
            loaded = loading.load_tensors(found)
        except HeadraceError as error:
            raise InvalidInput(f"Unable to load LoRas for adapter '{name}'.", field="loras") from error
        return Loaded(loaded.model, memory.parts_of(loaded.model, name=str(key)), loaded.weights)

    return models.acquire(key, load, size=found.bytes, cancel=job.check, on_progress=job.loading)


def _find(job: Job, name: str) -> Located:
    """The file of a LoRA: named itself, or the one in a repository or folder."""
    assert job.store is not None
    try:
        found = job.store.find(name)
    except NotFound:
        raise InvalidInput(f"LoRa repository '{name}' not found.", field="loras") from None
    except InvalidInput as error:
        raise InvalidInput(f"loras: {error.message}", field="loras") from None
    if found.kind == "safetensors":
        return found
    files = [file for file in found.files if file.endswith(".safetensors")]
    if _FILE in files:
        files = [_FILE]
    if len(files) != 1:
        what = f"has {len(files)} files: name one as {name}/FILE.safetensors" if files else "has none"
        raise InvalidInput(
            f"Unable to load LoRas for adapter '{name}'. It {what} ({', '.join(files[:8])})", field="loras"
        )
    path = found.path / files[0]
    return Located(
        found.ref, path, "safetensors", found.revision, path.stat().st_size, found.source, found.weights
    )
