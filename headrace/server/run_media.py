"""The media of a run: what was uploaded, as frames; what came out, as files."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from headrace.batch.errors import UnsupportedMedia
from headrace.batch.pipelines.pictures import read_picture
from stream.errors import InvalidInput
from stream.frames import Picture
from stream.processor import Emission

MAX_EMISSIONS = 10_000
"""Texts and data of one run that are kept."""

PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
JSON, VIDEO = "application/json", "video/mp4"


@dataclass(slots=True)
class Made:
    """What a run gave: ``pictures`` or a ``video`` (MP4), and what the workflow said beside them."""

    pictures: list[Picture] = field(default_factory=list)
    video: bytes | None = None
    frames: int = 0
    said: list[Emission] = field(default_factory=list)

    def hear(self, emission: Emission) -> None:
        """Keep what the workflow says, up to `MAX_EMISSIONS`."""
        if len(self.said) < MAX_EMISSIONS:
            self.said.append(emission)


def picture_of(data: bytes) -> Picture:
    """An uploaded picture. Raises `UnsupportedMedia`, `TooLarge`."""
    return Picture.from_rgb(read_picture(data, "image"))


def container_of(data: bytes) -> str:
    """FFmpeg's name of the format of an uploaded clip; `UnsupportedMedia` for one that is not taken.

    The formats that FFmpeg guesses among include lists of other files, which no caller may have read.
    """
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data[:1] == b"G" and data[188:189] == b"G":
        return "mpegts"
    raise UnsupportedMedia("video is no MP4, MOV, WebM, MKV, AVI or MPEG-TS file", field="video")


def wanted_type(accept: str | None, *, video: bool) -> str:
    """What a caller accepts, of what there is: for a clip MP4, for a picture PNG, JPEG or WebP, for both JSON
    with data URLs. The first of the largest weight (RFC 9110, 12.5.1); `InvalidInput` where nothing fits.
    """
    known = [VIDEO, JSON] if video else [*PICTURES, JSON]
    best: tuple[float, str] | None = None
    for part in (accept or "*/*").split(","):
        kind, _, parameters = part.strip().lower().partition(";")
        weight = _weight(parameters)
        found = next((each for each in known if _fits(kind.strip(), each)), None)
        if found is not None and weight > 0 and (best is None or weight > best[0]):
            best = weight, found
    if best is None:
        raise InvalidInput(f"Accept names none of {', '.join(known)}", field="Accept")
    return best[1]


def _weight(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _fits(asked: str, offered: str) -> bool:
    return asked in ("*/*", offered) or (asked.endswith("/*") and offered.startswith(asked[:-1]))


def file_of(picture: Picture, kind: str = "image/png") -> bytes:
    """A picture as a file of that type."""
    from PIL import Image

    file = io.BytesIO()
    options: dict[str, Any] = {"compress_level": 3} if kind == "image/png" else {"quality": 92}
    Image.fromarray(picture.rgb().copy()).save(file, PICTURES[kind], **options)
    return file.getvalue()


def described(made: Made) -> dict[str, Any]:
    """All of it as JSON data: files as data URLs, texts and data with their times in seconds."""
    body: dict[str, Any] = {"frames": made.frames}
    if made.video is not None:
        body["video"] = {"url": _data_url(VIDEO, made.video)}
    else:
        body["images"] = [
            {
                "url": _data_url("image/png", file_of(picture)),
                "width": picture.width,
                "height": picture.height,
            }
            for picture in made.pictures
        ]
    for kind, name in (("text", "texts"), ("data", "data")):
        body[name] = [{kind: each.data, "time": each.time} for each in made.said if each.kind == kind]
    return body


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
