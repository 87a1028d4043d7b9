"""Small networks in ONNX files, run by onnxruntime on torch tensors.

onnxruntime and the packages with the weights are those of the extra ``demo``; nothing of them is imported
before a network is loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

INSTALL = "pip install 'headrace[demo]'"
_OF_BATCH = frozenset({"diffusers", "safetensors", "transformers"})


def install(packages: Iterable[str]) -> str:
    """The command that brings ``packages``."""
    return "pip install 'headrace[engine,batch]'" if _OF_BATCH.intersection(packages) else INSTALL


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Those of ``packages`` (import names of the top level) that cannot be found; imports none of them."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def file_of(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported. Raises `FileNotFoundError` in words."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder, *parts)
        if path.is_file():
            return path
    raise FileNotFoundError(f"the package {package} has no file {'/'.join(parts)}; {INSTALL} brings it")


class Network:
    """One network with one output. `load` gives the same object to all who need it at the same time.

    It runs on CUDA where this process has put torch on CUDA and onnxruntime's CUDA build is installed, else
    on the CPU with as many threads as torch had in the thread that loaded it.
    """

    _loaded: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Network]] = weakref.WeakValueDictionary()
    _loading: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, threads: int, device: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that waits by turning in a circle takes a core from the frames of others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is raised
        providers: list[Any] = ["CPUExecutionProvider"]
        if device is not None:
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        log.info("%s runs by %s", path.name, self._session.get_providers()[0])

    @classmethod
    def load(cls, path: Path) -> Network:
        """The network in ``path``. Raises what onnxruntime raises for a file that is none."""
        import torch

        threads = max(1, torch.get_num_threads())
        key = (path, threads, _cuda_device())
        with cls._loading:
            network = cls._loaded.get(key)
            if network is None:
                network = cls._loaded[key] = cls(*key)
        return network

    def run(self, device: torch.device, **inputs: torch.Tensor) -> torch.Tensor:
        """The output for inputs by name, as a tensor on ``device``."""
        import torch

        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        (output,) = self._session.run(None, arrays)
        return torch.from_numpy(output).to(device)


def _cuda_device() -> int | None:
    """The CUDA device that torch uses in this process; None where it runs on the CPU."""
    import onnxruntime
    import torch

    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not used or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    return torch.cuda.current_device()
