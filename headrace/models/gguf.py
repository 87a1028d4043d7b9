"""Models from GGUF files: read once as float32 and kept as safetensors, which are mapped in a moment.

For the engine alone: imports torch and transformers. Reading needs the package `gguf`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.models.made_once import made_once
from headrace.models.quiet import hide_progress_bars
from headrace.models.store import Located
from stream.errors import NotInstalled

log = logging.getLogger(__name__)


def prepared(found: Located, cache: Path) -> Located:
    """The same model as a folder of safetensors below ``cache``, with its tokenizer; made when it is missing.

    Raises `NotInstalled` without the package gguf.
    """
    digest = hashlib.sha256(f"{found.ref} {found.revision}".encode()).hexdigest()[:24]
    folder = cache / "converted" / f"{digest}-gguf"
    made_once(folder, lambda work: _convert(found, work))
    names = tuple(sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return replace(found, path=folder, kind="transformers", files=names, bytes=size)


def _convert(found: Located, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise NotInstalled(f"{found.ref} is a GGUF file, which needs gguf: pip install 'headrace[batch]'")
    log.info("converting %s to safetensors in %s", found.path, work.parent)
    source = found.path if found.path.is_file() else found.path / found.files[-1]
    options = {"gguf_file": source.name, "local_files_only": True}
    hide_progress_bars()
    with _reading_once():
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    config = read.config
    # A model that says it is quantised cannot be saved; its tensors no longer are.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    generation = read.generation_config
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = generation
    del read
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)


@contextlib.contextmanager
def _reading_once() -> Iterator[None]:
    """Spare transformers most of its time with a file of this kind, as long as nobody else loads one.

    It reads all of the header, a string at a time, for the configuration, the weights and the tokenizer each,
    and makes a table of all names of tensors for every module.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            # A slice of a plain array takes a third of the time that one of `numpy.memmap` takes.
            self._data = np.asarray(mapped)

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(Reader), functools.cache(originals[1])
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals
