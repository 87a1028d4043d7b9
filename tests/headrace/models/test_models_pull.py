"""Pulling from a hub: what is fetched, progress, going on after a break, faults in words.

The hub is a small server of ours that the hub's own client talks to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from hub_server import COMMIT, Hub, running

from headrace.models.errors import ModelNotFound, UnsafeFile
from headrace.models.pull import AccessDenied, Puller, PullFailed, space_needed
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput

ROOT = Path(__file__).parents[3]
LARGE = os.urandom(3_000_000)


def weights(data: bytes) -> bytes:
    """A safetensors file with one tensor of bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        hub.repositories["owner/sd"] = {
            "README.md": b"words",
            "model_index.json": json.dumps(index).encode(),
            "unet/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": weights(LARGE),
            "unet/diffusion_pytorch_model.fp16.safetensors": weights(LARGE[:1_000_000]),
            "unet/diffusion_pytorch_model.bin": b"pickle",
            "vae/config.json": b"{}",
            "vae/diffusion_pytorch_model.safetensors": weights(b"v" * 1000),
            "whole.ckpt": b"pickle",
            "whole.safetensors": weights(LARGE),
            "safety_checker/model.safetensors": weights(b"s" * 1000),
        }
        hub.repositories["owner/old"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
        hub.repositories["owner/loras"] = {"a.safetensors": weights(b"a"), "b.safetensors": weights(b"b")}
        hub.repositories["owner/gguf"] = {"x.Q4.gguf": b"gguf", "x.Q8.gguf": b"gguf"}
        hub.gated.add("owner/gated")
        yield hub


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "models", tmp_path / "hub", tmp_path / "cache")


def test_only_what_is_needed_is_fetched_and_then_found(hub: Hub, roots: Roots) -> None:
    puller, told = Puller(roots, endpoint=hub.url), []
    plan = puller.plan("owner/sd")
    assert {file.name for file in plan.files} == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    with pytest.raises(ModelNotFound):
        ModelStore(roots).find("owner/sd")
    folder = puller.fetch(plan, lambda name, done, size: told.append((name, done, size)))
    found = ModelStore(roots).find("owner/sd")
    assert (found.path, found.revision, found.kind) == (folder, COMMIT, "diffusers")
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2] == plan.size
    assert any(0 < done < plan.size for name, done, _ in told if name.startswith("unet/diffusion"))
    half = {file.name for file in puller.plan("owner/sd", variant="fp16").files}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half
    assert "unet/diffusion_pytorch_model.safetensors" not in half


def test_what_broke_off_goes_on_where_it_was(hub: Hub, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.models.download._PAUSE", 0.0)
    puller = Puller(roots, endpoint=hub.url)
    plan = puller.plan("owner/sd")
    # Every answer breaks off, and after the third the whole hub is gone.
    hub.cut, hub.patience = 400_000, 3
    with pytest.raises(PullFailed, match="broke off at 1200000 of 3000080 bytes"):
        puller.fetch(plan)
    hub.cut, hub.patience, before = None, None, hub.sent
    puller.fetch(plan)
    assert hub.sent - before <= plan.size - 1_200_000
    assert ("unet/diffusion_pytorch_model.safetensors", "bytes=1200000-") in hub.served
    assert ModelStore(roots).find("owner/sd").bytes > 3_000_000
    before = hub.sent
    puller.fetch(plan)
    assert hub.sent == before


def test_what_comes_damaged_is_thrown_away(hub: Hub, roots: Roots) -> None:
    puller = Puller(roots, endpoint=hub.url)
    plan = puller.plan("owner/sd")
    files = hub.repositories["owner/sd"]
    sound = files["vae/diffusion_pytorch_model.safetensors"]
    files["vae/diffusion_pytorch_model.safetensors"] = sound[:-1] + b"x"
    with pytest.raises(PullFailed, match="came damaged"):
        puller.fetch(plan)
    with pytest.raises(ModelNotFound):
        ModelStore(roots).find("owner/sd")
    files["vae/diffusion_pytorch_model.safetensors"] = sound
    puller.fetch(plan)
    assert ModelStore(roots).find("owner/sd")


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.json"])
def test_a_hub_cannot_name_files_outside_its_folder(hub: Hub, roots: Roots, name: str) -> None:
    hub.repositories["owner/evil"] = {"config.json": b"{}", "model.safetensors": weights(b"x"), name: b"evil"}
    with pytest.raises(PullFailed, match="evil"):
        Puller(roots, endpoint=hub.url).plan("owner/evil")


def test_a_pull_can_be_given_up(hub: Hub, roots: Roots) -> None:
    cancel = threading.Event()
    cancel.set()
    puller = Puller(roots, endpoint=hub.url)
    with pytest.raises(PullFailed, match="given up"):
        puller.fetch(puller.plan("owner/sd"), cancel=cancel)


def test_faults_are_told_in_words(hub: Hub, roots: Roots) -> None:
    puller = Puller(roots, endpoint=hub.url)
    with pytest.raises(ModelNotFound, match="the hub has no model owner/none"):
        puller.plan("owner/none")
    with pytest.raises(AccessDenied, match="accept its licence"):
        puller.plan("owner/gated")
    with pytest.raises(UnsafeFile, match="pytorch_model"):
        puller.plan("owner/old")
    with pytest.raises(InvalidInput, match=r"name one, as owner/loras/a\.safetensors"):
        puller.plan("owner/loras")
    with pytest.raises((InvalidInput, ModelNotFound), match=r"name one.*owner/gguf/x\.Q4\.gguf"):
        puller.plan("owner/gguf")
    with pytest.raises(InvalidInput, match="no repository"):
        puller.plan("a folder/of mine/deep")
    with pytest.raises(PullFailed, match="broke off"):
        Puller(roots, endpoint="http://127.0.0.1:9").plan("owner/sd")


def test_one_file_can_be_pulled(hub: Hub, roots: Roots) -> None:
    puller = Puller(roots, endpoint=hub.url)
    plan = puller.plan("owner/loras/b.safetensors")
    puller.fetch(plan)
    assert ModelStore(roots).find("owner/loras/b.safetensors").kind == "safetensors"
    with pytest.raises(ModelNotFound, match="no file c"):
        puller.plan("owner/loras/c.safetensors")


def test_a_disk_that_is_too_small_is_said_before(
    hub: Hub, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Puller(roots, endpoint=hub.url).plan("owner/sd")
    space_needed(plan, roots)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(InvalidInput, match=r"needs 3\.0 MB more"):
        space_needed(plan, roots)


def test_the_command_pulls_lists_and_removes_without_torch(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "MODEL_DIR",
        "HEADRACE_MODELS_FOLDER",
        "HF_HUB_OFFLINE",
    ):
        environment.pop(name, None)
    # A torch that cannot be imported, so that nothing of this may need it.
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"

    def headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "headrace", "models", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
        )

    pulled = headrace("pull", "owner/sd")
    assert pulled.returncode == 0, pulled.stderr
    listed = json.loads(headrace("list", "--json").stdout)
    (found,) = [one for one in listed if one["source"] == "hub"]
    assert (found["model"], found["pipeline"], found["revision"]) == ("owner/sd", "text-to-image", COMMIT)
    assert "owner/sd" in headrace("list").stdout
    assert headrace("rm", "owner/sd").returncode == 2
    removed = headrace("rm", "owner/sd", "--yes")
    assert (removed.returncode, "3.0 MB freed" in removed.stdout) == (0, True)
    missing = headrace("rm", "owner/sd", "--yes")
    assert (missing.returncode, missing.stderr) == (
        1,
        "headrace: error: there is no model owner/sd to remove\n",
    )
