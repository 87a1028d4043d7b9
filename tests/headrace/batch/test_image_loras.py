"""LoRAs of one request: branches on modules of its own, nothing left on those that all share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models_here import job_for, store_of
from pictures_here import Asking, with_own_models

from headrace.batch.pipelines import diffusion
from headrace.batch.pipelines.loras import twin
from headrace.models.tiny import ensure_built
from stream.errors import InvalidInput

SD, SDXL = "demo:tiny-sd", "demo:tiny-sdxl"


def make_lora(asking: Asking, model: str, folder: Path, seed: int) -> None:
    """A LoRA of rank two for the unet and the text encoder, as diffusers saves them."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    with diffusion.acquire(job_for(asking.store, "text-to-image", model, {}), asking.models) as lease:
        layers: dict[str, Any] = {}
        torch.manual_seed(seed)
        for part, names in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
            module: Any = twin(lease.model.parts[part])
            module.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        StableDiffusionPipeline.save_lora_weights(folder, **layers)


@pytest.fixture(scope="module")
def asking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asking:
    store = store_of(request.config)
    for model in (SD, SDXL):
        ensure_built(store.find(model), store)
    asking = Asking(with_own_models(store, tmp_path_factory.mktemp("loras")))
    models = asking.store.roots.models
    make_lora(asking, SD, models / "someone" / "one", 1)
    make_lora(asking, SD, models / "someone" / "other", 2)
    make_lora(asking, SDXL, models / "someone" / "large", 3)
    (models / "someone" / "two-files").mkdir()
    for name in ("a", "b"):
        source = models / "someone" / "one" / "pytorch_lora_weights.safetensors"
        (models / "someone" / "two-files" / f"{name}.safetensors").write_bytes(source.read_bytes())
    return asking


def test_a_lora_changes_the_picture_by_its_strength_and_nothing_for_the_next_request(asking: Asking) -> None:
    plain = asking.text()
    made = {strength: asking.text(loras={"someone/one": strength}).blobs for strength in (0, 0.5, 1)}
    assert made[0] == plain.blobs
    assert made[0.5] not in (plain.blobs, made[1])
    assert made[1] != plain.blobs
    assert asking.text(loras={"someone/one": 1}).blobs == made[1]
    assert asking.text().blobs == plain.blobs
    assert asking.image(loras={"someone/one": 1}).blobs != asking.image().blobs


def test_several_loras_work_together_and_a_file_can_be_named(asking: Asking) -> None:
    both = asking.text(loras={"someone/one": 1, "someone/other": 0.7})
    assert both.blobs != asking.text(loras={"someone/one": 1}).blobs
    assert both.blobs != asking.text(loras={"someone/other": 0.7}).blobs
    named = asking.text(loras={"someone/two-files/b.safetensors": 1})
    assert named.blobs == asking.text(loras={"someone/one": 1}).blobs


def test_the_shared_modules_stay_without_branches_and_a_copy_takes_no_memory(asking: Asking) -> None:
    asking.text(loras={"someone/one": 1})
    with diffusion.acquire(job_for(asking.store, "text-to-image", SD, {}), asking.models) as lease:
        unet = lease.model.parts["unet"]
        assert not [name for name, _ in unet.named_modules() if "lora" in name]
        assert not hasattr(unet, "peft_config")
        other = twin(unet)
        assert other is not unet
        assert [t.data_ptr() for t in other.parameters()] == [t.data_ptr() for t in unet.parameters()]
    kinds = {entry.key.kind for entry in asking.models.entries()}
    assert kinds == {"diffusers", "lora"}
    assert all(entry.leases == 0 for entry in asking.models.entries())


@pytest.mark.parametrize(
    ("loras", "text"),
    [
        ({"someone/none": 1}, "LoRa repository 'someone/none' not found."),
        ({"../secret": 1}, "loras: "),
        ({"someone/large": 1}, "LoRa incompatible with base model: 'someone/large'."),
        ({"someone/two-files": 1}, "Unable to load LoRas for adapter 'someone/two-files'."),
        ({"someone/one": -1}, "All strengths must be numbers greater than or equal to 0.0."),
        ({str(number): 1 for number in range(5)}, "Too many LoRas provided. Maximum is 4."),
    ],
)
def test_what_cannot_be_used_is_told_in_the_words_that_clients_know(
    asking: Asking, loras: dict[str, float], text: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        asking.text(loras=loras)
    assert caught.value.message.startswith(text)
    assert caught.value.field == "loras"
    assert json.dumps(caught.value.as_dict())
    assert all(entry.leases == 0 for entry in asking.models.entries())
