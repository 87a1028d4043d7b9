"""The process that holds weights: on a CPU by shared memory; on CUDA the same words with CUDA's handles."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_model, save_file, save_model

from headrace.models import memory
from headrace.models.errors import LoadFailed
from headrace.models.holder_client import HolderClient, adopt
from stream.errors import EngineError

ROOT = Path(__file__).parents[3]
SIZE = 4 * 1024 * 1024


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[str, int]]]:
    """Starts a holder on a device: its address and process id."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(device: str) -> tuple[str, int]:
        address = str(tmp_path / "holder")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            fd = listener.fileno()
            command = [
                sys.executable,
                "-m",
                "headrace.models.holder",
                f"--fd={fd}",
                f"--parent={os.getpid()}",
            ]
            processes.append(subprocess.Popen([*command, f"--device={device}"], cwd=ROOT, pass_fds=[fd]))
        return address, processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.wait(10)


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).eval()


def held_bytes(pid: int) -> int:
    """What a holder has in memory files."""
    total = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if "headrace-weights" in os.readlink(path):
            total += os.stat(path).st_size
    return total


def test_two_clients_have_one_copy_that_goes_with_the_last(
    tmp_path: Path, start: Callable[[str], tuple[str, int]]
) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(SIZE, dtype=torch.float32)}, file)
    address, pid = start("cpu")
    clients = [HolderClient(address) for _ in range(2)]
    both = [client.hold(file) for client in clients]
    assert all(bytes(one[:100].numpy()) == file.read_bytes()[:100] for one in both)
    size = file.stat().st_size
    assert held_bytes(pid) == size
    assert "torch" not in " ".join(m.path for m in psutil.Process(pid).memory_maps())
    view = both.pop(0)[8:]
    clients[0].sweep()  # a view is left
    assert torch.equal(clients[0].hold(file)[8:], view)
    del view
    assert not clients[0].in_use()
    clients[0].sweep()
    again = clients[1].hold(file)
    assert again.data_ptr() == both[0].data_ptr()
    assert held_bytes(pid) == size
    other = tmp_path / "small.safetensors"
    save_file({"a": torch.ones(1)}, other)
    clients[1].close()
    # An answer after it tells that the closing has been seen.
    kept = clients[0].hold(other)
    assert held_bytes(pid) == other.stat().st_size
    save_file({"a": torch.zeros(1)}, other.with_suffix(".new"))
    other.with_suffix(".new").replace(other)
    assert not torch.equal(clients[0].hold(other), kept)
    clients[0].close()


def test_another_user_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        address = str(tmp_path / "stranger")
        listener.bind(address)
        listener.listen()
        monkeypatch.setattr("os.getuid", lambda: 123_456)
        with pytest.raises(EngineError, match="another user"):
            HolderClient(address)


def test_a_module_works_on_the_holders_memory(
    tmp_path: Path, start: Callable[[str], tuple[str, int]]
) -> None:
    file = tmp_path / "model.safetensors"
    original = linear()
    save_model(original, str(file))
    loaded = linear()
    state = _mapped(file)
    loaded.load_state_dict(state, assign=True)
    client = HolderClient(start("cpu")[0])
    adopted = adopt(loaded, [file], client)
    assert adopted == sum(tensor.nbytes for tensor in state.values())
    del state
    gc.collect()
    assert not [m for m in memory.file_mappings() if m.path == str(file)]
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))
    client.close()


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_faults_are_told(tmp_path: Path, start: Callable[[str], tuple[str, int]]) -> None:
    with pytest.raises(EngineError, match="no holder"):
        HolderClient(str(tmp_path / "nobody"))
    client = HolderClient(start("cpu")[0])
    with pytest.raises(LoadFailed, match="none cannot be read"):
        client.hold(tmp_path / "none")
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3)}, file)
    assert client.hold(file).numel() == file.stat().st_size
    client.close()


@pytest.mark.gpu
def test_engines_share_weights_on_cuda(tmp_path: Path, start: Callable[[str], tuple[str, int]]) -> None:
    file = tmp_path / "model.safetensors"
    original = linear()
    save_model(original, str(file))
    loaded = linear()
    load_model(loaded, str(file))
    loaded.load_state_dict(_mapped(file), assign=True)
    client = HolderClient(start("cuda:0")[0])
    before = torch.cuda.memory_allocated()
    assert adopt(loaded, [file], client) > 0
    loaded.to("cuda:0")
    assert torch.cuda.memory_allocated() - before < 1 << 20
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert torch.allclose(loaded(x.cuda()).cpu(), original(x), atol=1e-4)
    client.close()
