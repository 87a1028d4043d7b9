"""A pipeline's own view on a shared network: new module objects over the same, read-only weights.

In it the prompt's keys and values, and all that follows from the time, come in ready: they are worked out
once for a prompt and a step (`NetworkView.text_rows`, `time_rows`), not once a frame. A frame is a call with
R rows, each with its own; the layers know their part of both.

Where adapters hook in, all before a view's first call, and in a view of one's own (`networks.view.twin()`,
which shares all weights with the one of `Networks`; rows share a call only where they have the same view):

- ``view.attach(name, branch)``: ``branch(x, given)`` is added to what comes out of a Linear or Conv2d, whose
  ``name`` is that of diffusers without ``.weight`` (`view.layers` has all); ``x``, R x ..., goes into it.
  Weights of a branch may change in place at any time. On the keys and values of prompts and the layers of the
  time it acts beside the frames, in `text_rows` and `time_rows`, which are run for new `Adapters` alone.
- ``given``: what the streams' `Adapters.given` (`headrace.diffusion.asked`) have for the R rows of a call,
  stacked, by name. What differs from row to row (the scales of a LoRA) a branch takes from there.
- `IMAGE_ROWS` and `IMAGE_SCALES` among them (`headrace.diffusion.attention`): image tokens, to which every
  cross-attention attends beside its text; `view.cross` has width and name of each, in order.
- A branch that is to be compiled too has a ``recipe``: the name of a function, ``module:name``, and arguments
  as JSON with which it gives the same branch, with any weights. With others the network runs eagerly.
- ``view.self_attentions[n].recall(k, v, given)``: replaces keys and values of the n-th self-attention (cached
  attention).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from headrace.diffusion.attention import Branch, CrossAttention, Given, SelfAttention
from stream.errors import InvalidInput

NOTHING: Given = MappingProxyType({})


def twin(module: Any) -> Any:
    """Module objects of one's own over the tensors of ``module``."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


class Laid(dict[str, torch.Tensor]):
    """What a call is given, one object for a view and all of its layers.

    A kind of its own, since `torch.export` leaves a copy of a plain dict in each module that has one.
    """


class Branched(nn.Module):
    """A layer, and what an adapter adds to it."""

    def __init__(self, layer: nn.Module, branch: Branch, given: Given) -> None:
        super().__init__()
        self.layer, self.branch, self.given = layer, as_module(branch), given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x) + self.branch(x, self.given)
        return found


class Both(nn.Module):
    """Two branches on one layer."""

    def __init__(self, first: nn.Module, second: Branch) -> None:
        super().__init__()
        self.first, self.second = first, as_module(second)

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        found: torch.Tensor = self.first(x, given) + self.second(x, given)
        return found


class Called(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Branch) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, given: Given) -> torch.Tensor:
        return self.function(x, given)


def as_module(branch: Branch) -> nn.Module:
    return branch if isinstance(branch, nn.Module) else Called(branch)


class _Part(nn.Module):
    """In the place of a layer that was run already: its part of what all of them gave."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[:, self.start : self.stop]


@dataclass(slots=True)
class _Source:
    """What a view was made from: the network of diffusers, how, and what was attached since."""

    network: Any
    options: dict[str, bool]
    attached: list[tuple[str, Branch]] = field(default_factory=list)

    def __deepcopy__(self, memo: Any) -> _Source:
        return _Source(self.network, self.options, list(self.attached))


@dataclass(frozen=True, slots=True)
class CrossLayer:
    """A cross-attention: the name of its `Attention` in the network, and the width of its keys."""

    name: str
    width: int


class NetworkView(nn.Module):
    """A view on a UNet or a ControlNet of Stable Diffusion 1, 2 or XL.

    ``fused``: one product for queries, keys and values; ``channels_last``: the layout that tensor cores like.
    Both copy the weights that they touch. Raises `InvalidInput` for other kinds of networks.
    """

    def __init__(self, network: Any, *, fused: bool = False, channels_last: bool = False) -> None:
        super().__init__()
        _check(network)
        self.source = _Source(network, {"fused": fused, "channels_last": channels_last})
        self.given: dict[str, torch.Tensor] = Laid()
        self.network = twin(network)
        self.cross: list[CrossLayer] = []
        self.self_attentions: list[SelfAttention] = []
        # What runs beside the frames is kept out of what is traced: a dict is no place for modules.
        self._beside: dict[str, nn.Module] = {}
        self._time: list[tuple[str, nn.Module]] = []
        self._given_beside: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        self.layers = tuple(
            name for name, part in self.network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)
        )
        self._take_attention()
        self._take_time()
        if fused:
            for attention in self.self_attentions:
                attention.fuse()
        if channels_last:
            to_channels_last(self.network)

    def twin(self) -> NetworkView:
        """Another view on the same weights, with the adapters that this one has now."""
        tensors = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        for part in self._beside.values():
            tensors |= {id(tensor): tensor for tensor in (*part.parameters(), *part.buffers())}
        return copy.deepcopy(self, {**tensors, id(self._lock): threading.Lock()})

    # -- adapters --------------------------------------------------------------------------------------

    def attach(self, name: str, branch: Branch) -> None:
        """Add ``branch`` to one of `layers`; a second one is added too. Raises `KeyError` for other names."""
        if name not in self.layers:
            raise KeyError(name)
        self.source.attached.append((name, branch))
        if name in self._beside:
            self._beside[name] = Branched(self._beside[name], branch, self._given_beside)
            return
        home, _, leaf = name.rpartition(".")
        first, _, rest = home.partition(".")
        if first in self._beside:
            parent = self._beside[first].get_submodule(rest)
            setattr(parent, leaf, Branched(getattr(parent, leaf), branch, self._given_beside))
            return
        parent = self.network.get_submodule(home.removesuffix(".to_out"))
        if isinstance(parent, SelfAttention) and leaf in ("to_q", "to_k", "to_v"):
            parent.branches[leaf] = (
                Both(parent.branches[leaf], branch) if leaf in parent.branches else as_module(branch)
            )
            return
        leaf = "to_out" if home.endswith(".to_out") else leaf
        setattr(parent, leaf, Branched(getattr(parent, leaf), branch, self.given))

    # -- beside the frames -----------------------------------------------------------------------------

    @torch.inference_mode()
    def text_rows(self, text: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        """Keys and values of all layers, R x tokens x total, for prompts R x tokens x width."""
        with self._lock, _Giving(self._given_beside, given):
            parts = [
                self._beside[f"{layer.name}.{part}"](text)
                for layer in self.cross
                for part in ("to_k", "to_v")
            ]
        return torch.cat(parts, dim=-1)

    @torch.inference_mode()
    def time_rows(
        self,
        times: torch.Tensor,
        pooled: torch.Tensor | None = None,
        size: tuple[int, int] = (0, 0),
        given: Given = NOTHING,
    ) -> torch.Tensor:
        """What the times (R) are to all residual blocks, R x total.

        SDXL's depends on the ``pooled`` prompts (R x width) and on ``size``, height and width in pixels, too.
        """
        beside, dtype = self._beside, next(self.network.parameters()).dtype
        with self._lock, _Giving(self._given_beside, given):
            found = beside["time_proj"](times).to(dtype)
            found = beside["time_embedding"](found)
            if pooled is not None and "add_embedding" in beside:
                # Original size, crop, target size (SDXL, section 2.2).
                sides = torch.tensor([*size, 0, 0, *size], dtype=dtype, device=pooled.device)
                waves = beside["add_time_proj"](sides).flatten().expand(pooled.shape[0], -1)
                found = found + beside["add_embedding"](torch.cat([pooled, waves], dim=-1).to(dtype))
            if "time_embed_act" in beside:
                found = beside["time_embed_act"](found)
            parts = [beside[name](act(found)) for name, act in self._time]
        return torch.cat(parts, dim=-1)

    # -- frames ----------------------------------------------------------------------------------------

    def forward(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        text: torch.Tensor,
        down: Sequence[torch.Tensor] = (),
        middle: torch.Tensor | None = None,
        given: Given = NOTHING,
    ) -> torch.Tensor:
        """A UNet's prediction for R rows, of their `time_rows`, `text_rows` and what ControlNets add."""
        net = self.network
        with _Giving(self.given, given):
            if net.config.center_input_sample:
                sample = 2 * sample - 1
            sample, skips = self._down(net.conv_in(sample), time, text)
            if middle is not None:
                skips = [own + more for own, more in zip(skips, down, strict=True)]
                sample = sample + middle
            odd = any(side % 2**net.num_upsamplers for side in skips[0].shape[-2:])
            for block in net.up_blocks:
                count = len(block.resnets)
                own, skips = tuple(skips[-count:]), skips[:-count]
                more: dict[str, Any] = {"upsample_size": skips[-1].shape[2:]} if odd and skips else {}
                if getattr(block, "has_cross_attention", False):
                    more = {**more, "encoder_hidden_states": text}
                sample = block(hidden_states=sample, temb=time, res_hidden_states_tuple=own, **more)
            if net.conv_norm_out is not None:
                sample = net.conv_act(net.conv_norm_out(sample))
            found: torch.Tensor = net.conv_out(sample)
        return found

    def control(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        text: torch.Tensor,
        picture: torch.Tensor,
        given: Given = NOTHING,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What a ControlNet adds to the skips of a UNet and to its middle, for R rows and pictures."""
        net = self.network
        with _Giving(self.given, given):
            if net.config.controlnet_conditioning_channel_order == "bgr":
                picture = picture.flip(1)
            sample = net.conv_in(sample) + net.controlnet_cond_embedding(picture)
            sample, skips = self._down(sample, time, text)
            down = [layer(skip) for layer, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
            middle = net.controlnet_mid_block(sample)
        if net.config.global_pool_conditions:
            down = [skip.mean((2, 3), keepdim=True) for skip in down]
            middle = middle.mean((2, 3), keepdim=True)
        return down, middle

    # -- inside ----------------------------------------------------------------------------------------

    def _down(
        self, sample: torch.Tensor, time: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = [sample]
        for block in self.network.down_blocks:
            more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            sample, own = block(hidden_states=sample, temb=time, **more)
            skips += own
        middle = self.network.mid_block
        if middle is not None:
            more = {"encoder_hidden_states": text} if getattr(middle, "has_cross_attention", False) else {}
            sample = middle(sample, time, **more)
        return sample, skips

    def _take_attention(self) -> None:
        start = 0
        for name, block in list(self.network.named_modules()):
            if not hasattr(block, "attn1"):
                continue
            if block.attn2 is None or block.only_cross_attention:
                raise InvalidInput("its blocks attend to text alone or not at all", field="model_id")
            own = SelfAttention(block.attn1, self.given)
            self.self_attentions.append(own)
            cross = block.attn2
            block.attn1 = own
            block.attn2 = CrossAttention(cross, len(self.cross), start, self.given)
            for part in ("to_k", "to_v"):
                self._beside[f"{name}.attn2.{part}"] = getattr(cross, part)
            self.cross.append(CrossLayer(f"{name}.attn2", block.attn2.width))
            start += 2 * block.attn2.width
        self.text_width = start

    def _take_time(self) -> None:
        net, start = self.network, 0
        for name in ("time_proj", "time_embedding", "time_embed_act", "add_time_proj", "add_embedding"):
            part = getattr(net, name, None)
            if part is not None:
                self._beside[name] = part
                setattr(net, name, nn.Identity())
        for name, block in net.named_modules():
            layer = getattr(block, "time_emb_proj", None)
            if layer is None:
                continue
            whole = f"{name}.time_emb_proj"
            self._beside[whole] = layer
            self._time.append((whole, nn.Identity() if block.skip_time_act else block.nonlinearity))
            block.skip_time_act = True
            block.time_emb_proj = _Part(start, start + layer.out_features)
            start += layer.out_features
        self.time_width = start


class _Giving:
    """Lays down what a call is given, and takes it away afterwards."""

    def __init__(self, place: dict[str, torch.Tensor], given: Given) -> None:
        self._place, self._given = place, given

    def __enter__(self) -> None:
        self._place.update(self._given)

    def __exit__(self, *_: object) -> None:
        self._place.clear()


def _check(network: Any) -> None:
    config = network.config
    wanted = {
        "class_embed_type": (None,), "num_class_embeds": (None,), "encoder_hid_dim_type": (None,),
        "addition_embed_type": (None, "text_time"), "time_embedding_type": ("positional", None),
        "attention_type": ("default", None), "dual_cross_attention": (False, None),
    }  # fmt: skip
    for name, values in wanted.items():
        value = getattr(config, name, None)
        if value not in values:
            raise InvalidInput(
                f"its network has {name} {value!r}; models of that kind do not run as a stream",
                field="model_id",
            )


def to_channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions anew, in copies."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            laid_out = part.weight.detach().contiguous(memory_format=torch.channels_last)
            part.weight = nn.Parameter(laid_out, requires_grad=False)
