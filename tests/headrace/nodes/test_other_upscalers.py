"""Upscalers that are not of ESRGAN's kind: refused by name, or read by spandrel where there is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ldm_checkpoint as ldm
import pytest
import torch

from headrace.batch.contract import Job
from headrace.batch.pipelines.pictures import png, read_picture
from headrace.batch.pipelines.upscale import Upscale
from headrace.models.cache import ModelCache
from headrace.models.errors import LoadFailed
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from headrace.nodes import loaders
from headrace.nodes.files import ModelFiles
from headrace.nodes.upscaling import ImageUpscaleWithModel, UpscaleModel

SWIN = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"
Load = Callable[[dict[str, torch.Tensor]], UpscaleModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    files = ModelFiles(Roots(tmp_path, tmp_path / "hub", tmp_path / "cache"))

    def written(tensors: dict[str, torch.Tensor]) -> UpscaleModel:
        ldm.write(tmp_path / "upscale_models/other.safetensors", tensors)
        model: UpscaleModel = loaders.bound_to(files)["UpscaleModelLoader"]().load_model("other.safetensors")[
            0
        ]
        return model

    return written


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([SWIN, "conv_first.weight"], "of the architecture SwinIR"),
        (["conv_1.sk.weight", "block_1.c1_r.sk.weight"], "of the architecture SPAN"),
        (["something.weight"], "of an architecture that its tensors do not tell"),
    ],
)
def test_without_spandrel_they_are_refused_by_name(
    names: list[str], words: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(LoadFailed, match=words) as caught:
        load(dict.fromkeys(names, torch.zeros(1)))
    assert "pip install spandrel" in caught.value.message


def test_a_broken_file_of_our_own_kind_is_not_laid_at_another_door(load: Load) -> None:
    broken = dict.fromkeys(("conv_first.weight", "body.0.rdb1.conv1.weight"), torch.zeros(4, 3, 3, 3))
    with pytest.raises(LoadFailed, match="no upscaler of a known kind") as caught:
        load(broken)
    assert "spandrel" not in caught.value.message


class Descriptor:
    """What spandrel gives: callable on a picture, the network within it."""

    def __init__(self, tensors: dict[str, torch.Tensor], channels: int = 3, tiling: str = "one") -> None:
        self.model = torch.nn.Conv2d(3, 3, 1, bias=False)
        self.model.load_state_dict({"weight": tensors["weight"]})
        self.scale, self.input_channels, self.output_channels = 2, channels, channels
        self.architecture = SimpleNamespace(name="Thing")
        self.tiling = tiling
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        return self.model(torch.nn.functional.interpolate(x, scale_factor=2.0)).clamp(0, 1)


def stand_in(give: Callable[[dict[str, torch.Tensor]], Any]) -> ModuleType:
    module: Any = ModuleType("spandrel")
    module.UnsupportedModelError = type("UnsupportedModelError", (Exception,), {})
    module.ImageModelDescriptor = Descriptor
    module.ModelTiling = SimpleNamespace(SUPPORTED="one")
    module.canonicalize_state_dict = lambda state: {n.removeprefix("module."): v for n, v in state.items()}
    module.ModelLoader = lambda: SimpleNamespace(load_from_state_dict=give)
    found: ModuleType = module
    return found


WEIGHT = {"module.weight": torch.full((3, 3, 1, 1), 0.2)}


@pytest.mark.parametrize("tiling", ["one", "none"])
def test_what_spandrel_reads_enlarges(tiling: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Descriptor] = []

    def give(state: dict[str, torch.Tensor]) -> Descriptor:
        given.append(Descriptor(state, tiling=tiling))
        return given[0]

    monkeypatch.setitem(sys.modules, "spandrel", stand_in(give))
    monkeypatch.setattr("headrace.nodes.upscaling._TILE", 16)
    model = load(WEIGHT)
    assert [tuple(p.shape) for p in model.network.parameters()] == [(3, 3, 1, 1)]  # so that it is counted
    picture = torch.rand(1, 20, 30, 3)
    (made,) = ImageUpscaleWithModel().upscale(model, picture)
    expected = (picture.sum(-1, keepdim=True) * 0.2).expand(-1, -1, -1, 3)
    expected = expected.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(made, expected)
    assert (given[0].seen == [(1, 3, 20, 30)]) == (tiling == "none")


def test_the_endpoint_reads_what_workflows_read_and_refuses_it_with_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ldm.write(tmp_path / "other.safetensors", WEIGHT)
    picture = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8).numpy()

    def upscaled() -> Any:
        job = Job("1", "upscale", "other.safetensors", {}, {"image": png(picture)})
        job.store = ModelStore(Roots(tmp_path, tmp_path / "hub", tmp_path / "cache"))
        return Upscale().run(job, ModelCache("cpu"))

    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(LoadFailed, match="pip install spandrel") as caught:
        upscaled()
    assert caught.value.field == "model_id"
    monkeypatch.setitem(sys.modules, "spandrel", stand_in(Descriptor))
    made = read_picture(upscaled().blobs["image-0.png"], "image")
    expected = (picture.astype(float).sum(-1, keepdims=True) * 0.2).clip(0, 255).round()
    expected = expected.repeat(3, 2).repeat(2, 0).repeat(2, 1)
    assert abs(made - expected).max() <= 1


def test_what_spandrel_cannot_give_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(state: dict[str, torch.Tensor]) -> None:
        raise sys.modules["spandrel"].UnsupportedModelError

    def damaged(state: dict[str, torch.Tensor]) -> None:
        raise RuntimeError("size mismatch\nmore")

    cases: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
        (unknown, "does not know it either"),
        (damaged, "cannot read it: size mismatch$"),
        (lambda state: Descriptor(state, channels=1), r"\(Thing\) does not make one picture"),
    ]
    for give, words in cases:
        monkeypatch.setitem(sys.modules, "spandrel", stand_in(give))
        with pytest.raises(LoadFailed, match=words):
            load(WEIGHT)


def test_the_real_spandrel(load: Load) -> None:
    spandrel = pytest.importorskip("spandrel", exc_type=ImportError)
    from spandrel.architectures.SwinIR import SwinIR

    network = SwinIR(
        upscale=2,
        img_size=8,
        window_size=8,
        depths=[1],
        embed_dim=12,
        num_heads=[2],
        upsampler="pixelshuffledirect",
    )
    ldm.drawn(network, 1, gain=0.3)
    model = load(network.state_dict())
    picture = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(1))
    (made,) = ImageUpscaleWithModel().upscale(model, picture)
    with torch.inference_mode():
        expected = network(picture.movedim(-1, 1)).movedim(1, -1).clamp(0, 1)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    odd = ImageUpscaleWithModel().upscale(model, picture[:, :13, :19])[0]
    assert odd.shape == (2, 26, 38, 3)
    assert isinstance(model.network.inner, spandrel.architectures.SwinIR.SwinIR)
