"""What the endpoints answer with. Used for the OpenAPI document and for checking answers in tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class Adjusted(BaseModel):
    """A value that the model cannot use as asked for, and what was used instead."""

    field: str
    asked: float
    used: float
    reason: str


class Answer(BaseModel):
    """What every answer has besides its own."""

    weights: str = Field("real", description="real, random, or substitute:NAME")
    adjusted: list[Adjusted] | None = Field(None, description="Only where something was clamped.")


class Media(BaseModel):
    """A picture or video: a data URL, or the URL of a file that is kept for a while."""

    url: str
    seed: int
    nsfw: bool


Safety = Annotated[
    Literal["checked", "unchecked", "off"] | None,
    Field(
        description="Whether a safety checker looked: `unchecked` where its model is not on this machine, "
        "`off` where none was asked for. Absent where nothing was drawn."
    ),
]


class Images(Answer):
    images: list[Media]
    safety: Safety = None


class Videos(Answer):
    """One MP4; with `frames` every picture too."""

    images: list[Media]
    frames: list[list[Media]] | None = None
    safety: Safety = None


class Text(Answer):
    text: str


class Chunk(BaseModel):
    """``timestamp``: begin and end in seconds; the last end may be null."""

    timestamp: list[float | None]
    text: str


class Transcript(Text):
    chunks: list[Chunk]
    language: str | None = None
    duration: float | None = None


class MediaUrl(BaseModel):
    url: str


class Speech(Answer):
    audio: MediaUrl


class Masks(Answer):
    """Strings that hold JSON: best mask first."""

    masks: str
    scores: str
    logits: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    tool_calls: list[dict[str, Any]] | None = None


class Choice(BaseModel):
    index: int
    finish_reason: str | None = Field(None, description="stop, length or tool_calls")
    message: ChatMessage | None = None
    delta: dict[str, Any] | None = Field(None, description="In pieces of a stream.")


class Chat(BaseModel):
    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    weights: str | None = Field(None, description="As in other answers; in a stream only in the header.")


class Accepted(BaseModel):
    """Answer 202 to `Prefer: respond-async`."""

    request_id: str


class ErrorText(BaseModel):
    msg: str


class ErrorTold(BaseModel):
    message: str
    type: str
    code: str
    param: str | None = None


class Error(BaseModel):
    """Any error but 422: in ai-runner's form and in OpenAI's."""

    detail: ErrorText
    error: ErrorTold


class Problem(BaseModel):
    type: str
    loc: list[str | int]
    msg: str
    input: Any = None


class ValidationError(BaseModel):
    """Answer 422: what is missing or has the wrong type."""

    detail: list[Problem]
    error: ErrorTold


class Event(BaseModel):
    """One state of a job."""

    request_id: str
    status: Literal["queued", "processing", "complete", "failed", "cancelled"]
    pipeline: str
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: ErrorTold | None = None
