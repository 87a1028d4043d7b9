"""Finding, listing and removing models in folders that look as the hub's tools and people leave them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from headrace.models.errors import ModelNotFound, UnsafeFile
from headrace.models.files import choose
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput

COMMIT = "a" * 40
OTHER = "b" * 40


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "models", tmp_path / "hub", tmp_path / "cache")


def safetensors(path: Path, size: int = 16) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def write(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def hub_model(roots: Roots, name: str = "models--owner--name", commit: str = COMMIT, size: int = 16) -> Path:
    """A repository as the hub's tools keep it: blobs, and snapshots of links to them."""
    folder = roots.hub / name
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        blob = folder / "blobs" / f"{commit[:8]}-{file}"
        if file == "config.json":
            write(blob, json.dumps({"architectures": ["LlamaForCausalLM"]}))
        else:
            safetensors(blob, size)
        (snapshot / file).symlink_to(f"../../blobs/{blob.name}")
    write(folder / "refs" / "main", commit)
    return folder


def pipeline(folder: Path) -> None:
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index = {"_class_name": "StableDiffusionPipeline", **parts, "safety_checker": [None, None]}
    write(folder / "model_index.json", json.dumps(index))
    write(folder / "unet" / "config.json")
    safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    safetensors(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", 8)
    write(folder / "tokenizer" / "merges.txt")
    write(folder / "safety_checker" / "config.json")
    safetensors(folder / "safety_checker" / "model.safetensors")
    safetensors(folder / "whole.safetensors", 64)


def test_a_repository_of_the_hubs_cache_is_found_by_branch_and_by_commit(roots: Roots) -> None:
    hub_model(roots)
    store = ModelStore(roots)
    found = store.find("owner/name")
    assert (found.kind, found.revision, found.source, found.weights) == (
        "transformers",
        COMMIT,
        "hub",
        "real",
    )
    assert found.bytes == (found.path / "model.safetensors").stat().st_size
    assert store.find(f"owner/name@{COMMIT}").path == found.path
    with pytest.raises(ModelNotFound, match=r"headrace models pull owner/name@other"):
        store.find("owner/name@other")


def test_what_is_missing_says_what_to_run(roots: Roots) -> None:
    with pytest.raises(ModelNotFound, match="`headrace models pull owner/name` gets it") as missing:
        ModelStore(roots).find("owner/name")
    assert missing.value.status == 404
    with pytest.raises(ModelNotFound, match="there are demo:smollm2"):
        ModelStore(roots).find("demo:unknown")


def test_half_a_download_is_not_found(roots: Roots) -> None:
    folder = hub_model(roots)
    snapshot = folder / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    write(snapshot / "model.safetensors.index.json", json.dumps(index))
    safetensors(snapshot / "model-00001-of-00002.safetensors")
    store = ModelStore(roots)
    with pytest.raises(ModelNotFound, match=r"model-00002-of-00002.safetensors is missing"):
        store.find("owner/name")
    safetensors(snapshot / "model-00002-of-00002.safetensors")
    assert len([name for name in store.find("owner/name").files if name.endswith(".safetensors")]) == 2


def test_a_pipeline_takes_the_weights_of_its_parts_and_half_precision_where_asked(roots: Roots) -> None:
    pipeline(roots.models / "sd")
    store = ModelStore(roots)
    found = store.find("sd")
    assert (found.kind, found.index, found.variant) == ("diffusers", "StableDiffusionPipeline", None)
    weights = [name for name in found.files if name.endswith(".safetensors")]
    assert weights == ["unet/diffusion_pytorch_model.safetensors"]
    half = store.find("sd", variant="fp16")
    assert half.variant == "fp16"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in half.files
    assert half.bytes < found.bytes


def test_a_file_that_changes_is_another_revision(roots: Roots) -> None:
    safetensors(roots.models / "lora.safetensors")
    store = ModelStore(roots)
    before = store.find("lora.safetensors")
    safetensors(roots.models / "lora.safetensors", 32)
    after = store.find("lora.safetensors")
    assert before.revision != after.revision
    assert before.kind == "safetensors"


def test_one_file_of_a_repository_can_be_named(roots: Roots) -> None:
    folder = hub_model(roots)
    safetensors(folder / "snapshots" / COMMIT / "unet" / "x.safetensors")
    assert ModelStore(roots).find("owner/name/unet/x.safetensors").revision == COMMIT
    with pytest.raises(ModelNotFound):
        ModelStore(roots).find("owner/name/unet/y.safetensors")


def test_pickles_are_refused_by_name(roots: Roots) -> None:
    write(roots.models / "old" / "config.json")
    write(roots.models / "old" / "pytorch_model.bin", "x")
    with pytest.raises(UnsafeFile, match=r"pytorch_model.bin, a pickle"):
        ModelStore(roots).find("old")
    with pytest.raises(UnsafeFile):
        choose(["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"])


def test_the_list_names_what_is_whole(roots: Roots) -> None:
    hub_model(roots)
    (roots.hub / "models--half--one" / "snapshots").mkdir(parents=True)
    pipeline(roots.models / "people" / "sd")
    safetensors(roots.models / "loras" / "x.safetensors")
    names = {str(found.ref) for found in ModelStore(roots).list() if found.source != "demo"}
    assert names == {"owner/name", "people/sd", "loras/x.safetensors"}


def test_removing_a_revision_keeps_what_others_use(roots: Roots) -> None:
    folder = hub_model(roots, size=100)
    other = folder / "snapshots" / OTHER
    other.mkdir()
    (other / "config.json").symlink_to(f"../../blobs/{COMMIT[:8]}-config.json")
    safetensors(folder / "blobs" / "of-other", 50)
    (other / "model.safetensors").symlink_to("../../blobs/of-other")
    write(folder / "refs" / "pr", OTHER)
    store = ModelStore(roots)
    freed = store.remove("owner/name@pr")
    assert freed > 50
    assert store.find("owner/name").revision == COMMIT
    assert not (folder / "refs" / "pr").exists()
    assert store.remove("owner/name") > 100
    assert not folder.exists()
    with pytest.raises(ModelNotFound):
        store.remove("owner/name")


def test_what_packages_bring_is_not_removed(roots: Roots) -> None:
    store = ModelStore(roots)
    try:
        found = store.find("demo:anime4k")
    except ModelNotFound as missing:
        assert "pip install" in missing.message
        pytest.skip("pyanime4k is not installed")
    with pytest.raises(InvalidInput, match="pip uninstall pyanime4k"):
        store.remove("demo:anime4k")
    assert found.path.exists()


def test_a_repository_of_single_files_is_other(roots: Roots) -> None:
    choice = choose(["README.md", "a_4step.safetensors", "b_8step.safetensors", "b.ckpt"])
    assert choice.layout == "other"
    assert choice.weights == ("a_4step.safetensors", "b_8step.safetensors")


def test_a_whole_model_is_preferred_to_its_pieces_and_to_adapters() -> None:
    choice = choose(
        ["config.json", "model.safetensors", "model.fp16.safetensors", "adapter.safetensors", "x.bin"]
    )
    assert choice.weights == ("model.safetensors",)
    assert choice.text == ("config.json",)
    sharded = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    choice = choose([*sharded, "model.safetensors.index.json", "pytorch_model.bin.index.json"])
    assert choice.weights == tuple(sharded[1:])
    assert choice.text == ("config.json", "model.safetensors.index.json")
