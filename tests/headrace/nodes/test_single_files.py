"""Checkpoints in one file become the pipelines that they are."""

from __future__ import annotations

from types import SimpleNamespace

import ldm_checkpoint as ldm
import pytest
import torch

from headrace.models.errors import LoadFailed
from headrace.models.purpose import pipeline_of
from headrace.models.roots import Roots
from headrace.models.single.folder import pipeline_class, prepared
from headrace.models.store import Located, ModelStore
from stream.errors import InvalidInput


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    return SimpleNamespace(
        unet=ldm.drawn(ldm.small_unet(), 1),
        vae=ldm.drawn(ldm.small_vae(), 2),
        clip=ldm.drawn(ldm.small_clip(), 3),
    )


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    top = tmp_path_factory.mktemp("single")
    return Roots(top / "models", top / "hub", top / "cache")


@pytest.fixture(scope="module")
def whole(parts: SimpleNamespace, roots: Roots) -> Located:
    tensors = ldm.unet_tensors(parts.unet, (True, False))
    tensors |= ldm.vae_tensors(parts.vae) | ldm.clip_tensors(parts.clip, "cond_stage_model.transformer.")
    ldm.write(roots.models / "checkpoints/sd1.safetensors", tensors, torch.Tensor.half)
    return ModelStore(roots).find("checkpoints/sd1.safetensors")


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_is_the_pipeline_it_was_written_from(
    whole: Located, parts: SimpleNamespace, roots: Roots
) -> None:
    from headrace.models.loading import load_diffusers

    assert pipeline_class(whole) == "StableDiffusionPipeline"
    assert pipeline_of(whole) == "text-to-image"
    found = prepared(whole, roots.cache, "float32")
    loaded = load_diffusers(found, cache=roots.cache, dtype=torch.float32).model
    assert same(loaded["unet"], parts.unet)
    assert same(loaded["vae"], parts.vae)
    assert same(loaded["text_encoder"], parts.clip)
    assert loaded["text_encoder"].config.eos_token_id == 49407
    assert loaded["tokenizer"]("a cat").input_ids == [49406, 320, 2368, 49407]
    assert loaded["scheduler"].config.prediction_type == "epsilon"


def test_it_is_converted_once(whole: Located, roots: Roots) -> None:
    first = prepared(whole, roots.cache, "float32")
    stamp = (first.path / "unet/config.json").stat().st_ino
    assert (prepared(whole, roots.cache, "float32").path / "unet/config.json").stat().st_ino == stamp


def test_sdxl_has_two_encoders_and_sizes_beside_the_time(roots: Roots) -> None:
    unet = ldm.drawn(ldm.small_unet(width=64, xl=True), 4)
    big = ldm.small_clip(width=1280, layers=1, rows=512)
    tensors = ldm.unet_tensors(unet, (False, True))
    tensors |= ldm.vae_tensors(ldm.small_vae())
    tensors |= ldm.clip_tensors(ldm.small_clip(layers=1, rows=512), "conditioner.embedders.0.transformer.")
    open_clip = {f"conditioner.embedders.1.model.{n}": v for n, v in ldm.open_clip_tensors(big).items()}
    ldm.write(roots.models / "checkpoints/xl.safetensors", tensors | open_clip)
    found = ModelStore(roots).find("checkpoints/xl.safetensors")
    assert pipeline_class(found) == "StableDiffusionXLPipeline"
    from headrace.models.loading import load_diffusers

    loaded = load_diffusers(prepared(found, roots.cache, "float32"), cache=roots.cache).model
    assert same(loaded["unet"], unet)
    second = loaded["text_encoder_2"]
    assert type(second).__name__ == "CLIPTextModelWithProjection"
    assert torch.equal(
        second.text_projection.weight, open_clip["conditioner.embedders.1.model.text_projection"].T
    )
    ids = torch.tensor([[510, 5, 7, 511]])
    states = [m(ids, output_hidden_states=True).hidden_states[-1] for m in (second, big)]
    torch.testing.assert_close(*states)
    assert loaded["tokenizer_2"].pad_token_id == 0


def test_what_is_missing_is_named(parts: SimpleNamespace, roots: Roots) -> None:
    tensors = ldm.unet_tensors(parts.unet, (True, False), "")
    tensors.pop("middle_block.2.in_layers.2.weight")
    tensors["middle_block.2.in_layers.2.bias"] = torch.zeros(3)
    ldm.write(roots.models / "unet/broken.safetensors", tensors)
    found = ModelStore(roots).find("unet/broken.safetensors")
    with pytest.raises(LoadFailed, match=r"mid_block\.resnets\.1\.conv1"):
        prepared(found, roots.cache, "float32")


def test_a_part_alone_is_no_pipeline(parts: SimpleNamespace, roots: Roots) -> None:
    ldm.write(roots.models / "vae/v.safetensors", ldm.vae_tensors(parts.vae, ""))
    found = ModelStore(roots).find("vae/v.safetensors")
    with pytest.raises(InvalidInput, match="one file with vae"):
        pipeline_class(found)
    assert "vae/config.json" in prepared(found, roots.cache, "float32").files


def test_a_checkpoint_may_be_a_pickle_of_tensors_alone(parts: SimpleNamespace, roots: Roots) -> None:
    path = roots.models / "unet/old.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": ldm.unet_tensors(parts.unet, (True, False))}, path)
    found = prepared(ModelStore(roots).find("unet/old.ckpt"), roots.cache, "float16")
    assert "unet/config.json" in found.files


def test_an_endpoint_answers_from_a_checkpoint_of_one_file(whole: Located, roots: Roots) -> None:
    from headrace.batch.contract import Job
    from headrace.batch.pipelines.text_to_image import TextToImage
    from headrace.models.cache import ModelCache

    class Deaf:
        def progress(self, progress: object) -> None: ...

        def piece(self, piece: object) -> None: ...

    inputs = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 1}
    job = Job("1", "text-to-image", "checkpoints/sd1.safetensors", inputs, {}, device="cpu", listener=Deaf())
    job.store = ModelStore(roots)
    made = TextToImage().run(job, ModelCache())
    assert made.body["weights"] == "real"
    assert len(made.blobs) == 1
