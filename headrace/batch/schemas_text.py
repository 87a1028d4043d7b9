"""What the endpoints of sound and language take."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from headrace.batch.fields import (
    Delivery,
    ModelId,
    Prompt,
    Request,
    Seed,
    StopStrings,
    Upload,
    bad_value,
)

DESCRIPTION = (
    "A male speaker delivers a slightly expressive and animated speech with a moderate speed and pitch."
)
TIMESTAMPS = {"true": "segment", "1": "segment", "sentence": "segment", "segment": "segment"} | {
    "false": "none",
    "0": "none",
    "word": "word",
}
MAX_SPEECH = 10_000
"""Characters that are spoken for one request."""
MAX_MESSAGES = 1024
MAX_CHAT = 2_000_000
"""Characters of all messages together."""
Language = Annotated[
    str | None, Field(max_length=40, pattern=r"^[A-Za-z][A-Za-z_ -]*$", description="Absent: found out.")
]


class AudioToText(Request):
    """What is said in a recording. A gateway's `metadata` is not needed and not looked at."""

    audio: Upload
    model_id: ModelId = ""
    return_timestamps: Annotated[
        str, Field(exclude=True, description="true or sentence, word, false; in any case")
    ] = "true"
    language: Language = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: Prompt = ""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0

    @field_validator("return_timestamps")
    @classmethod
    def _check_timestamps(cls, value: str) -> str:
        if value.lower() not in TIMESTAMPS:
            raise bad_value(f"return_timestamps is {value[:40]!r}; it must be true, false, sentence or word.")
        return value.lower()

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "timestamps": TIMESTAMPS[self.return_timestamps]}


class TextToSpeech(Request):
    """A text, spoken."""

    text: Annotated[str, Field(max_length=MAX_SPEECH)] = ""
    model_id: ModelId = ""
    description: Annotated[str, Field(max_length=2000, description="How it is spoken, in words.")] = (
        DESCRIPTION
    )
    voice: Annotated[str, Field(max_length=200)] = ""
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    seed: Seed = None
    delivery: Delivery = "data_url"

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if not self.text.strip():
            raise bad_value("Text input must be provided.", "text")
        return self


class Message(BaseModel):
    """One message of a conversation, in OpenAI's form."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class Llm(Request):
    """A conversation, to be continued. ai-runner's fields and OpenAI's."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[ModelId, Field(validation_alias=AliasChoices("model", "model_id"))] = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    max_tokens: Annotated[
        int, Field(ge=1, le=32768, validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))
    ] = 256
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=10_000, description="-1: all")] = -1
    stream: Annotated[bool, Field(exclude=True)] = False
    stop: Annotated[StopStrings | None, Field(description="Texts before which the answer ends.")] = None
    seed: Seed = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=128)] = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    n: Annotated[int, Field(ge=1, le=1, exclude=True)] = 1
    stream_options: Annotated[dict[str, Any] | None, Field(exclude=True)] = None

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        length = sum(_length(message.content) for message in self.messages)
        if length > MAX_CHAT:
            raise bad_value(f"messages have {length} characters; at most {MAX_CHAT} are taken.", "messages")
        return self

    def inputs(self) -> dict[str, Any]:
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        return {**super().inputs(), "messages": messages, "stop": self.stop or []}


def _length(content: str | list[dict[str, Any]] | None) -> int:
    if isinstance(content, list):
        return sum(len(text) for part in content if isinstance(text := part.get("text"), str))
    return len(content or "")
