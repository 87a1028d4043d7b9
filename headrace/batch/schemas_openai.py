"""What the paths of OpenAI's interface take. Fields of theirs that are not here are ignored; those without
which the answer would not be what the client reads are refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from headrace.batch.fields import (
    MAX_IMAGES,
    MAX_PROMPT,
    ModelId,
    Prompt,
    Request,
    Seed,
    Upload,
    bad_value,
)
from headrace.batch.schemas_text import MAX_SPEECH, Language, Llm, Message

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def _refuse(value: Any, info: ValidationInfo) -> Any:
    if value:
        raise bad_value(f"{info.field_name} is {str(value)[:40]}; it cannot be had here, leave it out.")
    return value


_NOT_HERE = Field(exclude=True, description="Cannot be had here: absent, false or empty.")
NoSwitch = Annotated[bool, AfterValidator(_refuse), _NOT_HERE]
NoCount = Annotated[int, AfterValidator(_refuse), _NOT_HERE]
NoMap = Annotated[dict[str, Any], AfterValidator(_refuse), _NOT_HERE]

_OWN = "Where absent, as the model's generation_config.json says, else {}."


class _Sampled(Llm):
    """What is said by a model of which the request does not say how."""

    logit_bias: NoMap = {}  # noqa: RUF012 (pydantic copies defaults)
    temperature: Annotated[float | None, Field(ge=0, le=2, description=_OWN.format(1))] = None  # type: ignore[assignment]
    top_p: Annotated[float | None, Field(ge=0, le=1, description=_OWN.format(1))] = None  # type: ignore[assignment]
    top_k: Annotated[int | None, Field(ge=-1, le=10_000, description=_OWN.format("-1: all"))] = None  # type: ignore[assignment]


class ChatCompletion(_Sampled):
    """A conversation, to be continued."""

    logprobs: NoSwitch = False
    top_logprobs: NoCount = 0
    max_tokens: Annotated[
        int, Field(ge=1, le=32768, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    ] = 1024


def _take_only_text(value: Any) -> Any:
    """The text of a list that has one, as some clients send it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class TextCompletion(_Sampled):
    """A text, to be continued."""

    logprobs: NoCount = 0
    echo: NoSwitch = False
    suffix: Annotated[str, AfterValidator(_refuse), _NOT_HERE] = ""
    best_of: Annotated[int, Field(ge=1, le=1, exclude=True)] = 1
    messages: Annotated[list[Message], Field(exclude=True)] = []  # noqa: RUF012 (pydantic copies defaults)
    prompt: Annotated[
        str,
        BeforeValidator(_take_only_text),
        Field(min_length=1, max_length=MAX_PROMPT, json_schema_extra={"type": ["string", "array"]}),
    ]

    def inputs(self) -> dict[str, Any]:
        return {name: value for name, value in super().inputs().items() if name != "messages"}


class ImageGeneration(Request):
    """Pictures from a text."""

    prompt: Prompt
    model: ModelId = ""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: Annotated[str, Field(description="WIDTHxHEIGHT in pixels, multiples of 8; or auto")] = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png"] = "png"
    stream: NoSwitch = False
    seed: Seed = None

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: str) -> str:
        if size != "auto" and not _SIZE.fullmatch(size):
            raise bad_value(f"size is {size[:40]!r}; it must be WIDTHxHEIGHT, as in 1024x1024, or auto.")
        return size

    def native(self) -> dict[str, Any]:
        """The fields of ``/text-to-image`` that ask for the same."""
        fields: dict[str, Any] = {"prompt": self.prompt, "model_id": self.model, "seed": self.seed}
        if found := _SIZE.fullmatch(self.size):
            fields |= {"width": int(found[1]), "height": int(found[2])}
        else:
            fields |= {"width": 1024, "height": 1024}
        return {**fields, "num_images_per_prompt": self.n}


class Transcription(Request):
    """What is said in a recording."""

    file: Upload
    model: ModelId = ""
    language: Language = None
    prompt: Prompt = ""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    stream: NoSwitch = False
    include: Annotated[list[str], Field(alias="include[]"), AfterValidator(_refuse), _NOT_HERE] = []  # noqa: RUF012
    timestamp_granularities: Annotated[
        list[Literal["word", "segment"]], Field(alias="timestamp_granularities[]", max_length=2)
    ] = []  # noqa: RUF012 (pydantic copies defaults)

    def native(self) -> dict[str, Any]:
        """The fields of ``/audio-to-text`` that ask for the same."""
        word = self.response_format == "verbose_json" and "word" in self.timestamp_granularities
        return {
            "audio": self.file,
            "model_id": self.model,
            "language": self.language,
            "prompt": self.prompt,
            "temperature": self.temperature,
            "return_timestamps": "word" if word else "true",
        }


class SpeechRequest(Request):
    """A text, spoken."""

    input: Annotated[str, Field(min_length=1, max_length=MAX_SPEECH)]
    model: ModelId = ""
    voice: str | dict[str, Any] = ""
    instructions: Annotated[str, Field(max_length=2000)] = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio"] = "audio"

    @model_validator(mode="after")
    def _check_voice(self) -> Self:
        if isinstance(self.voice, dict):
            self.voice = str(self.voice.get("id", ""))
        return self

    def native(self) -> dict[str, Any]:
        """The fields of ``/text-to-speech`` that ask for the same."""
        return {
            "text": self.input,
            "model_id": self.model,
            "voice": self.voice,
            "description": self.instructions,
            "speed": self.speed,
        }
