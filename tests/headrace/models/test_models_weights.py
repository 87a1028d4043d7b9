"""Weights in memory: shared between processes, read-only, in the wanted type, and gone when unloaded."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.models import loading, memory, weights
from headrace.models.cache import Loaded, LoadProgress, ModelCache
from headrace.models.errors import LoadFailed, UnsafeFile
from headrace.models.refs import ModelKey
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from headrace.models.tensors import bytes_as, convert_file, converted_folder, read_header, read_pickle
from stream.errors import InvalidInput

ROOT = Path(__file__).parents[3]
SIZE = 8 * 1024 * 1024
"""Floats in the model of these tests: 32 MB, well above what else comes and goes."""

CHILD = """
import sys
from pathlib import Path
import torch
from headrace.models import loading
from headrace.models.roots import Roots
from headrace.models.store import ModelStore

folder = Path(sys.argv[1])
store = ModelStore(Roots(folder, folder / "hub", folder / "cache"))
loaded = loading.load_tensors(store.find("big.safetensors"))
print(float(loaded.model["a"].sum()), flush=True)
if sys.stdin.readline() == "write":
    loaded.model["a"].mul_(2)
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    save_file({"a": torch.ones(SIZE), "b": torch.ones(3, dtype=torch.int64)}, tmp_path / "big.safetensors")
    return ModelStore(Roots(tmp_path, tmp_path / "hub", tmp_path / "cache"))


def child(store: ModelStore) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(store.roots.models)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def smaps(pid: int, name: str) -> dict[str, int]:
    """Bytes of the mappings of a file, by the kernel's own words (proc(5), smaps)."""
    figures: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            inside = line.endswith(name)
        elif inside and head[-1] == "kB":
            figures[head[0][:-1]] = figures.get(head[0][:-1], 0) + int(head[1]) * 1024
    return figures


def test_two_processes_have_one_copy_of_the_weights_and_a_write_ends_the_process_and_not_the_weights(
    store: ModelStore,
) -> None:
    both = [child(store) for _ in range(2)]
    try:
        for one in both:
            assert one.stdout is not None
            assert float(one.stdout.readline()) == SIZE
        figures = [smaps(one.pid, "big.safetensors") for one in both]
        for one in figures:
            assert one["Rss"] >= SIZE * 4
            # Half of every page is counted for each of the two, and none is anybody's own.
            assert one["Pss"] <= SIZE * 4 * 0.55
            assert one["Private_Dirty"] == 0
    finally:
        for one, what in zip(both, ("write", "read"), strict=True):
            one.communicate(what, timeout=30)
    assert [one.returncode for one in both] == [-signal.SIGSEGV, 0]
    assert float(load_file(store.roots.models / "big.safetensors")["a"].sum()) == SIZE


def test_parts_are_named_by_their_files(store: ModelStore) -> None:
    loaded = loading.load_tensors(store.find("big.safetensors"))
    assert weights.shares(loaded.model["a"])
    assert weights.shared_bytes(loaded.model) == (SIZE * 4 + 24, 0)
    own = torch.ones(10)
    parts = memory.parts_of({"file": loaded.model, "own": own}, name="m")
    (file,) = [name for name in parts if name.startswith("file:")]
    assert parts[file] == (store.roots.models / "big.safetensors").stat().st_size
    assert parts["m"] == 40


def test_memory_after_load_unload_load_is_that_after_the_first_load(store: ModelStore) -> None:
    cache = ModelCache("cpu")
    key = ModelKey("big", "1", "float32", "cpu", "test")

    def load(progress: LoadProgress) -> Loaded:
        mapped = loading.load_tensors(store.find("big.safetensors")).model
        # Some of its own, on the heap and in maps, beside the mapped ones.
        own = [torch.ones(5000) for _ in range(400)] + [torch.ones(SIZE // 4)]
        return Loaded([mapped["a"] * 1.0, mapped, own])

    def resident() -> int:
        cache.acquire(key, load).release()
        return memory.resident()

    before = memory.resident()
    first = resident()
    assert first - before > SIZE * 4
    cache.unload(key)
    assert memory.resident() - before < 0.1 * (first - before)
    second = resident()
    assert second - first < 0.05 * first
    cache.unload(key)


def test_a_copy_in_another_type_is_made_once_and_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    values = torch.randn(1000)
    save_file({"w": values.half(), "n": torch.arange(5)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    files = ("config.json", "model.safetensors")
    made = converted_folder(folder, files, "float32", tmp_path / "cache", "m 1")
    assert made != folder
    again = load_file(made / "model.safetensors")
    assert torch.equal(again["w"], values.half().float())
    assert torch.equal(again["n"], torch.arange(5))
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert converted_folder(folder, files, "float32", tmp_path / "cache", "m 1") == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    assert converted_folder(folder, files, "float16", tmp_path / "cache", "m 1") == folder
    assert converted_folder(folder, files, "float32", tmp_path / "cache", "m 2") != made


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sizes_are_known_before_a_load(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(7, 3), "n": torch.arange(5), "empty": torch.ones(0)}, file)
    convert_file(file, tmp_path / "y.safetensors", dtype)
    loaded = load_file(tmp_path / "y.safetensors")
    assert bytes_as([file], dtype) == sum(tensor.nbytes for tensor in loaded.values())
    assert loaded["w"].dtype == getattr(torch, dtype)
    assert loaded["empty"].shape == (0,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"\xff" * 16,
        b"\x02\0\0\0\0\0\0\0{}x"[:9],
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x08\0\0\0\0\0\0\0" + b'{"a":{}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(LoadFailed, match=r"x\.safetensors is not a whole safetensors file"):
        read_header(tmp_path / "x.safetensors")


class Evil:
    """What a pickle can do when somebody reads it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/headrace-unpickled"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "evil.pth"
    if zipped:
        torch.save({"w": Evil()}, file)
    else:
        file.write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(UnsafeFile, match=r"evil\.pth asks to run code"):
        read_pickle(file)
    assert not Path("/tmp/headrace-unpickled").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_pickle_are_read(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "x.ckpt"
    wrapped = {"params_ema": {"w": torch.ones(3)}, "epoch": 3}
    torch.save(wrapped, file, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_pickle(file)["w"], torch.ones(3))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises((LoadFailed, UnsafeFile), match=r"x\.ckpt"):
        read_pickle(file)


def test_what_is_no_tensors_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    torch.save([1, 2], folder / "list.pt")
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    save_file({"w": torch.ones(1)}, folder / "m" / "model.safetensors")
    store = ModelStore(Roots(folder, tmp_path / "hub", tmp_path / "cache"))
    with pytest.raises(LoadFailed, match="holds a list"):
        loading.load_tensors(store.find("list.pt"))
    with pytest.raises(InvalidInput, match="not a file of tensors"):
        loading.load_tensors(store.find("m"))
    with pytest.raises(InvalidInput, match="not a diffusers pipeline"):
        loading.load_diffusers(store.find("m"), cache=tmp_path / "cache")
