"""The networks of a real-time pipeline, and the little that the stream batch asks of them.

SD 1.5, SD-Turbo and SDXL-Turbo families of diffusers, over shared, read-only weights. The autoencoder of a
live path is TAESD (`AutoencoderTiny`); a full one works and costs 4.5 UNets a frame.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from headrace.diffusion.acceleration import Acceleration, Run
from headrace.diffusion.asked import Conditioning, Settings
from headrace.diffusion.conditions import Conditions
from headrace.diffusion.pieces import FlatStep, Recipe, recipes_of, step_tensors
from headrace.diffusion.place import Place
from headrace.diffusion.rows import RowConstants
from headrace.diffusion.step import Decode, Encode, Step
from headrace.diffusion.stream import Stream
from headrace.diffusion.view import NetworkView, to_channels_last, twin
from stream.errors import InvalidInput

LATENT_RATIO = 8
"""Pixels along a side for one element of the latent."""
MAX_PROMPTS = 64
"""Encoded prompts that are kept."""
MAX_STEPS = 8
"""Combinations of nets and adapters for which a step is kept."""
MAX_PLACES = 8
"""Places that are kept, each for a number of rows and pictures, a size, nets and adapters."""


@dataclass(eq=False)
class Networks:
    """``parts``: the components of a diffusers pipeline by name: ``unet``, ``vae``, ``text_encoder``,
    ``tokenizer``, ``scheduler``, for SDXL ``text_encoder_2`` and ``tokenizer_2`` too."""

    parts: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    _prompts: dict[str, Conditioning] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [
            name for name in ("unet", "vae", "text_encoder", "tokenizer") if self.parts.get(name) is None
        ]
        if missing:
            raise InvalidInput(f"the model has no {', '.join(missing)}", field="model_id")
        self.unet, self.vae = self.parts["unet"], self.parts["vae"]
        self.is_xl = self.parts.get("text_encoder_2") is not None
        channels, wanted = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != wanted:
            raise InvalidInput(
                f"the network takes {channels} channels where the autoencoder gives {wanted}; "
                "models for inpainting or instructions do not run as a stream",
                field="model_id",
            )
        config = self.parts["scheduler"].config if self.parts.get("scheduler") is not None else {}
        self.alphas_cumprod = noise_schedule(config)
        self._predicts_velocity = config.get("prediction_type") == "v_prediction"
        self.view = view_of(self.unet, self.device)
        autoencoder = twin(self.vae)
        if fast(self.device):
            to_channels_last(autoencoder)
        self.encode, self.decode = Encode(autoencoder).eval(), Decode(autoencoder).eval()
        self.acceleration = Acceleration(self.device, self.dtype)
        self._stream: torch.cuda.Stream | None = None
        self.lock = threading.Lock()
        """Held by whoever works on frames: they share places and what views are given."""
        self._control_views: WeakKeyDictionary[Any, NetworkView] = WeakKeyDictionary()
        self._conditions: WeakKeyDictionary[NetworkView, Conditions] = WeakKeyDictionary()
        self._flat: WeakKeyDictionary[Step, tuple[FlatStep, tuple[Recipe, ...] | None]] = WeakKeyDictionary()
        self._steps: dict[tuple[object, ...], Step] = {}
        self._places: dict[tuple[object, ...], Place] = {}

    # -- prompts ---------------------------------------------------------------------------------------

    def encode_prompt(self, text: str) -> Conditioning:
        """What ``text`` is to the network; encoded once, then kept."""
        found = self._prompts.pop(text, None) or self._encode_prompt(text)
        self._prompts[text] = found
        while len(self._prompts) > MAX_PROMPTS:
            del self._prompts[next(iter(self._prompts))]
        return found

    @torch.inference_mode()
    def _encode_prompt(self, text: str) -> Conditioning:
        if not self.is_xl:
            encoded = self.parts["text_encoder"](self._tokens("tokenizer", text))[0]
            return Conditioning(encoded.to(self.dtype))
        states = []
        pooled = None
        for end in ("", "_2"):
            encoder = self.parts[f"text_encoder{end}"]
            output = encoder(self._tokens(f"tokenizer{end}", text), output_hidden_states=True)
            pooled = output[0]
            # SDXL takes the last but one layer (Podell et al. 2023, arXiv 2307.01952).
            states.append(output.hidden_states[-2])
        assert pooled is not None
        return Conditioning(torch.cat(states, dim=-1).to(self.dtype), pooled.to(self.dtype))

    def _tokens(self, name: str, text: str) -> torch.Tensor:
        tokenizer = self.parts[name]
        made = tokenizer(
            text,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: torch.Tensor = made.input_ids.to(self.device)
        return ids

    # -- rows ------------------------------------------------------------------------------------------

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return (int(self.unet.config.in_channels), height // LATENT_RATIO, width // LATENT_RATIO)

    def control_view(self, net: Any) -> NetworkView:
        """The view on a ControlNet, one for all streams."""
        found = self._control_views.get(net)
        if found is None:
            found = self._control_views[net] = view_of(net, self.device)
        return found

    def conditions_of(self, view: NetworkView) -> Conditions:
        found = self._conditions.get(view)
        if found is None:
            found = self._conditions[view] = Conditions(view)
        return found

    def prepare(self, settings: Settings) -> None:
        """Work out, beside the frames, what a stream with these settings needs of prompts and times."""
        prompts = [settings.positive] + ([] if settings.negative is None else [settings.negative])
        times, size = [step.t for step in settings.steps], _pixels(settings.noise)
        adapters = settings.adapters
        view = self.view if adapters is None else adapters.view
        self.conditions_of(view).prepare(prompts, times, size, adapters)
        for control in settings.controls:
            self.conditions_of(self.control_view(control.net)).prepare(prompts, times, size, None)

    def conditioned(self, stream: Stream, rows: RowConstants) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Time and text of a stream's rows, for the network and then for each net."""
        adapters, size = stream.settings.adapters, _pixels(rows.offset)
        views = [(self.view if adapters is None else adapters.view, adapters)]
        views += [(self.control_view(control.net), None) for control in stream.controls]
        found = []
        for view, own in views:
            conditions = self.conditions_of(view)
            if view not in rows.ready:
                rows.ready[view] = (conditions.time(rows, size, own), conditions.text(rows, own))
            found.append(rows.ready[view])
        return found

    def step_of(self, stream: Stream) -> Step:
        """The step for streams with the nets and adapters of this one."""
        key = stream.nets
        found = self._steps.get(key)
        if found is None:
            adapters = stream.settings.adapters
            nets = [control.net for control in stream.controls]
            view = self.view if adapters is None else adapters.view
            controls = tuple(self.control_view(net) for net in nets)
            found = self._steps[key] = Step(view, controls, velocity=self._predicts_velocity).eval()
            for one in (view, *nets):
                # Its number may be another one's when it is gone.
                weakref.finalize(one, _forget, weakref.ref(self), key)
            while len(self._steps) > MAX_STEPS:
                del self._steps[next(iter(self._steps))]
        return found

    def compiled(self, kind: Literal["encode", "decode"], count: int, shape: tuple[int, ...]) -> Run | None:
        """The autoencoder's compiled way for ``count`` tensors of ``shape``."""
        module, tensors = getattr(self, kind), (("given", (count, *shape), "float32"),)
        return self.acceleration.find(
            kind, tensors, module, [self.vae], options={"channels_last": fast(self.device)}
        )

    def compiled_step(self, capacity: int, stream: Stream) -> Run | None:
        """The compiled step for so many rows of streams with the nets and adapters of this one."""
        step, settings = self.step_of(stream), stream.settings
        views = [step.view, *(self.control_view(control.net) for control in stream.controls)]
        given = {} if settings.adapters is None else settings.adapters.given
        tokens, latent = settings.positive.text.shape[1], tuple(settings.noise.shape[1:])
        tensors = step_tensors(capacity, latent, tokens, views, given)
        if step not in self._flat:
            flat = FlatStep(step, [name for name, _, _ in tensors]).eval()
            self._flat[step] = flat, recipes_of(step.view)
        module, recipes = self._flat[step]
        return self.acceleration.find(
            "step", tensors, module, [view.source.network for view in views], owner=stream.nets,
            options={**step.view.source.options, "velocity": step.velocity}, recipes=recipes,
        )  # fmt: skip

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """On CUDA, work within goes before that of other streams; what was queued before it is done first."""
        if self.device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def place(self, capacity: int, pictures: int, first: Stream) -> Place:
        """Where a call of that many rows and pictures finds what it needs; the least used are given up."""
        key = (capacity, pictures, first.nets, tuple(first.settings.noise.shape[1:]))
        found = self._places.pop(key, None) or Place(capacity, pictures)
        self._places[key] = found
        while len(self._places) > MAX_PLACES:
            self._places.pop(next(iter(self._places))).clear()
        return found


def _forget(networks: weakref.ref[Networks], nets: tuple[object, ...]) -> None:
    own = networks()
    if own is not None:
        own._steps.pop(nets, None)
        own.acceleration.forget(nets)
        for key in [key for key in tuple(own._places) if key[2] == nets]:
            own._places.pop(key, None)


def view_of(network: Any, device: torch.device) -> NetworkView:
    """On CUDA with copies of weights in the layout that it is fastest with."""
    return NetworkView(network, fused=fast(device), channels_last=fast(device)).eval()


def fast(device: torch.device) -> bool:
    """Whether copies of weights are worth their memory."""
    return device.type == "cuda"


def _pixels(latents: torch.Tensor) -> tuple[int, int]:
    height, width = latents.shape[-2:]
    return height * LATENT_RATIO, width * LATENT_RATIO


def noise_schedule(config: Mapping[str, Any]) -> tuple[float, ...]:
    """The model's cumulative products of alpha, one a training step (Ho et al. 2020, arXiv 2006.11239)."""
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(first, last, steps, dtype=torch.float32)
    else:
        raise InvalidInput(f"the noise schedule {kind!r} is not known", field="model_id")
    return tuple(torch.cumprod(1.0 - betas, 0).tolist())
