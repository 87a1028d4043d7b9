"""The parameters of a `stream-diffusion` stream: ai-runner's JSON, with the bounds that hold here.

Which of them change a running stream in place, and which load it anew, is in `RELOADS`. No torch: the worker
validates with it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace.diffusion.schedule import MAX_ROWS, MAX_STEPS, check_indices, rescaled
from stream.errors import InvalidInput

MAX_PARTS = 16
"""Prompts, or seeds, in one mixture."""
MAX_CONTROLS = 6
MAX_LORAS = 4
MAX_PICTURE = 16 * 2**20
"""Characters of a picture in base64."""
_TEXT = 4096
MAX_SEED = 2**63 - 1

Text = Annotated[str, Field(max_length=_TEXT)]
Weight = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Mixing = Literal["linear", "slerp"]

RELOADS = frozenset({"model_id", "autoencoder"})
"""Parameters for which all weights are loaded anew."""

NOT_BUILT: Mapping[str, str] = {
    "image_preprocessing": "processors around the pipeline",
    "image_postprocessing": "processors around the pipeline",
    "latent_preprocessing": "processors around the pipeline",
    "latent_postprocessing": "processors around the pipeline",
}
"""What ai-runner takes and this pipeline does not do yet: refused when it is switched on."""


class ControlParams(BaseModel):
    """One ControlNet (Zhang et al. 2023, arXiv 2302.05543)."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_id: str = Field(min_length=1, max_length=512, description="the net")
    conditioning_scale: float = Field(1.0, ge=0.0, le=10.0, description="how much it has to say")
    conditioning_channels: Literal[3] | None = Field(None, description="channels of its picture")
    preprocessor: Literal["passthrough", "tile", "color", "canny", "soft_edge"] = Field(
        "passthrough", description="from the frame to its picture"
    )
    preprocessor_params: dict[
        Literal["low_threshold", "high_threshold"], Annotated[float, Field(ge=0, le=255)]
    ] = Field({}, description="of canny: 0 to 1, or 0 to 255")
    enabled: bool = Field(True, description="whether it acts")
    control_guidance_start: float = Field(0.0, ge=0.0, le=1.0, description="first point of the schedule")
    control_guidance_end: float = Field(1.0, ge=0.0, le=1.0, description="last point of the schedule")

    @field_validator("preprocessor_params", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


class ImagePromptParams(BaseModel):
    """An IP-Adapter (Ye et al. 2023, arXiv 2308.06721): a picture as a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    type: Literal["regular"] = Field("regular", description="its kind; none for faces is there")
    scale: float = Field(1.0, ge=0.0, le=10.0, description="how much it has to say")
    weight_type: Literal["linear", "style transfer", "composition", "style and composition"] | None = Field(
        None, description="which layers it acts in; all but linear are for SDXL"
    )
    insightface_model_name: str | None = Field(None, max_length=512, description="accepted, not used")
    enabled: bool = Field(True, description="whether it acts")
    model_id: str | None = Field(None, max_length=512, description="another file than the family's")
    image_encoder: str | None = Field(None, max_length=512, description="another folder than the family's")


class RecallParams(BaseModel):
    """Cached attention (Liang et al. 2024, arXiv 2405.15757): attention sees earlier frames too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(False, description="whether it acts")
    max_frames: int = Field(
        1, ge=1, le=4, description="how many frames are kept, each 46 MB a row at 512 x 512"
    )
    interval: int = Field(1, ge=1, le=1440, description="every how many frames one is kept")


class StreamDiffusionParams(BaseModel):
    """Field names, defaults and meaning are ai-runner's, where it has the field."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_id: str = Field("stabilityai/sd-turbo", min_length=1, max_length=512, description="model")
    autoencoder: str = Field(
        "auto", max_length=512,
        description="in place of the model's own: auto (TAESD where it is on the disk), none, "
        "or a model",
    )  # fmt: skip
    prompt: Text | Annotated[list[tuple[Text, Weight]], Field(min_length=1, max_length=MAX_PARTS)] = Field(
        "flowers", description="a text, or texts with weights"
    )
    prompt_interpolation_method: Mixing = Field("slerp", description="how two prompts are mixed")
    normalize_prompt_weights: bool = Field(True, description="make the prompts' weights add up to 1")
    negative_prompt: Text = Field("blurry, low quality, flat, 2d", description="acts with guidance above 1")
    guidance_scale: float = Field(1.0, ge=0.0, le=30.0, description="above 1 pushes away from the negative")
    delta: float = Field(0.7, ge=0.0, le=10.0, description="weight of the virtual negative prediction")
    cfg_type: Literal["none", "self", "initialize", "full"] = Field("self", description="kind of guidance")
    num_inference_steps: int = Field(50, ge=1, le=MAX_STEPS, description="points of the noise schedule")
    t_index_list: Annotated[list[int], Field(min_length=1, max_length=MAX_ROWS)] = Field(
        [12, 20, 32], description="those points that are passed through: late ones keep more of the picture"
    )
    seed: Seed | Annotated[list[tuple[Seed, Weight]], Field(min_length=1, max_length=MAX_PARTS)] = Field(
        789, description="of the noise: a number, or numbers with weights"
    )
    seed_interpolation_method: Mixing = Field("linear", description="how two seeds are mixed")
    normalize_seed_weights: bool = Field(True, description="keep mixed noise as strong as its parts")
    controlnets: Annotated[list[ControlParams], Field(max_length=MAX_CONTROLS)] = Field(
        [], description="nets that hold the result to the frame's edges, colours, ..."
    )
    do_add_noise: bool = Field(True, description="noise at every step, not at the first alone")
    use_denoising_batch: bool = Field(
        True, description="steps of several frames in one call; else one frame's after one another, no delay"
    )
    skip_diffusion: bool = Field(False, description="pass frames through the autoencoder alone")
    enable_similar_image_filter: bool = Field(False, description="repeat the result where nothing moves")
    similar_image_filter_threshold: float = Field(0.98, ge=0.0, le=1.0, description="similarity, cosine")
    similar_image_filter_max_skip_frame: int = Field(10, ge=0, le=10_000, description="most repeats in a row")

    lora_dict: (
        Annotated[
            dict[
                Annotated[str, Field(min_length=1, max_length=512)],
                Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)],
            ],
            Field(max_length=MAX_LORAS),
        ]
        | None
    ) = Field(None, description="LoRAs (a file, or the repository or folder that it is in) and their weights")
    use_lcm_lora: bool = Field(
        False, description="LCM-LoRA, for few steps; turbo models need none and leave it out"
    )
    lcm_lora_id: str | None = Field(
        None, max_length=512, description="another than that of the model's family"
    )
    ip_adapter: ImagePromptParams | None = Field(None, description="lets the style picture be a prompt")
    ip_adapter_style_image_url: Annotated[str, Field(max_length=MAX_PICTURE)] | None = Field(
        None, description="the style picture: a data URL, or its base64 alone"
    )
    cached_attention: RecallParams | None = Field(
        None, description="lets attention see earlier frames, which steadies the stream"
    )
    acceleration: Literal["auto", "compile", "none", "tensorrt", "xformers"] = Field(
        "auto", description="compile (or tensorrt): the networks are compiled while frames go on; none (or "
        "xformers): they are not; auto: where there is CUDA",
    )  # fmt: skip
    use_safety_checker: bool = Field(False, description="show black in place of what the checker flags")
    safety_checker_threshold: float = Field(0.5, ge=0.0, le=1.0, description="accepted, not used")

    @field_validator("ip_adapter_style_image_url")
    @classmethod
    def _is_picture(cls, value: str | None) -> str | None:
        if value:
            picture_of(value)
        return value or None

    @field_validator("controlnets", mode="before")
    @classmethod
    def _no_controls(cls, value: Any) -> Any:
        return [] if value is None else value

    @field_validator("controlnets")
    @classmethod
    def _different(cls, value: list[ControlParams]) -> list[ControlParams]:
        names = [control.model_id for control in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is there twice")
        return value

    @field_validator("t_index_list")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(value):
            raise ValueError(f"the values {value} may not go down")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            check_indices(self.t_index_list, self.num_inference_steps)
        except InvalidInput as error:
            raise ValueError(error.message) from None
        for name, parts in (("prompt", self.prompt), ("seed", self.seed)):
            normalised = self.normalize_prompt_weights if name == "prompt" else self.normalize_seed_weights
            if isinstance(parts, list) and normalised and sum(weight for _, weight in parts) <= 0:
                raise ValueError(f"the weights of {name} must add up to more than 0")
        if (
            not self.use_denoising_batch
            and self.guidance_scale > 1
            and self.cfg_type in ("self", "initialize")
        ):
            raise ValueError(f"cfg_type {self.cfg_type} needs use_denoising_batch; take full or none")
        if self.recalls is not None and not self.use_denoising_batch:
            raise ValueError("cached_attention needs use_denoising_batch, where every step has its own row")
        return self

    @property
    def prompts(self) -> Sequence[tuple[str, float]]:
        return [(self.prompt, 1.0)] if isinstance(self.prompt, str) else self.prompt

    @property
    def recalls(self) -> RecallParams | None:
        """Cached attention, where it is on."""
        own = self.cached_attention
        return own if own is not None and own.enabled else None

    @property
    def image_prompt(self) -> ImagePromptParams | None:
        """The IP-Adapter, where there is a picture for it."""
        own = self.ip_adapter
        return own if own is not None and own.enabled and self.ip_adapter_style_image_url else None

    @property
    def takes_lcm_lora(self) -> bool:
        """Turbo models have few steps of their own."""
        return self.use_lcm_lora and "turbo" not in self.model_id.lower()

    @property
    def seeds(self) -> Sequence[tuple[int, float]]:
        return [(self.seed, 1.0)] if isinstance(self.seed, int) else self.seed


def needs_load(before: StreamDiffusionParams, after: StreamDiffusionParams) -> bool:
    """Whether weights are loaded, or let go of, between the two."""
    return _loaded(before) != _loaded(after) or any(
        getattr(before, name) != getattr(after, name) for name in RELOADS
    )


def _loaded(params: StreamDiffusionParams) -> tuple[object, ...]:
    """What is loaded beside the model."""
    return (
        {control.model_id for control in params.controlnets},
        set(params.lora_dict or ()),
        params.takes_lcm_lora and (params.lcm_lora_id or True),
        params.use_safety_checker,
        params.image_prompt and (params.image_prompt.model_id, params.image_prompt.image_encoder),
    )


def picture_of(text: str) -> bytes:
    """The file that is in a data URL (RFC 2397), or in base64 alone. Raises `ValueError`."""
    if text.startswith(("http:", "https:")):
        raise ValueError("this pipeline fetches no addresses; send the picture itself as a data URL")
    head, comma, rest = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise ValueError("a picture is a data URL in base64: data:image/png;base64,...")
    try:
        return base64.b64decode(rest if comma else text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the picture is not base64: {error}") from None


def start(params: Mapping[str, Any]) -> StreamDiffusionParams:
    """The parameters of a stream that begins. Raises `InvalidInput` that names the first wrong field."""
    return _validated(params)


def of_node(literals: Mapping[str, Any]) -> StreamDiffusionParams:
    """Those of a node, whose ``t_index_list`` is a text such as ``12, 20, 32`` and whose ``recalled_frames``
    and ``recalled_interval`` are cached attention's. Raises as `start`."""
    given = dict(literals)
    frames, interval = given.pop("recalled_frames", 0), given.pop("recalled_interval", 1)
    if frames:
        given["cached_attention"] = {"enabled": True, "max_frames": frames, "interval": interval}
    name = "t_index_list"
    if isinstance(given.get(name), str):
        try:
            given[name] = [int(part) for part in given[name].split(",")]
        except ValueError:
            raise InvalidInput(
                f"{name} is {given[name]!r}; whole numbers with commas between them", field=name
            ) from None
    return start(given)


def changed(before: StreamDiffusionParams, params: Mapping[str, Any]) -> StreamDiffusionParams:
    """``before`` with ``params`` on top. Raises `InvalidInput`, and nothing has changed.

    Another number of steps alone moves the indices to the same places of the new grid.
    """
    merged = {**before.model_dump(), **params}
    steps = params.get("num_inference_steps")
    if isinstance(steps, int) and 1 <= steps <= MAX_STEPS and "t_index_list" not in params:
        merged["t_index_list"] = list(rescaled(before.t_index_list, before.num_inference_steps, steps))
    return _validated(merged)


def _validated(params: Mapping[str, Any]) -> StreamDiffusionParams:
    given = dict(params)
    for name, what in NOT_BUILT.items():
        if name in given and not _is_off(given.pop(name)):
            raise InvalidInput(f"{name}: {what} are not there yet in this pipeline", field=name)
    try:
        return StreamDiffusionParams.model_validate(given)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise InvalidInput(
            "; ".join(message for _, message in problems), field=problems[0][0], details=[
                {"field": name, "message": message} for name, message in problems
            ],
        ) from None  # fmt: skip


def _is_off(value: Any) -> bool:
    """Whether a part of ai-runner's parameters is switched off: null, empty, or not enabled."""
    if isinstance(value, Mapping):
        return not value or value.get("enabled") is False or value.get("processors") == []
    if isinstance(value, list):
        return all(isinstance(item, Mapping) and item.get("enabled") is False for item in value)
    return value is None or value == ""


def _problem(item: Mapping[str, Any]) -> tuple[str, str]:
    place = list(map(str, item["loc"])) or ["params"]
    # What follows is the kind that a value was tried as, but for the parts of a net.
    name = ".".join(place) if place[0] in ("controlnets", "ip_adapter", "cached_attention") else place[0]
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return name, f"there is no parameter {name}"
    given = item.get("input")
    given = f"{given[:60]}..." if isinstance(given, str) and len(given) > 80 else given
    shown = f", not {given!r}" if item["loc"] and isinstance(given, str | int | float | bool) else ""
    return name, f"{name}: {message}{shown}"
