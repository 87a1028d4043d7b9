"""What `StreamDiffusionSampler` has of its stream between two frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from headrace.diffusion import frame, parameters
from headrace.diffusion.adapters import Kit, Recalled
from headrace.diffusion.asked import Adapters, Conditioning, Control, Settings
from headrace.diffusion.image_prompts import AdapterFiles, ImageAdapter, ImagePrompt, on
from headrace.diffusion.loading import Loan
from headrace.diffusion.loras import LoraFile
from headrace.diffusion.networks import Networks
from headrace.diffusion.parameters import ControlParams, StreamDiffusionParams
from headrace.diffusion.pictures import fitting, resized, thumbnail
from headrace.diffusion.preparing import assembled, guidance_of
from headrace.diffusion.preprocessors import preprocessor_of
from headrace.diffusion.similarity import SimilarityFilter
from headrace.diffusion.stream import Stream
from headrace.nodes.handles import ControlNet
from workflows.protocol import TRIAL

Condition = list[list[Any]]
"""As ComfyUI's nodes hand it on: pairs of the states of a text [1, T, C] and options."""


@dataclass(frozen=True, eq=False)
class StreamModel:
    """A model for streams, with LoRAs and their weights, and a picture as a prompt and its weight in each
    layer. None of it is ever changed."""

    loan: Loan
    loras: tuple[tuple[LoraFile, float], ...] = ()
    image: ImageAdapter | None = None
    picture: ImagePrompt | None = None
    weights: tuple[float, ...] = ()
    adapters: Adapters | None = None

    @property
    def networks(self) -> Networks:
        return self.loan.networks

    def with_lora(self, lora: LoraFile, strength: float) -> StreamModel:
        """Raises `InvalidInput` where it does not fit the model."""
        return replace(self, loras=(*self.loras, (lora, strength)))._adapted()

    def with_picture(
        self, files: AdapterFiles, image: torch.Tensor, strength: float, weight_type: str
    ) -> StreamModel:
        """``image``: [B, H, W, C], of which the first counts. Raises as `with_lora`."""
        adapter = on(self.networks, files, "ip_adapter")
        pixels = (image[0, ..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
        weights = adapter.scales(strength, weight_type)
        made = replace(self, image=adapter, picture=adapter.prompt(pixels), weights=weights)
        return made._adapted()

    @property
    def strengths(self) -> list[float]:
        """Of the LoRAs."""
        return [strength for _, strength in self.loras]

    def kit(self) -> Kit:
        return Kit(self.networks, [lora for lora, _ in self.loras], self.image, "lora_name")

    def _adapted(self) -> StreamModel:
        adapters = self.kit().adapters(self.strengths, self.picture, self.weights)
        return replace(self, adapters=adapters)


@dataclass(frozen=True, eq=False)
class Steering:
    """A control network at work on a stream; ``picture`` [B, H, W, C] in place of the preprocessed frame."""

    net: ControlNet
    preprocessor: str
    scale: float
    start: float
    end: float
    picture: torch.Tensor | None

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What it is but for the picture, which may be another for each frame."""
        return self.net.module, self.preprocessor, self.scale, self.start, self.end, self.picture is None


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a frame is asked to be worked on with."""

    model: StreamModel
    positive: Condition
    negative: Condition | None
    controls: tuple[tuple[Any, ...], ...]
    literals: Mapping[str, Any]

    def equals(self, other: _Wanted | None) -> bool:
        return (
            other is not None
            and self.model is other.model
            and self.positive is other.positive
            and self.negative is other.negative
            and self.controls == other.controls
            and self.literals == other.literals
        )


class StreamState:
    """The stream of one sampler. For one frame at a time."""

    def __init__(self) -> None:
        self._wanted: _Wanted | None = None
        self._params = parameters.start({})
        self._size: tuple[int, int] | None = None
        self._stream: Stream | None = None
        self._filter: SimilarityFilter | None = None
        self._last: torch.Tensor | None = None
        self._pictures: list[torch.Tensor | None] = []
        self._kit: tuple[StreamModel, tuple[int, int], Kit] | None = None
        self._known: dict[str, tuple[Condition, Networks, Conditioning]] = {}
        """By its input's name what a condition is to the networks, which they know more of already."""

    async def run(
        self,
        model: StreamModel,
        image: torch.Tensor,
        positive: Condition,
        negative: Condition | None,
        controls: tuple[Steering, ...],
        literals: Mapping[str, Any],
    ) -> torch.Tensor:
        """The results that are due with ``image`` [B, H, W, C], B frames in a row, in its size.

        Raises `InvalidInput` for literals and conditions that cannot stream, and leaves the stream as it was.
        """
        if TRIAL.get():
            trial = StreamState()
            trial._prepare(model, image, positive, negative, controls, literals)
            return torch.cat([trial._alone(model, one, controls) for one in torch.split(image, 1)])
        self._prepare(model, image, positive, negative, controls, literals)
        return torch.cat([await self._next(model, one, controls) for one in torch.split(image, 1)])

    # -- frames ----------------------------------------------------------------------------------------

    async def _next(
        self, model: StreamModel, image: torch.Tensor, controls: tuple[Steering, ...]
    ) -> torch.Tensor:
        repeats = self._filter is not None and self._filter.skips(thumbnail(image[..., :3]))
        if repeats and self._last is not None:
            return self._last
        picture = self._taken(model, image, controls)
        assert self._stream is not None
        out = await model.loan.calls.run(self._stream, picture)
        out = resized(out, image.shape[1], image.shape[2]).to(image.device)
        self._last = out if self._filter is not None else None
        return out

    def _alone(self, model: StreamModel, image: torch.Tensor, controls: tuple[Steering, ...]) -> torch.Tensor:
        """A made-up frame, in a call of its own: others are none of the loop that it runs in."""
        picture = self._taken(model, image, controls)
        assert self._stream is not None
        (out,) = frame.run(model.networks, [self._stream], [picture])
        return resized(out, image.shape[1], image.shape[2]).to(image.device)

    def _taken(self, model: StreamModel, image: torch.Tensor, controls: tuple[Steering, ...]) -> torch.Tensor:
        device = model.networks.device
        picture = fitting(image[..., :3].float().to(device))
        for place, control in enumerate(controls):
            given = control.picture
            self._pictures[place] = (
                None
                if given is None
                else resized(given[:1, ..., :3].float().to(device), picture.shape[1], picture.shape[2])
            )
        return picture

    # -- settings --------------------------------------------------------------------------------------

    def _prepare(
        self,
        model: StreamModel,
        image: torch.Tensor,
        positive: Condition,
        negative: Condition | None,
        controls: tuple[Steering, ...],
        literals: Mapping[str, Any],
    ) -> None:
        """Put what is wanted in force, where it is not."""
        wanted = _Wanted(model, positive, negative, tuple(one.fixed for one in controls), dict(literals))
        size = (image.shape[1], image.shape[2])
        if size == self._size and wanted.equals(self._wanted):
            return
        params = parameters.of_node(literals)
        settings = self._settings(params, wanted, image, controls)
        other_model = self._wanted is None or self._wanted.model.networks is not model.networks
        if self._stream is None or other_model or size != self._size:
            # Latents of another model, or another size, are another language.
            self._stream = Stream(settings)
        else:
            self._stream.apply(settings)
        if self._wanted is None or _filtering(params) != _filtering(self._params):
            enabled, threshold, most = _filtering(params)
            self._filter = SimilarityFilter(threshold, most) if enabled else None
        elif self._filter is not None:
            self._filter.reset()
        self._wanted, self._params, self._size, self._last = wanted, params, size, None

    def _settings(
        self,
        params: StreamDiffusionParams,
        wanted: _Wanted,
        image: torch.Tensor,
        controls: tuple[Steering, ...],
    ) -> Settings:
        networks = wanted.model.networks
        small = fitting(image[:1, ..., :1].float()).shape[1:3]
        positive = self._conditioning(wanted.positive, networks, "positive")
        needs_negative = guidance_of(params).acting in ("full", "initialize")
        negative = None
        if needs_negative:
            if wanted.negative is None:
                raise ValueError(f"cfg_type {params.cfg_type} needs a negative condition")
            negative = self._conditioning(wanted.negative, networks, "negative")
            positive, negative = _as_long(positive, negative)
        self._pictures = [None] * len(controls)
        steered = tuple(self._control(place, one, networks) for place, one in enumerate(controls))
        sides = int(small[0]), int(small[1])
        adapters = self._adapters(params, wanted.model, sides)
        return assembled(params, networks, sides, positive, negative, steered, adapters)

    def _adapters(
        self, params: StreamDiffusionParams, model: StreamModel, size: tuple[int, int]
    ) -> Adapters | None:
        """Those of the model, which others may have too; what is recalled is the stream's own."""
        if params.recalls is None:
            self._kit = None
            return model.adapters
        if self._kit is None or self._kit[0] is not model or self._kit[1] != size:
            self._kit = (model, size, model.kit())
        recalled = Recalled(params.recalls.max_frames, params.recalls.interval)
        kit = self._kit[2]
        adapters = kit.adapters(model.strengths, model.picture, model.weights, recalled)
        kit.settle(adapters)
        return adapters

    def _conditioning(self, condition: Condition, networks: Networks, name: str) -> Conditioning:
        known = self._known.get(name)
        if known is not None and known[0] is condition and known[1] is networks:
            return known[2]
        made = _conditioning(condition, networks, name)
        self._known[name] = (condition, networks, made)
        return made

    def _control(self, place: int, steering: Steering, networks: Networks) -> Control:
        net = steering.net.module
        width, wanted = net.config.cross_attention_dim, networks.unet.config.cross_attention_dim
        if width != wanted:
            raise ValueError(
                f"a control network for prompts of width {width}; those of this model are {wanted} wide"
            )
        params = ControlParams.model_validate(
            {
                "model_id": "linked",
                "preprocessor": steering.preprocessor,
                "control_guidance_start": steering.start,
                "control_guidance_end": steering.end,
            }
        )
        from_frame = preprocessor_of(params)

        def seen(picture: torch.Tensor) -> torch.Tensor:
            given = self._pictures[place]
            return from_frame(picture) if given is None else given

        seen_by: Callable[[torch.Tensor], torch.Tensor] = seen
        return Control(net, seen_by, steering.scale, steering.start, steering.end)


def _filtering(params: StreamDiffusionParams) -> tuple[bool, float, int]:
    return (
        params.enable_similar_image_filter,
        params.similar_image_filter_threshold,
        params.similar_image_filter_max_skip_frame,
    )


def _conditioning(condition: Condition, networks: Networks, name: str) -> Conditioning:
    """Raises `ValueError` for what a row of a stream cannot take."""
    if len(condition) != 1:
        raise ValueError(f"{name} has {len(condition)} conditions; a stream takes one (ConditioningAverage)")
    text, options = condition[0]
    if options.get("control") is not None:
        raise ValueError(f"{name} has a control network; those of a stream come from StreamDiffusionControl")
    wanted = networks.unet.config.cross_attention_dim
    if text.shape[0] != 1 or text.shape[-1] != wanted:
        raise ValueError(f"{name} is {tuple(text.shape)}; this model takes prompts [1, tokens, {wanted}]")
    text = text.to(networks.device, networks.dtype)
    if not networks.is_xl:
        return Conditioning(text)
    pooled = options.get("pooled_output")
    if pooled is None:
        raise ValueError(f"{name} has no pooled text, which SDXL needs; encode it by the model's own CLIP")
    return Conditioning(text, pooled.to(networks.device, networks.dtype))


def _as_long(first: Conditioning, second: Conditioning) -> tuple[Conditioning, Conditioning]:
    """Both with as many tokens, by repeating them, which changes nothing of what attention makes of them."""
    if first.text.shape[1] == second.text.shape[1]:
        return first, second
    length = math.lcm(first.text.shape[1], second.text.shape[1])
    one, other = (
        Conditioning(each.text.repeat(1, length // each.text.shape[1], 1), each.pooled)
        for each in (first, second)
    )
    return one, other
