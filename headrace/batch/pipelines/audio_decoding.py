"""Recordings of any container and codec to samples, and samples to WAV files."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.batch.errors import UnsupportedMedia
from stream.errors import InvalidInput

Samples = npt.NDArray[np.float32]
"""One channel, -1 to 1."""

MAX_SECONDS = 2 * 3600
"""Of one recording. A few megabytes can hold days of silence."""
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,webm,wv"
)
"""FFmpeg's names of what is taken. Others (concat, sdp, hls) open the files and addresses that they name."""


def decode_audio(data: memoryview | bytes, rate: int, *, field: str = "audio") -> Samples:
    """The first audio stream as one channel of ``rate`` samples a second.

    Damage in the middle is passed over. Raises `UnsupportedMedia` for what has no audio that can be read, and
    `InvalidInput` beyond `MAX_SECONDS`.
    """
    import av

    parts: list[Samples] = []
    count = 0
    try:
        with av.open(
            io.BytesIO(data), metadata_errors="ignore", options={"format_whitelist": CONTAINERS}
        ) as container:
            if not container.streams.audio:
                raise UnsupportedMedia(f"{field} has no sound in it", field=field)
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in _frames(container, stream):
                for resampled in resampler.resample(frame):
                    part = resampled.to_ndarray().reshape(-1).astype(np.float32, copy=False)
                    parts.append(part)
                    count += part.size
                if count > MAX_SECONDS * rate:
                    raise InvalidInput(
                        f"{field} is longer than {MAX_SECONDS} s, which is the limit", field=field
                    )
    except (av.FFmpegError, ValueError) as error:
        # FFmpeg's number and the name of a file that has none help nobody.
        reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
        raise UnsupportedMedia(f"Unsupported audio format or malformed file: {reason}", field=field) from None
    if not count:
        raise UnsupportedMedia(
            f"Unsupported audio format or malformed file: no sound in {field}", field=field
        )
    return np.concatenate(parts)


def _frames(container: Any, stream: Any) -> Any:
    """Decoded frames, and a None that flushes the resampler."""
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue
    yield None


def wav(samples: Samples, rate: int) -> bytes:
    """A WAV file of 16 bits; what is beyond -1 to 1 is cut off."""
    limited = np.clip(np.nan_to_num(samples), -1.0, 1.0)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(limited * 32767).astype("<i2").tobytes())
    return file.getvalue()
