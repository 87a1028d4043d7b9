"""ControlNets in the stream: their weight, their part of the schedule, and their preprocessors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import ControlNetModel
from hypothesis import given
from hypothesis import strategies as st

from headrace.diffusion.asked import Control, Guidance
from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.parameters import ControlParams
from headrace.diffusion.preprocessors import preprocessor_of
from headrace.diffusion.stream import Stream
from headrace.models.tiny import fill
from stream.errors import InvalidInput
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_processor import frame, loaded, result
from tests.headrace.diffusion.tiny_networks import networks


@pytest.fixture(scope="module", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return networks("sd", tmp_path_factory.mktemp("tiny"))


def net_for(unet: Any, seed: str) -> Any:
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 32))
    net = fill(net, seed)
    # Its last layers begin at zero, which is how training leaves the network alone at first.
    ends = (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out)
    for layer in ends:
        torch.nn.init.normal_(layer.weight, std=0.2, generator=torch.Generator().manual_seed(len(seed)))
    return net.eval()


@pytest.fixture(scope="module")
def nets(sd: Networks) -> tuple[Any, Any]:
    return net_for(sd.unet, "edges"), net_for(sd.unet, "colours of it")


def control(net: Any, **more: Any) -> Control:
    return Control(net, lambda picture: picture, **more)


def out(sd: Networks, *controls: Control, rows: int = 2, **more: Any) -> torch.Tensor:
    stream = Stream(settings(sd, INDICES[rows], controls=controls, **more))
    return play(sd, stream, pictures(3))[-1]


def test_a_net_of_no_weight_is_not_there(sd: Networks, nets: tuple[Any, Any]) -> None:
    plain = out(sd)
    assert torch.equal(out(sd, control(nets[0], scale=0.0)), plain)
    weak, strong = out(sd, control(nets[0], scale=0.05)), out(sd, control(nets[0]))
    assert 0 < relative(weak, plain) < relative(strong, plain)


def test_nets_add_up_in_any_order(sd: Networks, nets: tuple[Any, Any]) -> None:
    both = out(sd, control(nets[0]), control(nets[1], scale=0.5))
    assert relative(both, out(sd, control(nets[1], scale=0.5), control(nets[0]))) < 1e-4
    assert relative(both, out(sd, control(nets[0]))) > 1e-4


@pytest.mark.parametrize("mode", ["none", "full", "initialize"])
def test_a_net_acts_in_its_part_of_the_schedule(sd: Networks, nets: tuple[Any, Any], mode: Any) -> None:
    """One row at position 0.64: a part that ends before it or begins after it leaves the picture alone."""
    more = {"rows": 1, "guidance": Guidance(mode, 1.5)}
    plain = out(sd, **more)
    assert relative(out(sd, control(nets[0], end=0.5), **more), plain) < 1e-6
    assert relative(out(sd, control(nets[0], start=0.8), **more), plain) < 1e-6
    assert relative(out(sd, control(nets[0], start=0.5, end=0.8), **more), plain) > 1e-4


def test_streams_with_the_same_nets_share_a_call(sd: Networks, nets: tuple[Any, Any]) -> None:
    def made() -> list[Stream]:
        return [
            Stream(settings(sd, INDICES[2], controls=(control(nets[0]),))),
            Stream(settings(sd, INDICES[4], controls=(control(nets[0], scale=0.3),), seed=8)),
        ]

    first, second = pictures(2)
    alone = [run(sd, [stream], [picture])[0] for stream, picture in zip(made(), (first, second), strict=True)]
    streams = made()
    assert streams[0].nets == streams[1].nets
    for found, expected in zip(run(sd, streams, [first, second]), alone, strict=True):
        assert relative(found, expected) < 1e-4


async def test_nets_come_from_the_disk_and_change_while_a_stream_runs(
    sd: Networks, nets: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_MODELS_FOLDER", str(tmp_path))
    nets[0].save_pretrained(tmp_path / "edges")
    wide = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 16, 16, 32))
    wide.register_to_config(cross_attention_dim=48)
    wide.save_config(tmp_path / "wide")
    processor = await loaded(t_index_list=[30])
    plain = await result(processor, frame(0))
    change = {"controlnets": [{"model_id": "edges", "preprocessor": "canny"}]}
    await processor.prepare_params(change)
    await processor.update_params(change)
    with_net = await result(processor, frame(0))
    assert relative(with_net, plain) > 1e-4
    await processor.update_params({"controlnets": [{"model_id": "edges", "enabled": False}]})
    assert relative(await result(processor, frame(0)), plain) < 1e-6
    for wrong, message in (
        ([{"model_id": "edges", "preprocessor": "openpose"}], "preprocessor"),
        ([{"model_id": "edges", "conditioning_scale": -1}], "conditioning_scale"),
        ([{"model_id": "edges"}, {"model_id": "edges"}], "twice"),
        ([{"model_id": "nowhere"}], "nowhere"),
    ):
        with pytest.raises(InvalidInput if message != "nowhere" else Exception, match=message):
            await processor.update_params({"controlnets": wrong})
    assert relative(await result(processor, frame(0)), plain) < 1e-6
    await processor.on_stream_stop()


@given(
    st.sampled_from(["passthrough", "tile", "color", "canny", "soft_edge"]),
    st.integers(8, 90),
    st.integers(8, 90),
)
def test_every_preprocessor_keeps_size_and_range(name: Any, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * width)
    picture = torch.rand((1, height, width, 3), generator=generator)
    found = preprocessor_of(ControlParams(model_id="x", preprocessor=name))(picture)
    assert found.shape == picture.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_edges_are_where_the_picture_has_them() -> None:
    picture = torch.zeros((1, 32, 32, 3))
    picture[:, :, 16:] = 1
    for name in ("canny", "soft_edge"):
        found = preprocessor_of(ControlParams(model_id="x", preprocessor=name))(picture)
        columns = found[0, :, :, 0].mean(0)
        assert columns.argmax() in (15, 16)
        assert float(columns[:12].max()) == 0
    colour = preprocessor_of(ControlParams(model_id="x", preprocessor="color"))(picture)
    assert float(colour.std()) == 0  # smaller than a field
