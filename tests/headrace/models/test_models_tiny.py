"""The tiny models of random weights: the same everywhere, loaded by the real path, shared by pipelines."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.models import loading, weights
from headrace.models.demos import DEMOS
from headrace.models.purpose import pipeline_of
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from headrace.models.tiny import ensure_built, random_weights
from stream.errors import InvalidInput

# Imported where they are used: the import takes seconds, and every process of a run collects every module.
pytestmark = pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")

TINY = [name for name, demo in DEMOS.items() if demo.recipe]
ARCHITECTURES = {"tiny-blip", "tiny-sam2", "tiny-whisper", "tiny-vits", "tiny-llama"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    top = tmp_path_factory.mktemp("tiny")
    return ModelStore(Roots(top / "models", top / "hub", top / "cache"))


@pytest.fixture(scope="module")
def parts(store: ModelStore) -> dict[str, Any]:
    found = ensure_built(store.find("demo:tiny-sd"), store)
    parts: dict[str, Any] = loading.load_diffusers(found, cache=store.roots.cache).model
    return parts


def picture(kind: type, parts: dict[str, Any], **more: Any) -> torch.Tensor:
    pipeline: Any = loading.view(kind, parts, **more)
    with torch.inference_mode():
        answer = pipeline(
            "a cat",
            height=64,
            width=64,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
    return answer.images


@pytest.mark.parametrize("name", TINY)
def test_every_tiny_model_loads_by_the_real_path_with_mapped_weights(store: ModelStore, name: str) -> None:
    unbuilt = store.find(f"demo:{name}")
    assert unbuilt.bytes > 0
    found = ensure_built(unbuilt, store)
    assert found.built
    assert found.weights == "random"
    assert pipeline_of(found)
    if name in ARCHITECTURES:
        import transformers

        config = transformers.AutoConfig.from_pretrained(found.path)
        kind = getattr(transformers, config.architectures[0])
        loaded = loading.load_transformers(found, kind, cache=store.roots.cache)
    else:
        loaded = loading.load_diffusers(found, cache=store.roots.cache)
    mapped, own = weights.shared_bytes(loaded.model)
    assert own <= 4096 < mapped
    assert abs(mapped - loading.expected_bytes(found, torch.float32)) <= 4096
    assert loaded.weights == "random"


def test_a_recipe_gives_the_same_bytes_again(store: ModelStore, tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = sorted(folder.rglob("*.safetensors"))
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
        }

    torch.manual_seed(123)
    first = digests(random_weights("tiny-sd", store.roots.cache))
    torch.manual_seed(456)
    assert digests(random_weights("tiny-sd", tmp_path)) == first
    assert len(first) == 3


def test_requests_with_their_own_schedulers_do_not_change_each_other(parts: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

    def euler() -> Any:
        return loading.fresh_scheduler(parts["scheduler"], EulerDiscreteScheduler)

    def ddim() -> Any:
        return loading.fresh_scheduler(parts["scheduler"], DDIMScheduler)

    alone = picture(StableDiffusionPipeline, parts, scheduler=euler())
    first: Any = loading.view(StableDiffusionPipeline, parts, scheduler=euler())
    other = picture(StableDiffusionPipeline, parts, scheduler=ddim())
    again = picture(StableDiffusionPipeline, parts, scheduler=first.scheduler)
    assert torch.equal(alone, again)
    assert not torch.equal(alone, other)
    assert type(parts["scheduler"]).__name__ == "PNDMScheduler"
    plain: Any = loading.view(StableDiffusionPipeline, parts)
    assert plain.scheduler is not parts["scheduler"]
    assert plain.unet is parts["unet"]


def test_pipelines_of_one_checkpoint_share_its_parts(parts: dict[str, Any]) -> None:
    from diffusers import FluxPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    other: Any = loading.view(StableDiffusionImg2ImgPipeline, parts)
    assert other.unet is parts["unet"]
    with pytest.raises(InvalidInput, match=r"FluxPipeline needs .*transformer"):
        loading.view(FluxPipeline, parts)
    assert loading.view(StableDiffusionInpaintPipeline, parts)


def test_an_autoencoder_that_overflows_stays_wide_and_is_never_cast(store: ModelStore) -> None:
    """SDXL's: in float16 pipelines turn it to float32 and back in place, which others would see."""
    found = ensure_built(store.find("demo:tiny-sdxl"), store)
    parts = loading.load_diffusers(found, cache=store.roots.cache, dtype=torch.float16).model
    assert parts["unet"].dtype == torch.float16
    assert parts["vae"].dtype == torch.float32
    assert parts["vae"].config.force_upcast is False
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float16)
    with torch.inference_mode():
        image = parts["vae"].decode(latents, return_dict=False)[0]
        assert parts["vae"].encode(image.half()).latent_dist.mean.shape == latents.shape
    assert torch.isfinite(image).all()


def test_code_of_a_repository_is_not_run(store: ModelStore, tmp_path: Path) -> None:
    from headrace.models.errors import LoadFailed

    with pytest.raises(LoadFailed, match="code of repositories is not run"):
        loading._class("unet_of_my_own", "MyUNet")
    with pytest.raises(LoadFailed, match="has no"):
        loading._class("diffusers", "ThereIsNoSuchPipeline")
