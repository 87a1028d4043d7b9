"""What `POST /workflows/{id}/run` takes, and what it answers with where JSON is asked for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from headrace.batch.fields import MAX_UPLOAD, Request, json_field, take_data_url
from stream.requests import MAX_SIZE, MIN_SIZE

Bytes = Annotated[bytes, Field(strict=True, min_length=1, max_length=MAX_UPLOAD)]
File = Annotated[
    Bytes | None,
    BeforeValidator(take_data_url),
    Field(json_schema_extra={"type": "string", "format": "binary"}),
]
Side = Annotated[int | None, Field(ge=MIN_SIZE, le=MAX_SIZE)]


class WorkflowRun(Request):
    """A workflow over one picture or clip.

    A workflow without picture input takes neither.
    """

    image: Annotated[File, Field(description="A picture: PNG, JPEG, WebP and others.")] = None
    video: Annotated[File, Field(description="A clip: MP4, MOV, WebM, MKV, AVI, MPEG-TS.")] = None
    params: Annotated[
        dict[str, Any],
        json_field("params"),
        Field(description="Live parameters of the workflow, as an object or its text."),
    ] = {}  # noqa: RUF012 (pydantic copies defaults)
    width: Side = None
    height: Side = None
    bitrate: Annotated[
        int, Field(ge=50_000, le=100_000_000, description="Of a clip that comes out, bits per second.")
    ] = 6_000_000


class RunImage(BaseModel):
    """A picture that came out."""

    url: Annotated[str, Field(description="A data URL.")]
    width: int
    height: int


class RunVideo(BaseModel):
    """The clip that came out, as MP4."""

    url: Annotated[str, Field(description="A data URL.")]


class Said(BaseModel):
    """A text, or data, of the workflow, and the time of its frame in seconds."""

    text: str | None = None
    data: Any = None
    time: float | None = None


class RunAnswer(BaseModel):
    """All that a run gave."""

    frames: Annotated[int, Field(description="Frames that were worked on.")]
    images: list[RunImage] | None = None
    video: RunVideo | None = None
    texts: list[Said]
    data: list[Said]
