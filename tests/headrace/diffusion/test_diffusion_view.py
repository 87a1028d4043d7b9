"""A view says what the network says, leaves it alone, and lets adapters in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from headrace.diffusion.asked import Adapters
from headrace.diffusion.attention import IMAGE_ROWS, IMAGE_SCALES, Given
from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.stream import Stream
from headrace.diffusion.view import NetworkView
from stream.errors import InvalidInput
from tests.headrace.diffusion.test_diffusion_batch import INDICES, pictures, play, relative, settings
from tests.headrace.diffusion.test_diffusion_controls import net_for
from tests.headrace.diffusion.tiny_networks import networks

SIZE = (72, 80)
LAYERS = (
    "conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", "conv_out",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def sd(folder: Path) -> Networks:
    return networks("sd", folder)


class Asked:
    """Three rows of different times and prompts for a network, as it is asked itself and as a view is."""

    def __init__(self, unet: Any) -> None:
        random = torch.Generator().manual_seed(1)
        self.sample = torch.randn((3, 4, 9, 10), generator=random)
        self.times = torch.tensor([10, 500, 999])
        self.text = torch.randn((3, 7, unet.config.cross_attention_dim), generator=random)
        self.pooled = torch.randn((3, 32), generator=random)
        self.xl = unet.config.addition_embed_type == "text_time"

    def of(self, network: Any, **more: Any) -> Any:
        if self.xl:
            sides = torch.tensor([[*SIZE, 0, 0, *SIZE]]).expand(3, -1)
            more["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": sides}
        return network(self.sample, self.times, encoder_hidden_states=self.text, return_dict=False, **more)

    def rows(self, view: NetworkView, given: Given | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        given = given or {}
        pooled = self.pooled if self.xl else None
        return view.time_rows(self.times, pooled, SIZE, given), view.text_rows(self.text, given)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_view_equals_its_network_and_leaves_it_alone(kind: str, fast: bool, folder: Path) -> None:
    unet = networks(kind, folder).unet
    asked = Asked(unet)
    expected = asked.of(unet)[0]
    before = {name: (value.data_ptr(), value.stride()) for name, value in unet.named_parameters()}
    view = NetworkView(unet, fused=fast, channels_last=fast)
    assert relative(view(asked.sample, *asked.rows(view)), expected) < 1e-5
    assert {name: (value.data_ptr(), value.stride()) for name, value in unet.named_parameters()} == before
    assert torch.equal(asked.of(unet)[0], expected)
    if not fast:
        own = {value.data_ptr() for value in view.parameters()}
        assert own <= {pointer for pointer, _ in before.values()}


def test_a_view_on_a_control_net_equals_it(sd: Networks) -> None:
    net = net_for(sd.unet, "edges")
    asked, view = Asked(sd.unet), NetworkView(net)
    picture = torch.rand(3, 3, *SIZE)
    down, middle = asked.of(net, controlnet_cond=picture)
    found, found_middle = view.control(asked.sample, *asked.rows(view), picture)
    for one, other in zip([*down, middle], [*found, found_middle], strict=True):
        assert relative(other, one) < 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_branch_on_a_layer_acts_as_other_weights_of_it_do(sd: Networks, name: str, fused: bool) -> None:
    """A branch that adds, by each row's own scale, what the layer itself gives without its bias."""
    view = NetworkView(sd.unet, fused=fused).twin()
    layer = sd.unet.get_submodule(name)

    def branch(x: torch.Tensor, given: Given) -> torch.Tensor:
        found = layer(x) - layer(torch.zeros_like(x))
        return found * given["scale"].view(-1, *[1] * (found.ndim - 1))

    view.attach(name, branch)
    asked = Asked(sd.unet)
    plain, kept = asked.of(sd.unet)[0], layer.weight.data.clone()
    layer.weight.data *= 1.5
    changed = asked.of(sd.unet)[0]
    layer.weight.data.copy_(kept)
    given = {"scale": torch.tensor([0.0, 0.5, 0.0])}
    found = view(asked.sample, *asked.rows(view, given), given=given)
    assert relative(found[1], changed[1]) < 1e-4 < relative(changed[1], plain[1])
    assert relative(found[[0, 2]], plain[[0, 2]]) < 1e-5
    with pytest.raises(KeyError):
        view.attach(f"{name}.nothing", branch)


def test_image_tokens_are_attended_to_beside_the_text(sd: Networks) -> None:
    """As many more tokens of text and a scale of one: twice the attention where both are the same."""
    view = NetworkView(sd.unet)
    asked = Asked(sd.unet)
    time, text = asked.rows(view)
    plain = view(asked.sample, time, text)
    layers = len(view.cross)
    scales = torch.tensor([[0.0] * layers, [0.0] * (layers - 1) + [1.0], [1.0] * layers])
    found = view(asked.sample, time, text, given={IMAGE_ROWS: text[:, :4], IMAGE_SCALES: scales})
    differences = [relative(found[row], plain[row]) for row in range(3)]
    assert differences[0] < 1e-5 < 1e-3 < min(differences[1:])
    values_twice = torch.cat([torch.tensor([1.0, 2.0]).repeat_interleave(one.width) for one in view.cross])
    double = view(asked.sample, time, text * values_twice)
    same = view(asked.sample, time, text, given={IMAGE_ROWS: text, IMAGE_SCALES: torch.ones(3, layers)})
    assert relative(same, double) < 1e-4


def test_what_self_attention_attends_to_may_be_replaced(sd: Networks) -> None:
    view = NetworkView(sd.unet)
    asked = Asked(sd.unet)
    plain = view(asked.sample, *asked.rows(view))
    seen: list[torch.Size] = []

    def recall(k: torch.Tensor, v: torch.Tensor, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(k.shape)
        return torch.cat([k, k], dim=1), torch.cat([v, given["more"] * v], dim=1)

    for attention in view.self_attentions:
        attention.recall = recall
    ones = view(asked.sample, *asked.rows(view), given={"more": torch.ones(3, 1, 1)})
    assert relative(ones, plain) < 1e-4
    assert relative(view(asked.sample, *asked.rows(view), given={"more": torch.zeros(3, 1, 1)}), plain) > 1e-3
    assert len(seen) == 2 * len(view.self_attentions)


def test_streams_with_other_adapters_have_calls_of_their_own(sd: Networks) -> None:
    view = sd.view.twin()
    view.attach("conv_out", lambda x, given: x[:, :4] * given["scale"].view(-1, 1, 1, 1))

    def made(scale: float | None) -> Stream:
        adapters = None if scale is None else Adapters(view, {"scale": torch.tensor([scale])})
        return Stream(settings(sd, INDICES[2], adapters=adapters))

    frames = pictures(3)
    plain, none, full = (play(sd, made(scale), frames)[-1] for scale in (None, 0.0, 1.0))
    assert torch.equal(plain, none)
    assert relative(full, plain) > 1e-3
    assert made(0.0).nets == made(1.0).nets != made(None).nets
    together = [made(0.0), made(1.0)]
    for frame in frames:
        out = run(sd, together, [frame, frame])
    assert relative(out[0], none) < 1e-4
    assert relative(out[1], full) < 1e-4


def test_other_kinds_of_networks_are_refused_by_name(sd: Networks) -> None:
    class Strange(torch.nn.Module):
        config = type("Config", (), {**dict(sd.unet.config), "class_embed_type": "timestep"})()

    with pytest.raises(InvalidInput, match="class_embed_type 'timestep'"):
        NetworkView(Strange())
