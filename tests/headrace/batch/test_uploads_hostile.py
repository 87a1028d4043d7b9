"""Uploads that were made to do something else than to be looked at or listened to."""

from __future__ import annotations

import io
import socket
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.batch.errors import UnsupportedMedia
from headrace.batch.pipelines.audio_decoding import decode_audio
from headrace.batch.pipelines.pictures import MAX_PIXELS, read_picture
from stream.errors import HeadraceError, TooLarge

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def picture_file(kind: str, mode: str = "RGB") -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, kind)
    return file.getvalue()


PICTURES = [picture_file(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]


# -- sound ---------------------------------------------------------------------------------------------


def test_a_list_of_files_is_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with wave.open(str(tmp_path / "own.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"\1\2" * 1600)
    assert decode_audio((tmp_path / "own.wav").read_bytes(), 16_000).size == 1600
    with pytest.raises(UnsupportedMedia):
        decode_audio(b"ffconcat version 1.0\nfile 'own.wav'\n", 16_000)


def test_a_description_of_a_call_opens_no_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    media = f"m=audio {port} RTP/AVP 0"
    lines = ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0", media, "")
    with pytest.raises(UnsupportedMedia):
        decode_audio("\r\n".join(lines).encode(), 16_000)


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/a.ts", "file:///etc/passwd"])
def test_a_playlist_fetches_nothing(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = scheme.format(port=server.getsockname()[1])
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{url}\n#EXT-X-ENDLIST\n"
        with pytest.raises(UnsupportedMedia):
            decode_audio(text.encode(), 16_000)
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


# -- pictures ------------------------------------------------------------------------------------------


def test_a_program_is_no_picture() -> None:
    Image.init()
    assert Image.open(io.BytesIO(EPS)).format == "EPS"
    with pytest.raises(UnsupportedMedia, match="image is not a picture"):
        read_picture(EPS, "image")


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(file, "PNG")
    assert len(file.getvalue()) < 1 << 20
    with pytest.raises(TooLarge, match=str(MAX_PIXELS)):
        read_picture(file.getvalue(), "image")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PICTURES), st.data())
def test_broken_pictures_are_read_or_refused_and_nothing_else(file: bytes, data: st.DataObject) -> None:
    broken = bytearray(file)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(broken), 160) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    try:
        assert read_picture(bytes(broken[: data.draw(st.integers(1, len(broken)))]), "image").shape[2] == 3
    except HeadraceError as error:
        assert error.status in (413, 415)


def test_whatever_a_decoder_raises_is_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to decode frame 0: Decoding of color planes failed")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(UnsupportedMedia, match="color planes"):
        read_picture(PICTURES[0], "image")


def test_grey_of_sixteen_bits_keeps_its_shades() -> None:
    ramp = np.arange(0, 65_536, 256, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    assert np.array_equal(read_picture(file.getvalue(), "image")[..., 1], ramp >> 8)
