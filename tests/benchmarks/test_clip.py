from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc.mock import barcode, clip

NUMBERS = st.integers(0, (1 << barcode.NUMBER_BITS) - 1)


@given(NUMBERS, st.integers(200, 800), st.integers(200, 800))
def test_a_number_reads_back_at_any_size(number: int, height: int, width: int) -> None:
    luma = np.full((height, width), 128, np.uint8)
    barcode.paint(luma, number)
    assert barcode.read(luma) == barcode.Mark(number)
    assert barcode.read(luma / 255.0) == barcode.Mark(number)
    assert barcode.read(255 - luma) == barcode.Mark(number, inverted=True)


@given(NUMBERS, st.integers(1, barcode.GRID**2 - 2))
def test_a_damaged_cell_is_never_another_number(number: int, cell: int) -> None:
    luma = np.full((400, 400), 128, np.uint8)
    barcode.paint(luma, number)
    row, column = 1 + cell // barcode.GRID, 1 + cell % barcode.GRID
    patch = luma[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20]
    patch[:] = barcode.BLACK + barcode.WHITE - patch[0, 0]
    assert barcode.read(luma) is None


def test_pictures_without_a_barcode_have_no_number() -> None:
    noise = np.random.default_rng(1)
    assert barcode.read(np.zeros((512, 512, 3), np.uint8)) is None
    assert not any(barcode.read(noise.integers(0, 255, (512, 512, 3), np.uint8)) for _ in range(50))


@pytest.mark.parametrize("size", [(512, 512), (1280, 720)])
def test_numbers_survive_one_megabit_and_a_centre_crop(size: tuple[int, int], tmp_path: Path) -> None:
    recipe = clip.Recipe(*size, seconds=1, bitrate=1_000_000)
    path = clip.cached(recipe, tmp_path)
    with av.open(path) as source:
        for number, frame in enumerate(source.decode(video=0)):
            picture = frame.to_ndarray(format="rgb24")
            assert barcode.read_number(picture) == number
            side = min(size)
            left = (size[0] - side) // 2
            square = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture[:, left : left + side]), format="rgb24"
            )
            small = square.reformat(512, 512, format="rgb24").to_ndarray()
            again = _encoded_again(small)
            assert barcode.read(again) == barcode.Mark(number)
            assert barcode.read(_encoded_again(255 - small)) == barcode.Mark(number, inverted=True)
    assert number == 29


def _encoded_again(picture: np.ndarray) -> np.ndarray:
    """Through x264 at its coarsest usable quantiser."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as output:
        stream = output.add_stream("libx264", rate=30, options={"preset": "ultrafast", "qp": "40"})
        stream.height, stream.width = picture.shape[:2]
        output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    file.seek(0)
    with av.open(file) as source:
        return next(source.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[list[clip.Chunk]]:
    recipe = clip.Recipe(256, 256, seconds=3, key_every=1, bitrate=500_000)
    return clip.cut(clip.cached(recipe, tmp_path_factory.mktemp("clip")))


def test_chunks_number_every_frame_and_follow_the_clock(segments: list[list[clip.Chunk]]) -> None:
    chunks = [chunk for segment in segments for chunk in segment]
    assert len(segments) == 3
    numbered = [chunk for chunk in chunks if chunk.number is not None]
    assert [chunk.number for chunk in numbered] == list(range(90))
    assert [chunk.due for chunk in numbered] == pytest.approx([n / 30 for n in range(90)], abs=1e-4)
    assert all(len(chunk.data) % clip.TS_PACKET == 0 for chunk in chunks)


def test_each_segment_decodes_alone_with_its_own_numbers(segments: list[list[clip.Chunk]]) -> None:
    for index, segment in enumerate(segments):
        with av.open(io.BytesIO(b"".join(chunk.data for chunk in segment))) as source:
            pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        assert [barcode.read_number(p) for p in pictures] == list(range(index * 30, index * 30 + 30))


def test_a_frame_is_complete_at_the_end_of_its_chunk(segments: list[list[clip.Chunk]]) -> None:
    first, second = segments[0][:2]
    with av.open(io.BytesIO(first.data + second.data)) as source:
        assert [barcode.read_number(f.to_ndarray(format="rgb24")) for f in source.decode(video=0)] == [0, 1]


def test_all_segments_together_are_one_stream_with_sound(segments: list[list[clip.Chunk]]) -> None:
    whole = b"".join(chunk.data for segment in segments for chunk in segment)
    with av.open(io.BytesIO(whole)) as source:
        times = [packet.pts for packet in source.demux(video=0) if packet.pts is not None]
    with av.open(io.BytesIO(whole)) as source:
        heard = sum(frame.samples for frame in source.decode(audio=0))
    assert times == [clip.START + n * 3000 for n in range(90)]
    assert heard == pytest.approx(3 * clip.SAMPLE_RATE, rel=0.03)
