"""Upscaling: networks out of the files that people have, tiles, the demo's real network, uploads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_here import Heard, job_for, needs, store_of
from PIL import Image

from headrace.batch.contract import Cancelled
from headrace.batch.errors import UnsupportedMedia
from headrace.batch.pipelines.pictures import png, read_picture
from headrace.batch.pipelines.upscale import MAX_PIXELS, Upscale
from headrace.batch.pipelines.upscale_networks import CompactNet, RrdbNet, Upscaler, build
from headrace.batch.pipelines.upscale_tiles import spans, upscale
from headrace.models.cache import ModelCache
from headrace.models.errors import LoadFailed
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput, TooLarge


def small(network: Upscaler) -> Upscaler:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return network.eval().requires_grad_(False)


def earlier_names(state: dict[str, Any]) -> dict[str, Any]:
    """The names that the first files of ESRGAN had, for a network of two blocks and two enlargements."""
    found = {}
    for key, value in state.items():
        part, _, kind = key.rpartition(".")
        fixed = {"conv_first": "model.0", "conv_body": "model.1.sub.2", "conv_up1": "model.3"}
        fixed |= {"conv_up2": "model.6", "conv_hr": "model.8", "conv_last": "model.10"}
        if part in fixed:
            found[f"{fixed[part]}.{kind}"] = value
        else:
            _, block, dense, conv = part.split(".")
            found[f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"] = value
    return found


NETWORKS = [RrdbNet(2, 16, 8, 2, 1), RrdbNet(1, 16, 8, 2, 2), RrdbNet(1, 16, 8, 1, 1), CompactNet(3, 16, 4)]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_known_by_its_tensors(network: Upscaler) -> None:
    network = small(network)
    again = build(network.state_dict(), "file.pth")
    picture = torch.rand(1, 3, 13, 18)
    assert again.scale == network.scale
    made = again(picture)
    assert made.shape == (1, 3, 13 * network.scale, 18 * network.scale)
    assert torch.equal(made, network(picture))


def test_files_with_earlier_names_are_the_same_network() -> None:
    network = small(RrdbNet(2, 16, 8, 2, 1))
    again = build(earlier_names(network.state_dict()), "file.pth")
    picture = torch.rand(1, 3, 9, 7)
    assert torch.equal(again(picture), network(picture))


def test_tensors_of_something_else_are_refused() -> None:
    with pytest.raises(LoadFailed, match="no upscaler of a known kind"):
        build({"model.diffusion_model.input": torch.zeros(3)}, "sd.safetensors")


@given(st.integers(1, 500), st.integers(1, 200), st.integers(0, 30))
def test_tiles_cover_everything_once(size: int, tile: int, reach: int) -> None:
    found = list(spans(size, tile, reach))
    assert [n for _, _, begin, end in found for n in range(begin, end)] == list(range(size))
    for read_begin, read_end, begin, end in found:
        assert end - begin <= tile
        assert read_begin == max(0, begin - reach)
        assert read_end == min(size, end + reach)


def test_tiles_are_not_to_be_seen() -> None:
    network = small(CompactNet(3, 8, 2))
    picture = torch.rand(1, 3, 70, 90)
    told: list[tuple[int, int]] = []
    made = upscale(network, picture, tile=32, on_tile=lambda *n: told.append(n))
    assert torch.allclose(made, network(picture), atol=1e-5)
    assert told == [(n, 9) for n in range(1, 10)]


def photo(width: int = 96, height: int = 64) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (7 + n)) * np.cos(y / (9 - n)) for n in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    (tmp_path / "models").mkdir()
    return ModelStore(Roots(tmp_path / "models", tmp_path / "hub", tmp_path / "cache"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_in_the_models_folder_enlarges_a_picture(store: ModelStore, suffix: str) -> None:
    network = small(RrdbNet(1, 16, 8, 2, 1))
    path = store.roots.models / f"esrgan.{suffix}"
    if suffix == "pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    heard = Heard()
    job = job_for(store, "upscale", path.name, {"seed": 3}, {"image": png(photo())}, listener=heard)
    result = Upscale().run(job, ModelCache("cpu"))
    (image,) = result.body["images"]
    assert image == {"blob": "image-0.png", "seed": 3, "nsfw": False}
    picture = torch.from_numpy(photo()).permute(2, 0, 1)[None] / 255
    expected = network(picture)[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).numpy()
    found = np.asarray(Image.open(io.BytesIO(result.blobs["image-0.png"])))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert result.body["weights"] == "real"
    assert heard.told[-1].note == "tiles"


def test_upscaling_is_cancelled_between_two_tiles(store: ModelStore) -> None:
    torch.save(small(CompactNet(1, 8, 2)).state_dict(), store.roots.models / "net.pth")
    job = job_for(store, "upscale", "net.pth", {}, {"image": png(photo(600, 300))})

    class Leaves(Heard):
        def progress(self, progress: Any) -> None:
            super().progress(progress)
            if progress.phase == "running":
                job.cancel()

    job._listener = leaving = Leaves()
    with pytest.raises(Cancelled):
        Upscale().run(job, ModelCache("cpu"))
    assert sum(p.phase == "running" for p in leaving.told) == 1


@needs("anime4k")
def test_the_demo_network_makes_a_picture_twice_as_large_and_closer_than_plain_enlarging(
    request: pytest.FixtureRequest,
) -> None:
    original = photo(192, 128)
    halved = np.asarray(Image.fromarray(original).resize((96, 64), Image.Resampling.BOX))
    job = job_for(store_of(request.config), "upscale", "demo:anime4k", {}, {"image": png(halved)})
    result = Upscale().run(job, ModelCache("cpu"))
    larger = np.asarray(Image.open(io.BytesIO(result.blobs["image-0.png"]))).astype(int)
    plain = np.asarray(Image.fromarray(halved).resize((192, 128), Image.Resampling.NEAREST)).astype(int)
    assert larger.shape == original.shape
    assert np.abs(larger - original).mean() < np.abs(plain - original).mean()
    assert (result.body["weights"], result.body["scale"]) == ("real", 2)


def test_a_picture_that_would_be_too_large_is_refused_with_the_limit(store: ModelStore) -> None:
    torch.save(small(CompactNet(1, 8, 4)).state_dict(), store.roots.models / "net.pth")
    job = job_for(store, "upscale", "net.pth", {}, {"image": png(np.zeros((2100, 2000, 3), np.uint8))})
    with pytest.raises(TooLarge, match=str(MAX_PIXELS)) as caught:
        Upscale().run(job, ModelCache("cpu"))
    assert caught.value.field == "image"


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_picture_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="image is not a picture"):
        read_picture(data, "image")


def test_a_picture_is_turned_flattened_and_bounded() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20), "red").save(file, "JPEG", exif=exif)
    assert read_picture(file.getvalue(), "image").shape == (40, 20, 3)
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    assert read_picture(clear.getvalue(), "image").min() == 255
    for side, told in ((20_000, "limit"), (6000, "6000 x 6000")):
        bomb = io.BytesIO()
        Image.new("1", (side, side)).save(bomb, "PNG")
        with pytest.raises(TooLarge, match=told):
            read_picture(bomb.getvalue(), "image")


def test_a_language_model_is_no_upscaler(store: ModelStore) -> None:
    with pytest.raises(InvalidInput, match="no upscaler"):
        Upscale().run(
            job_for(store, "upscale", "demo:tiny-llama", {}, {"image": png(photo())}), ModelCache("cpu")
        )
