"""Files of tensors: what they hold, without reading them, and copies in another type.

The format: eight bytes with the length of a JSON header, the header, then the tensors' bytes
(github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.models.errors import LoadFailed, UnsafeFile
from headrace.models.made_once import made_once

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
OTHERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Type, shape and place of each tensor of a safetensors file. Raises `LoadFailed` for what is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for tensor in header.values():
            if not isinstance(tensor["dtype"], str) or not all(type(n) is int for n in tensor["shape"]):
                raise ValueError("a tensor without type or shape")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LoadFailed(f"{path.name} is not a whole safetensors file: {error}", field="model_id") from None
    return dict(header)


def bytes_as(files: Iterable[Path], dtype: str | None) -> int:
    """Bytes that the tensors of safetensors files take when floats become ``dtype`` (None: as they are).

    Raises `LoadFailed` for a file that is not there or not whole.
    """
    size = 0
    for file in files:
        try:
            facts = file.stat()
        except OSError as error:
            raise LoadFailed(f"{file.name} cannot be read: {error}", field="model_id") from None
        if file.suffix == ".safetensors":
            size += _bytes_of(file, dtype, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        else:
            size += facts.st_size
    return size


@functools.lru_cache(maxsize=256)
def _bytes_of(file: Path, dtype: str | None, inode: int, length: int, changed: int) -> int:
    """Remembered, because every request asks, and headers of large models take milliseconds to parse."""
    size = 0
    wanted = None if dtype is None else FLOATS[TYPES[dtype]]
    for tensor in read_header(file).values():
        count = 1
        for side in tensor["shape"]:
            count *= side
        kind = tensor["dtype"]
        own = FLOATS.get(kind) or OTHERS.get(kind, 1)
        size += count * (wanted if wanted is not None and kind in FLOATS else own)
    return size


def needs_conversion(file: Path, dtype: str) -> bool:
    """Whether a safetensors file has floats of another type than ``dtype``."""
    if file.suffix != ".safetensors":
        return False
    return any(t["dtype"] in FLOATS and t["dtype"] != TYPES[dtype] for t in read_header(file).values())


def converted_folder(folder: Path, files: Iterable[str], dtype: str, cache: Path, identity: str) -> Path:
    """A folder as ``folder`` with ``files`` alone, whose floats are ``dtype``: itself where they are already.

    Copies are kept below ``cache`` by ``identity`` (reference and revision), so that they are mapped and
    shared as originals are. Configurations are copied with them.
    """
    names = tuple(files)
    if not any(needs_conversion(folder / name, dtype) for name in names):
        return folder
    digest = hashlib.sha256("\n".join((identity, dtype, *names)).encode()).hexdigest()[:24]
    target = cache / "converted" / f"{digest}-{dtype}"
    made_once(target, lambda work: _convert(folder, names, dtype, work, identity))
    os.utime(target)
    return target


def _convert(folder: Path, names: tuple[str, ...], dtype: str, work: Path, identity: str) -> None:
    for name in names:
        out = work / name
        out.parent.mkdir(parents=True, exist_ok=True)
        if needs_conversion(folder / name, dtype):
            convert_file(folder / name, out, dtype)
        else:
            shutil.copyfile(folder / name, out)
    (work / ".of").write_text(identity)


def convert_file(source: Path, target: Path, dtype: str) -> None:
    """Write a safetensors file with its floats as ``dtype``, one tensor at a time."""
    import torch
    from safetensors import safe_open

    wanted: torch.dtype = getattr(torch, dtype)
    header = read_header(source)
    layout: dict[str, Any] = {}
    at = 0
    for name, tensor in header.items():
        kind = TYPES[dtype] if tensor["dtype"] in FLOATS else tensor["dtype"]
        size = FLOATS.get(kind) or OTHERS[kind]
        for side in tensor["shape"]:
            size *= side
        layout[name] = {"dtype": kind, "shape": tensor["shape"], "data_offsets": [at, at + size]}
        at += size
    head = json.dumps({"__metadata__": {"format": "pt"}, **layout}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with target.open("wb") as out, safe_open(source, "pt") as tensors:
        out.write(struct.pack("<Q", len(head)) + head)
        for name in header:
            value = tensors.get_tensor(name)
            value = value.to(wanted) if value.is_floating_point() else value
            out.write(value.contiguous().flatten().view(torch.uint8).numpy().data)


def read_pickle(path: Path) -> Mapping[str, Any]:
    """The tensors of a .pth, .pt or .ckpt file, read without running what may be in it.

    Raises `UnsafeFile` for a file that holds more than tensors and plain data.
    """
    import pickle

    import torch

    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise UnsafeFile(
            f"{path.name} asks to run code when it is read, or is damaged, so it is not read; save what it "
            f"holds as safetensors ({reason})",
            field="model_id",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise LoadFailed(f"{path.name} cannot be read: {error}", field="model_id") from None
    if not isinstance(data, Mapping):
        raise LoadFailed(f"{path.name} holds a {type(data).__name__}, not named tensors", field="model_id")
    # Training programs wrap the tensors.
    for wrapper in ("params_ema", "params", "state_dict", "model"):
        if isinstance(data.get(wrapper), Mapping):
            return dict(data[wrapper])
    return dict(data)


def _is_zip(path: Path) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)
