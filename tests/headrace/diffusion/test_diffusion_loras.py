"""LoRAs of a stream: branches against merged weights, several at once, live weights, LCM-LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from safetensors.torch import save_file

from headrace.diffusion.adapters import MAX_KEPT, Kit
from headrace.diffusion.asked import Adapters
from headrace.diffusion.compile_piece import build
from headrace.diffusion.frame import run
from headrace.diffusion.lora_branch import LORA_SCALES
from headrace.diffusion.loras import LoraFile
from headrace.diffusion.networks import Networks
from headrace.diffusion.pieces import Piece
from headrace.diffusion.stream import Stream
from headrace.models.errors import ModelNotFound
from headrace.models.loras import changed, changes_for
from stream.errors import InvalidInput
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result
from tests.headrace.diffusion.tiny_networks import networks

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HEADRACE_MODELS_FOLDER", str(models))
        yield models
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return networks(request.param, tmp_path_factory.mktemp("tiny"))


def lora_for(unet: Any, seed: int, strength: float = 0.2) -> Tensors:
    """A change of rank 2 of every matrix and kernel, in the names of kohya's programs."""
    random = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for name, weight in unet.named_parameters():
        if not name.endswith(".weight") or weight.ndim < 2:
            continue
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        kernel = weight.shape[2:]
        ones = (1,) * len(kernel)
        inputs = weight[0].numel()
        found[f"{key}.lora_down.weight"] = (
            torch.randn((2, weight.shape[1], *kernel), generator=random) * inputs**-0.5
        )
        found[f"{key}.lora_up.weight"] = torch.randn((weight.shape[0], 2, *ones), generator=random) * strength
        found[f"{key}.alpha"] = torch.tensor(1.0)
    return found


class Held:
    """A LoRA that nothing has to be given back for."""

    def __init__(self, tensors: Tensors) -> None:
        self.model = tensors


def file(tensors: Tensors, name: str) -> LoraFile:
    held: Any = Held(tensors)
    return LoraFile(name, name, held)


def merged(net: Networks, *loras: tuple[Tensors, float]) -> Networks:
    unet = net.unet
    for tensors, scale in loras:
        unet = changed(unet, changes_for("unet", unet, tensors), scale)
    return Networks({**net.parts, "unet": unet}, net.device, net.dtype)


def painted(net: Networks, adapters: Adapters | None = None, **more: Any) -> torch.Tensor:
    return play(net, Stream(settings(net, INDICES[2], adapters=adapters, **more)), pictures(3))[-1]


def test_branches_equal_merged_weights(net: Networks) -> None:
    first, second = (lora_for(net.unet, seed) for seed in (1, 2))
    before = {name: value.clone() for name, value in net.unet.named_parameters()}
    kit = Kit(net, [file(first, "first"), file(second, "second")])
    found = painted(net, kit.adapters([0.7, -0.4]))
    assert relative(found, painted(merged(net, (first, 0.7), (second, -0.4)))) < 1e-5
    assert relative(found, painted(net)) > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in net.unet.named_parameters())


def test_streams_with_the_same_loras_share_a_view_and_a_call(net: Networks) -> None:
    tensors = lora_for(net.unet, 1)
    kits = [Kit(net, [file(tensors, "one")]) for _ in range(2)]
    assert kits[0].view is kits[1].view is not net.view
    assert kits[0].adapters([0.5]) is kits[0].adapters([0.5])
    assert Kit(net, []).adapters([]) is None
    weak, strong = [
        Stream(settings(net, INDICES[2], adapters=kit.adapters([scale]), prompt=text))
        for kit, scale, text in zip(kits, (0.1, 1.0), ("a fox", "a lake"), strict=True)
    ]
    assert weak.nets == strong.nets
    out = [picture for shown in pictures(3) for picture in run(net, [weak, strong], [shown, shown])][-2:]
    for picture, scale, text in zip(out, (0.1, 1.0), ("a fox", "a lake"), strict=True):
        assert relative(picture, painted(merged(net, (tensors, scale)), prompt=text)) < 1e-4


def test_what_was_worked_out_for_weights_that_are_over_is_given_up(net: Networks) -> None:
    kit = Kit(net, [file(lora_for(net.unet, 1), "one")])
    conditions, prompt = net.conditions_of(kit.view), net.encode_prompt("a fox")
    for number in range(20):
        conditions.prepare([prompt], [500], (64, 64), kit.adapters([number / 10]))
    assert len(conditions._kept[prompt]) <= 2 * (MAX_KEPT + 1)


def test_what_does_not_fit_is_refused_by_name(net: Networks) -> None:
    nothing = file({"lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}, "nothing")
    with pytest.raises(InvalidInput, match="nothing has nothing"):
        Kit(net, [nothing])
    wrong = {
        "lora_unet_conv_in.lora_down.weight": torch.zeros(2, 5),
        "lora_unet_conv_in.lora_up.weight": torch.zeros(16, 2),
    }
    with pytest.raises(InvalidInput, match="wrong does not fit"):
        Kit(net, [file(wrong, "wrong")])


class Asked:
    """A compiler that only notes what it is asked for."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def ask(self, piece: Piece, *_: Any) -> bool:
        self.pieces.append(piece)
        return True


def test_a_step_with_loras_is_made_again_elsewhere(tmp_path: Path) -> None:
    """From its description alone: with the weights that it is lent it is the same, so none lie elsewhere."""
    net, compiler = networks("sd", tmp_path), Asked()
    net.acceleration.use(compiler)  # type: ignore[arg-type]
    kit = Kit(net, [file(lora_for(net.unet, seed), f"{seed}") for seed in (1, 2)])
    stream = Stream(settings(net, INDICES[1], adapters=kit.adapters([0.7, -0.4])))
    assert net.compiled_step(1, stream) is None
    assert net.acceleration.state == ("compiling", "")
    (piece,) = compiler.pieces
    twin, tensors = build(Piece.load(piece.dump()))
    live, _ = net._flat[net.step_of(stream)]
    twin.load_state_dict(live.state_dict())
    expected = live(*tensors)[0]
    assert relative(twin(*tensors)[0], expected) < 1e-5
    names = [name for name, _, _ in piece.tensors]
    without = [
        given * 0 if name == LORA_SCALES else given for name, given in zip(names, tensors, strict=True)
    ]
    assert relative(live(*without)[0], expected) > 1e-2


# -- the pipeline --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(folder: Path) -> Path:
    from headrace.models import tiny_diffusion

    unet = tiny_diffusion._unet()
    (folder / "loras").mkdir()
    save_file(lora_for(unet, 1), folder / "loras" / "oil.safetensors")
    save_file(lora_for(unet, 2), folder / "loras" / "lcm.safetensors")
    (folder / "ink").mkdir()
    save_file(lora_for(unet, 3), folder / "ink" / "pytorch_lora_weights.safetensors")
    return folder


async def test_loras_of_the_pipeline_are_live(files: Path) -> None:
    """Other weights hold from the next frame on, in the same networks and the same view."""
    plain = await loaded(t_index_list=[16, 32])
    processor = await loaded(t_index_list=[16, 32], lora_dict={"loras/oil.safetensors": 0.0, "ink": 0.0})
    for number in range(3):
        assert torch.allclose(
            await result(processor, frame(number)), await result(plain, frame(number)), atol=1e-5
        )
    held = processor._held
    change = {"lora_dict": {"ink": 0.3, "loras/oil.safetensors": 1.0}}
    await processor.prepare_params(change)
    await processor.update_params(change)
    assert processor._held is held
    expected = await result(plain, frame(4))
    assert not torch.allclose(await result(processor, frame(4)), expected, atol=1e-2)
    await processor.update_params({"lora_dict": None})
    assert processor._held is not held
    await result(plain, frame(5))
    # The frames under way have seen LoRAs; a still picture forgets them.
    for _ in range(3):
        found, expected = await result(processor, frame(6)), await result(plain, frame(6))
    assert torch.allclose(found, expected, atol=1e-4)
    for one in (plain, processor):
        await one.on_stream_stop()


async def test_lcm_lora_is_that_of_the_family_or_the_one_that_is_named(files: Path) -> None:
    params = {"t_index_list": [1], "num_inference_steps": 4}
    as_style = await loaded(lora_dict={"loras/lcm.safetensors": 1.0}, **params)
    as_lcm = await loaded(use_lcm_lora=True, lcm_lora_id="loras/lcm.safetensors", **params)
    assert torch.equal(await result(as_lcm, frame()), await result(as_style, frame()))
    with pytest.raises(ModelNotFound, match="lcm-lora-sdv1-5") as caught:
        await as_lcm.prepare_params({"lcm_lora_id": None})
    assert caught.value.field == "lcm_lora_id"
    for one in (as_style, as_lcm):
        await one.on_stream_stop()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"lora_dict": {"nobody/nothing": 1.0}}, "lora_dict"),
        ({"lora_dict": {"loras/oil.safetensors": 11.0}}, "lora_dict"),
        ({"lora_dict": {f"a{number}": 1.0 for number in range(5)}}, "lora_dict"),
        ({"lora_dict": {"loras": 1.0}}, "lora_dict"),
    ],
)
async def test_what_is_wrong_with_loras_is_told_by_field(
    files: Path, given: dict[str, Any], field: str
) -> None:
    with pytest.raises((InvalidInput, ModelNotFound)) as caught:
        await loaded(**given)
    assert caught.value.field == field
