"""What the pictures' endpoints take: fields, defaults and bounds, as ai-runner's clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from headrace.batch.fields import (
    Count,
    Delivery,
    Guidance,
    Loras,
    ModelId,
    Prompt,
    Request,
    SafetyCheck,
    Scheduler,
    Seed,
    Side,
    Steps,
    Unit,
    Upload,
    Withhold,
    bad_value,
    check_divisible,
    check_pixels,
    json_field,
)

MAX_POINTS = 256
MASK_SIDE = 256
MOST_FRAMES = 25
"""Frames that models make by themselves (SVD-XT)."""


class TextToImage(Request):
    """Pictures from a text. The prompt may have up to four parts with `|` between them."""

    prompt: Prompt
    model_id: ModelId = ""
    loras: Loras = {}  # noqa: RUF012 (pydantic copies defaults)
    height: Side = 576
    width: Side = 1024
    guidance_scale: Guidance = 7.5
    negative_prompt: Prompt = ""
    safety_check: SafetyCheck = True
    withhold: Withhold = False
    seed: Seed = None
    num_inference_steps: Steps = 50
    num_images_per_prompt: Count = 1
    scheduler: Scheduler = None
    delivery: Delivery = "data_url"

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        if not prompt:
            raise bad_value("Prompt must be provided.")
        return prompt

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_divisible(self.height, self.width)
        check_pixels(self.height, self.width, self.num_images_per_prompt, "num_images_per_prompt")
        return self


class ImageToImage(Request):
    """Pictures from a picture and a text. They are as large as the picture."""

    prompt: Prompt
    image: Upload
    model_id: ModelId = ""
    loras: Loras = {}  # noqa: RUF012 (pydantic copies defaults)
    strength: Unit = 0.8
    guidance_scale: Guidance = 7.5
    image_guidance_scale: Guidance = 1.5
    negative_prompt: Prompt = ""
    safety_check: SafetyCheck = True
    withhold: Withhold = False
    seed: Seed = None
    num_inference_steps: Steps = 100
    num_images_per_prompt: Count = 1
    scheduler: Scheduler = None
    delivery: Delivery = "data_url"


class ImageToVideo(Request):
    """A video that begins with a picture."""

    image: Upload
    model_id: ModelId = ""
    height: Side = 576
    width: Side = 1024
    fps: Annotated[int, Field(ge=1, le=60)] = 6
    motion_bucket_id: Annotated[int, Field(ge=0, le=255)] = 127
    noise_aug_strength: Annotated[float, Field(ge=0, le=10)] = 0.02
    safety_check: SafetyCheck = True
    withhold: Withhold = False
    seed: Seed = None
    num_inference_steps: Steps = 25
    num_frames: Annotated[
        int | None, Field(ge=2, le=64, description="Absent: as many as the model makes.")
    ] = None
    frames: Annotated[bool, Field(description="Answer with every picture too, as ai-runner does.")] = False
    delivery: Delivery = "data_url"

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_divisible(self.height, self.width)
        check_pixels(self.height, self.width, self.num_frames or MOST_FRAMES, "num_frames")
        return self


class Upscale(Request):
    """A larger picture."""

    prompt: Prompt
    image: Upload
    model_id: ModelId = ""
    safety_check: SafetyCheck = True
    withhold: Withhold = False
    seed: Seed = None
    num_inference_steps: Steps = 75
    delivery: Delivery = "data_url"


class ImageToText(Request):
    """What is to be seen in a picture, in words."""

    image: Upload
    prompt: Prompt = ""
    model_id: ModelId = ""
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 128


Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2)]
MaskRow = Annotated[list[float], Field(min_length=MASK_SIDE, max_length=MASK_SIDE)]
Mask = Annotated[list[MaskRow], Field(min_length=MASK_SIDE, max_length=MASK_SIDE)]
IN_STRING: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}


class SegmentAnything2(Request):
    """Masks of what points, a box or a rough mask show."""

    image: Upload
    model_id: ModelId = ""
    point_coords: Annotated[
        Annotated[list[Point], Field(max_length=MAX_POINTS)] | None,
        json_field("point_coords"),
        Field(json_schema_extra=IN_STRING, description="[[x, y], ...] in pixels"),
    ] = None
    point_labels: Annotated[
        Annotated[list[Literal[0, 1]], Field(max_length=MAX_POINTS)] | None,
        json_field("point_labels"),
        Field(json_schema_extra=IN_STRING, description="1: inside, 0: outside"),
    ] = None
    box: Annotated[
        Annotated[list[Number], Field(min_length=4, max_length=4)] | None,
        json_field("box"),
        Field(json_schema_extra=IN_STRING, description="[x0, y0, x1, y1] in pixels"),
    ] = None
    mask_input: Annotated[
        Annotated[list[Mask], Field(min_length=1, max_length=1)] | None,
        json_field("mask_input"),
        Field(json_schema_extra=IN_STRING, description="logits, 1 x 256 x 256"),
    ] = None
    multimask_output: Annotated[bool, Field(description="Three masks instead of one.")] = True
    return_logits: Annotated[bool, Field(description="Masks as logits, to be cut at 0.")] = True
    normalize_coords: bool = True
    mask_format: Annotated[
        Literal["json", "rle", "png"],
        Field(description="json: nested lists; rle: COCO's run lengths; png: one picture a mask."),
    ] = "json"

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        points, labels = len(self.point_coords or ()), len(self.point_labels or ())
        if points != labels:
            raise bad_value(
                f"point_labels has {labels} items for the {points} of point_coords.", "point_labels"
            )
        return self
