"""Diffusion workflows over the built-in nodes: shared weights, LoRAs, live changes, missing files."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path
from typing import Any

import ldm_checkpoint as ldm
import pytest
import torch

from headrace.models.live_cache import cache_of
from headrace.models.roots import Roots
from headrace.nodes import builtin
from headrace.nodes.handles import Clip, Model
from stream.errors import InvalidWorkflow
from stream.frames import VideoFrame
from workflows.check import examine, prepare
from workflows.definitions import Definitions
from workflows.processor import WorkflowProcessor

NOT_BUILT = (
    "euler_cfg_pp", "euler_ancestral_cfg_pp", "heunpp2", "dpm_fast", "dpm_adaptive",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde_gpu", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde_gpu", "ipndm_v", "deis", "res_multistep",
    "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp",
    "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver",
    "sa_solver_pece", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""ComfyUI 0.3.64 has these too."""


@pytest.fixture(scope="module")
def definitions(folders: Path) -> Definitions:
    return builtin.registry().definitions


@pytest.fixture(scope="module", autouse=True)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A models folder of our own; demo models are built where the other tests have theirs."""
    models = tmp_path_factory.mktemp("models")
    assert request.config.cache is not None
    # Two threads of one operation wait for each other where another process has one of the cores.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(Path(request.config.cache.mkdir("headrace-models")) / "cache"))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(models))
        yield models


def graph(**sampler: Any) -> dict[str, Any]:
    inputs = {
        "seed": 3,
        "steps": 2,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 0.5,
    }
    links = {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    return {
        "1": {"class_type": "LoadTensor", "inputs": {}},
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "demo:tiny-sd"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (cat:1.3)", "clip": ["2", 1]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["2", 1]}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 2]}},
        "6": {"class_type": "KSampler", "inputs": {**links, **inputs, **sampler}},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["2", 2]}},
        "8": {"class_type": "SaveTensor", "inputs": {"images": ["7", 0]}},
    }


async def loaded(data: dict[str, Any]) -> WorkflowProcessor:
    processor = WorkflowProcessor(data, builtin.registry())
    await processor.load_model()
    return processor


async def picture(processor: WorkflowProcessor) -> torch.Tensor:
    tensor = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(1))
    made = await processor.process_video_async(VideoFrame(tensor, 0, Fraction(1, 30)))
    assert isinstance(made, VideoFrame)
    return made.tensor


def of_demo() -> list[Any]:
    return [entry for entry in cache_of("cpu").entries() if entry.key.ref == "demo:tiny-sd"]


async def test_two_graphs_on_one_checkpoint_have_its_weights_once_and_give_them_back() -> None:
    one, other = await loaded(graph()), await loaded(graph(seed=4))
    made = await picture(one)
    assert made.shape == (1, 48, 64, 3)
    assert torch.equal(made, await picture(one))
    assert not torch.equal(made, await picture(other))
    (entry,) = of_demo()
    assert entry.leases == 2
    assert entry.weights == "random"
    del one
    gc.collect()
    assert of_demo()[0].leases == 1
    del other
    gc.collect()
    assert of_demo()[0].leases == 0


async def test_a_text_changes_what_is_made_without_another_load() -> None:
    processor = await loaded(graph())
    before = await picture(processor)
    (entry,) = of_demo()
    await processor.update_params({"3.text": "a (dog:1.4)"})
    assert not torch.equal(before, await picture(processor))
    assert of_demo()[0].load_seconds == entry.load_seconds
    await processor.update_params({"3.text": "a (cat:1.3)"})
    assert torch.equal(before, await picture(processor))


async def test_an_advanced_sampler_in_two_parts_is_one_in_one() -> None:
    data = graph(denoise=1.0)
    common = {**data["6"]["inputs"], "steps": 4, "sampler_name": "euler"}
    common = {k: v for k, v in common.items() if k not in ("seed", "denoise")}
    whole = await loaded(graph(denoise=1.0, steps=4))
    first = {"noise_seed": 3, "add_noise": "enable", "start_at_step": 0, "end_at_step": 2,
             "return_with_leftover_noise": "enable"}  # fmt: skip
    second = {"noise_seed": 3, "add_noise": "disable", "start_at_step": 2, "end_at_step": 99,
              "return_with_leftover_noise": "disable"}  # fmt: skip
    data["6"] = {"class_type": "KSamplerAdvanced", "inputs": {**common, **first}}
    data["9"] = {"class_type": "KSamplerAdvanced", "inputs": {**common, **second, "latent_image": ["6", 0]}}
    data["7"]["inputs"]["samples"] = ["9", 0]
    torch.testing.assert_close(await picture(await loaded(data)), await picture(whole), atol=2e-5, rtol=1e-4)


def test_a_file_that_is_missing_is_told_with_its_folder(folders: Path) -> None:
    data = graph()
    data["2"]["inputs"]["ckpt_name"] = "sd15.safetensors"
    with pytest.raises(InvalidWorkflow) as caught:
        prepare(data, builtin.registry().definitions)
    (problem,) = caught.value.details
    assert problem["node_id"] == "2"
    assert str(folders / "checkpoints") in problem["message"]


@pytest.mark.parametrize("name", NOT_BUILT)
def test_samplers_that_are_not_built_are_refused_by_name(name: str, definitions: Definitions) -> None:
    """`KSampler` and `KSamplerAdvanced`, by the check alone."""
    data = graph(sampler_name=name)
    plain = data["6"]["inputs"]
    rest = {"add_noise": "enable", "noise_seed": 1, "start_at_step": 0, "end_at_step": 9}
    advanced = {**plain, **rest, "return_with_leftover_noise": "disable"}
    data["9"] = {"class_type": "KSamplerAdvanced", "inputs": {**advanced, "latent_image": ["6", 0]}}
    data["7"]["inputs"]["samples"] = ["9", 0]
    _, problems = examine(data, definitions)
    assert {(one.node_id, one.input, one.code) for one in problems} == {
        (node_id, "sampler_name", "not_a_choice") for node_id in ("6", "9")
    }
    assert all(f"got '{name}'" in one.message and "'euler'" in one.message for one in problems)


def test_files_are_listed_anew_when_asked(folders: Path) -> None:
    registry = builtin.registry()

    def offered() -> tuple[Any, ...]:
        return registry.definitions["LoraLoader"].inputs["lora_name"].choices or ()

    assert "new.safetensors" not in offered()
    ldm.write(folders / "loras/new.safetensors", {"a": torch.zeros(1)})
    builtin.refresh(registry)
    assert "new.safetensors" in offered()


# -- LoRAs ---------------------------------------------------------------------------------------------


def lora_for(module: torch.nn.Module, name: str, key: str) -> dict[str, torch.Tensor]:
    weight = module.get_parameter(name)
    generator = torch.Generator().manual_seed(1)
    return {
        f"{key}.lora_up.weight": torch.randn(weight.shape[0], 2, generator=generator) * 0.3,
        f"{key}.lora_down.weight": torch.randn(2, weight[0].numel(), generator=generator) * 0.3,
        f"{key}.alpha": torch.tensor(1.0),
    }


def test_a_lora_is_a_private_copy_of_what_it_changes(folders: Path) -> None:
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    registry = builtin.registry()
    model, clip, _ = registry.node_class("CheckpointLoaderSimple")().load_checkpoint("demo:tiny-sd")
    tensors = lora_for(model.unet, name, "lora_unet_" + name.removesuffix(".weight").replace(".", "_"))
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    tensors |= lora_for(clip.encoders[0].inner, layer, "lora_te_text_model_encoder_layers_0_self_attn_q_proj")
    ldm.write(folders / "loras/one.safetensors", tensors)
    before = model.unet.get_parameter(name).clone()
    loader = registry.node_class("LoraLoader")()
    changed, changed_clip = loader.load_lora(model, clip, "one.safetensors", 0.5, 1.0)
    up, down = (tensors[f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}.lora_{end}.weight"]
                for end in ("up", "down"))  # fmt: skip
    expected = before + (up @ down) * 0.5 * 0.5
    torch.testing.assert_close(changed.unet.get_parameter(name), expected)
    assert torch.equal(model.unet.get_parameter(name), before)
    other = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    assert changed.unet.get_parameter(other).data_ptr() == model.unet.get_parameter(other).data_ptr()
    assert changed_clip.encoders[0].module is not clip.encoders[0].module
    again, _ = loader.load_lora(model, clip, "one.safetensors", 0.5, 1.0)
    assert again.unet is changed.unet
    assert loader.load_lora(model, clip, "one.safetensors", 0.0, 0.0) == (model, clip)


def test_loras_with_the_names_of_the_original_network_are_read(folders: Path) -> None:
    from headrace.models.loras import changes_for

    unet = ldm.small_unet()
    table = list(ldm.unet_names(2, 1, (True, False), ""))
    wanted = [n for n, v in unet.named_parameters() if n.endswith(".weight") and v.ndim > 1]
    for name in wanted:
        if name.startswith(("conv_", "time_embedding")) or "upsamplers" in name:
            continue
        old = next(o + name.removeprefix(n) for n, o in table if name.startswith(n))
        key = "lora_unet_" + old.removesuffix(".weight").replace(".", "_")
        assert list(changes_for("unet", unet, lora_for(unet, name, key))) == [name]


def test_nodes_say_what_a_file_lacks(folders: Path) -> None:
    roots = Roots.from_environment()
    assert roots.models == folders
    ldm.write(folders / "vae/only.safetensors", ldm.vae_tensors(ldm.small_vae(), ""))
    registry = builtin.registry()
    (vae,) = registry.node_class("VAELoader")().load_vae("only.safetensors")
    assert vae.ratio == 8
    from headrace.nodes.access import Models

    held = Models(roots).parts("vae", "only.safetensors")
    with pytest.raises(ValueError, match="no network"):
        Model.of(held)
    with pytest.raises(ValueError, match="no text encoder"):
        Clip.of((held,), Models(roots).files)
