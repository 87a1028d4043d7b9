"""The nine endpoints: what each takes, and what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from headrace.batch import schemas, schemas_answers, schemas_text
from headrace.batch.answers import Delivery
from headrace.batch.bodies import Fields
from headrace.batch.fields import Request
from headrace.batch.service import Work
from headrace.batch.validation import parse_request


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. ``file``: the name of the part with the upload, for those that take multipart bodies.
    ``own_names``: what its callers call fields that have another name in the pipeline, for errors."""

    pipeline: str
    takes: type[Request]
    answers: type[BaseModel]
    file: str | None = None
    own_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/{self.pipeline}"

    @property
    def files(self) -> frozenset[str]:
        return frozenset() if self.file is None else frozenset({self.file})

    def parse(self, fields: Fields) -> Request:
        """The checked request. Raises as `parse_request` does."""
        return parse_request(self.takes, fields)


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.pipeline: endpoint
    for endpoint in (
        Endpoint("text-to-image", schemas.TextToImage, schemas_answers.Images),
        Endpoint("image-to-image", schemas.ImageToImage, schemas_answers.Images, "image"),
        Endpoint("image-to-video", schemas.ImageToVideo, schemas_answers.Videos, "image"),
        Endpoint("image-to-text", schemas.ImageToText, schemas_answers.Text, "image"),
        Endpoint("audio-to-text", schemas_text.AudioToText, schemas_answers.Transcript, "audio"),
        Endpoint("text-to-speech", schemas_text.TextToSpeech, schemas_answers.Speech),
        Endpoint("upscale", schemas.Upscale, schemas_answers.Images, "image"),
        Endpoint("segment-anything-2", schemas.SegmentAnything2, schemas_answers.Masks, "image"),
        Endpoint("llm", schemas_text.Llm, schemas_answers.Chat),
    )
}


def work_of(endpoint: Endpoint, request: Request, *, client: str = "", timeout: float | None = None) -> Work:
    """A checked request as the service takes it."""
    blobs = {} if endpoint.file is None else {endpoint.file: getattr(request, endpoint.file)}
    model = str(getattr(request, "model_id", "") or getattr(request, "model", ""))
    given = frozenset(request.model_fields_set)
    return Work(endpoint.pipeline, model, request.inputs(), blobs, given, client, timeout)


def delivery_of(request: Request) -> Delivery:
    """How the caller wants media."""
    delivery: Delivery = getattr(request, "delivery", "data_url")
    return delivery
