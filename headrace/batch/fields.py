"""What the requests' fields have in common: absent values, bounds, LoRAs, JSON in strings."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_PROMPT = 20_000
"""Characters of a prompt."""
MAX_SIDE = 4096
"""Pixels of a side of a picture that is to be made."""
MAX_STEPS = 200
MAX_IMAGES = 16
MAX_PIXELS = 1 << 27
"""Of all pictures that a request makes together: they are in memory at the same time."""
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""
MAX_LORAS = 4
MAX_UPLOAD = 50 << 20
"""Bytes of a picture or recording that is sent in."""

BAD_VALUE = "bad_value"
"""Type of the errors of validation whose text is the whole answer."""


def bad_value(text: str, field: str | None = None) -> PydanticCustomError:
    """What a validator raises for a value of the right type that cannot be used. ``field``: the one at fault,
    for validators of a whole request."""
    # The text is no template: it may have braces of the caller's.
    return PydanticCustomError(BAD_VALUE, "{text}", {"text": text} | ({"field": field} if field else {}))


class Request(BaseModel):
    """A request's fields. Null and, where there is a default, the empty string mean the same as absence;
    unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {
            name: value
            for name, value in data.items()
            if value is not None and (value != "" or name in required)
        }

    def inputs(self) -> dict[str, Any]:
        """The fields that the pipeline gets."""
        return self.model_dump()


ModelId: TypeAlias = Annotated[
    str,
    Field(
        max_length=512,
        exclude=True,
        description="Repository, folder, file or `demo:NAME`. Empty: a warm or the default model.",
    ),
]
Prompt: TypeAlias = Annotated[str, Field(max_length=MAX_PROMPT)]
Guidance: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Steps: TypeAlias = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
Unit: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Side: TypeAlias = Annotated[int, Field(ge=16, le=MAX_SIDE, json_schema_extra={"multipleOf": 8})]
Seed: TypeAlias = Annotated[
    int | None,
    Field(ge=0, le=MAX_SEED, description="Absent: a random one, told in the answer. Image k has seed + k."),
]
Delivery: TypeAlias = Annotated[
    Literal["data_url", "url"],
    Field(
        exclude=True,
        validation_alias=AliasChoices("response_format", "output"),
        description="How media come: in the answer, or as the URL of a file that is kept for a while.",
    ),
]
SafetyCheck: TypeAlias = Annotated[bool, Field(description="Look for what is not safe to show; sets `nsfw`.")]
Withhold: TypeAlias = Annotated[bool, Field(description="Pictures that the safety checker flags come black.")]
Scheduler: TypeAlias = Annotated[
    Literal[
        "ddim",
        "ddpm",
        "dpm++",
        "dpm++-karras",
        "euler",
        "euler-ancestral",
        "heun",
        "lcm",
        "pndm",
        "unipc",
    ]
    | None,
    Field(description="Absent: the model's own. Flow models (Flux, SD 3) and Lightning keep theirs."),
]


def take_data_url(value: Any) -> Any:
    """The bytes of a data URL (RFC 2397), for whoever sends JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    if not value.startswith("data:"):
        text = "Input should be a file: a part with a file name, or a data URL in JSON; URLs are not fetched"
        raise PydanticCustomError("bytes_type", text)
    head, comma, text = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise bad_value("A file in JSON must be a data URL in base64: `data:image/png;base64,...`.")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise bad_value(f"The data URL is not base64: {error}.") from None


Upload: TypeAlias = Annotated[
    bytes,
    BeforeValidator(take_data_url),
    Field(
        strict=True,
        min_length=1,
        max_length=MAX_UPLOAD,
        exclude=True,
        json_schema_extra={"type": "string", "format": "binary"},
    ),
]
"""Bytes of a file part. What they are is found out from themselves."""


def check_divisible(height: int, width: int) -> None:
    """Raise for sizes that no latent picture has, in ai-runner's words."""
    if height % 8 or width % 8:
        text = f"`height` and `width` have to be divisible by 8 but are {height} and {width}."
        raise bad_value(text, "height" if height % 8 else "width")


def check_pixels(height: int, width: int, count: int, what: str) -> None:
    """Raise for more than `MAX_PIXELS`; ``what`` is the field that ``count`` comes from."""
    pixels = height * width * count
    if pixels > MAX_PIXELS:
        raise bad_value(
            f"height, width and {what} are {height}, {width} and {count}: {pixels} pixels; a request may "
            f"make {MAX_PIXELS} at most.",
            what,
        )


# -- LoRAs ---------------------------------------------------------------------------------------------


def _parse_loras(value: Any) -> Any:
    """An object of strengths, or the text of one, with ai-runner's messages."""
    if isinstance(value, str):
        text = value
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise bad_value(f"Unable to parse '{text[:200]}' as JSON.") from None
        if not isinstance(value, dict):
            raise bad_value(f"Unable to parse '{text[:200]}' as JSON.")
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LORAS:
        raise bad_value(f"Too many LoRas provided. Maximum is {MAX_LORAS}.")
    if not all(_is_strength(strength) for strength in value.values()):
        raise bad_value("All strengths must be numbers greater than or equal to 0.0.")
    return value


def _is_strength(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value >= 0 and math.isfinite(value)


Loras: TypeAlias = Annotated[
    dict[str, float],
    BeforeValidator(_parse_loras),
    Field(
        json_schema_extra={"type": ["string", "object"]},
        description=f"Strengths by repository, as an object or its text; at most {MAX_LORAS}.",
    ),
]


# -- JSON in strings -----------------------------------------------------------------------------------


def json_field(name: str) -> BeforeValidator:
    """Takes a value, or its JSON as text; complains as ai-runner does."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad_value(f"Error parsing JSON for {name}: {error}") from None

    return BeforeValidator(parse)


def _take_one_stop(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings: TypeAlias = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=500)]],
    BeforeValidator(_take_one_stop),
    Field(max_length=8, json_schema_extra={"type": ["string", "array"]}),
]
