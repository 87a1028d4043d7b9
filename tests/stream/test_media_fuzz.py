"""Whatever comes as a segment or as a control message, a stream lives on and nothing is left behind.

``FUZZ_EXAMPLES=5000 pytest tests/stream/test_media_fuzz.py`` runs each test that often.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import pytest
from codec_media import encoded_audio, encoded_video, ffmpeg_ts
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from stream.decoding import UnitDecoding
from stream.errors import InvalidInput
from stream.frames import AudioFrame, VideoFrame
from stream.mpegts import AccessUnit, TsDemuxer
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor, Params
from stream.psi import ElementaryStream, build_pat, build_pmt
from stream.requests import StreamStart
from stream.session import Session, SessionSettings
from stream.trickle.channels import MAX_MESSAGE
from stream.trickle.live import trickle_session
from stream.trickle.server import TrickleServer, TrickleServerSettings

T = TypeVar("T")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
HANG = 20.0
MAX_GROWTH = 32 << 20
"""Bytes of resident memory that a test may add; allocators keep some."""
KEPT_PER_EXAMPLE = 100 << 10
"""Hypothesis remembers what it drew: so many bytes of memory for an example."""
PACKET = 188
VIDEO, AUDIO, PMT = 0x100, 0x101, 0x1000
PICTURES = 8

fuzz = settings(
    settings.default,
    max_examples=EXAMPLES or (settings.default.max_examples if settings.default else 100),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# -- segments ----------------------------------------------------------------------------------------------


def _clean_segments() -> list[bytes]:
    """Short segments of every codec that is read, with 8 pictures each."""
    x265 = {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none:pools=1"}
    h264 = encoded_video(PICTURES, 64, 48, gop=4)
    hevc = encoded_video(PICTURES, 64, 48, codec="libx265", gop=4, options=x265)
    aac, surround = encoded_audio(0.25), encoded_audio(0.25, "libopus", layout="5.1")
    return [
        ffmpeg_ts(h264, aac),
        ffmpeg_ts(h264, surround, audio_codec="opus", layout="5.1"),
        ffmpeg_ts(hevc, aac, video_codec="hevc"),
    ]


CLEAN = _clean_segments()

# Tables and parameter sets stand at the beginning, so that is damaged more often than chance would have it.
places = st.floats(0, 1, exclude_max=True) | st.integers(0, 6 * PACKET)
damage = st.tuples(
    st.sampled_from(["flip", "flip", "flip", "cut", "insert", "packets gone", "duplicate", "reorder"]),
    places,
    st.binary(min_size=1, max_size=40),
)
stream_types = st.sampled_from([0x1B, 0x24, 0x0F, 0x06, 0x11, 0x81])
bodies = st.sampled_from([b"", b"\x05\x04Opus\x7f\x02\x80\x01", b"\x05\x04Opus\x7f\x02\x80\x08"])
elementary = st.builds(ElementaryStream, stream_types, st.sampled_from([VIDEO, AUDIO, 0x102, PMT, 0]), bodies)


def damaged(data: bytes, blows: list[tuple[str, float, bytes]]) -> bytes:
    """A transport stream after the blows, one after the other; the places are shares of it, or bytes."""
    result = bytearray(data)
    for kind, place, extra in blows:
        at = int(place * len(result)) if isinstance(place, float) else min(place, len(result))
        if kind == "flip":
            for offset, value in enumerate(extra[: len(result) - at]):
                result[at + offset] ^= value
        elif kind == "insert":
            result[at:at] = extra
        elif kind == "cut":
            del result[at : at + len(extra)]
        else:
            _shuffle(result, at - at % PACKET, kind, len(extra))
    return bytes(result)


def _shuffle(data: bytearray, at: int, kind: str, count: int) -> None:
    """Whole packets from ``at`` are lost, come twice or come in another order."""
    end = at + count * PACKET
    packets = [bytes(data[begin : begin + PACKET]) for begin in range(at, min(end, len(data)), PACKET)]
    if kind == "packets gone":
        packets = []
    elif kind == "duplicate":
        packets = [packet for packet in packets for _ in range(2)]
    else:
        random.Random(count).shuffle(packets)
    data[at:end] = b"".join(packets)


def with_tables(data: bytes, streams: list[ElementaryStream]) -> bytes:
    """The same under another, valid program map: what follows is not what it says."""
    sections = ((0, build_pat([(1, PMT)])), (PMT, build_pmt(1, VIDEO, streams)))
    packets = (
        bytes((0x47, 0x40 | pid >> 8, pid & 0xFF, 0x10)) + (b"\x00" + section).ljust(184, b"\xff")
        for pid, section in sections
    )
    # FFmpeg's service description and tables are the first three packets.
    return b"".join(packets) + data[3 * PACKET :]


clean = st.sampled_from(CLEAN)
mutated = st.builds(damaged, clean, st.lists(damage, min_size=1, max_size=6))
retitled = st.builds(with_tables, clean, st.lists(elementary, min_size=1, max_size=3))
segments = st.one_of(
    st.binary(max_size=600), mutated, mutated, retitled, st.builds(lambda a, b: a + b, mutated, mutated)
)


@pytest.fixture
def memory() -> Iterator[None]:
    """Bounds what all examples of a test may leave in memory."""
    before = resident()
    yield
    grown = resident() - before
    assert grown < MAX_GROWTH + fuzz.max_examples * KEPT_PER_EXAMPLE, f"{grown >> 20} MiB more than before"


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@dataclass
class Decoded:
    """What came of the segments; ``stamp`` marks the last one."""

    stamp: int
    pictures: list[VideoFrame]
    sounds: list[AudioFrame]

    def of_last(self) -> tuple[int, int]:
        """Pictures and stretches of sound of the last segment."""
        pictures, sounds = (
            sum(frame.timeline.received == self.stamp for frame in frames)
            for frames in (self.pictures, self.sounds)
        )
        return pictures, sounds


def decode(parts: list[bytes], chunk: int) -> Decoded:
    """Demultiplex and decode the segments as a live session does, the last one in one piece."""
    decoding = UnitDecoding(hardware="off")
    demuxer, stamp = TsDemuxer(), time.monotonic_ns()
    units: list[AccessUnit] = []
    for part in parts[:-1]:
        for at in range(0, len(part), chunk):
            units += demuxer.feed(part[at : at + chunk], stamp)
        units += demuxer.flush()
    units += demuxer.feed(parts[-1], stamp + 1) + demuxer.flush()
    for unit in units:
        decoding.put(unit)
    decoding.end()
    result = Decoded(stamp + 1, [], [])
    decoding.run(
        lambda frame: result.pictures.append(frame) is None, lambda sound: result.sounds.append(sound) is None
    )
    return result


@fuzz
@pytest.mark.descriptors
@given(st.lists(segments, min_size=1, max_size=3), st.integers(1, 3000), clean)
@example(
    [with_tables(CLEAN[0], [ElementaryStream(0x0F, VIDEO), ElementaryStream(0x1B, AUDIO)])], 188, CLEAN[0]
)
@example([with_tables(CLEAN[0], [ElementaryStream(0x24, VIDEO)])], 188, CLEAN[2])
@example([CLEAN[2], CLEAN[0]], 1, CLEAN[1])
def test_malformed_segments_are_passed_over_and_the_next_one_is_decoded_whole(
    memory: None, parts: list[bytes], chunk: int, last: bytes
) -> None:
    decoded = decode([*parts, last], chunk)
    pictures, sounds = decoded.of_last()
    event(f"pictures of malformed segments: {'some' if len(decoded.pictures) > pictures else 'none'}")
    assert pictures == PICTURES
    assert sounds >= 10


def test_damaged_segments_leave_no_memory_behind() -> None:
    dice = random.Random(7)
    kinds = ["flip", "flip", "cut", "insert", "packets gone", "duplicate", "reorder"]
    before = 0
    for number in range(250):
        blows = [
            (dice.choice(kinds), dice.random(), dice.randbytes(dice.randint(1, 40)))
            for _ in range(dice.randint(1, 6))
        ]
        decode([damaged(dice.choice(CLEAN), blows), dice.choice(CLEAN)], 1316)
        if number == 60:
            before = resident()
    assert resident() - before < MAX_GROWTH


# -- a live session ----------------------------------------------------------------------------------------


class Strict(FrameProcessor):
    """Knows three parameters, and acknowledges ``mark`` by setting it."""

    def __init__(self) -> None:
        super().__init__()
        self.mark: Any = None

    async def process_video_async(self, frame: VideoFrame) -> VideoFrame:
        return frame

    async def update_params(self, params: Params) -> None:
        for name in params:
            if name not in ("mark", "strength", "prompt"):
                raise InvalidInput(f"there is no {name}", field=name)
        if not isinstance(params.get("strength", 0.0), float):
            # What a careless processor does: its own error, of no kind that we know.
            raise KeyError(params["strength"])
        self.mark = params.get("mark", self.mark)


class LiveSession:
    """A session over a trickle server, both on a loop of their own, fed by plain requests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="live session")
        self._sequence = {"in": 0, "control": 0}
        self.processor = Strict()
        self.session: Session
        self._marks = 0

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG)

    def __enter__(self) -> LiveSession:
        self._thread.start()
        try:
            self.call(self._start())
            self.post("in", CLEAN[0])
            self.acknowledged()
            until(lambda: self.results > 0, "the first result")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            left = self.call(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        assert not left, f"left behind: {left}"

    async def _start(self) -> None:
        self._server = TrickleServer(TrickleServerSettings(port=0))
        await self._server.__aenter__()
        base = self._server.url.rstrip("/")
        self.port = int(base.rsplit(":", 1)[1])
        for name in ("in", "control", "out", "events"):
            self._server.create_channel(name, "video/mp2t" if name in ("in", "out") else "application/json")
        self._tasks_before = asyncio.all_tasks()
        names = {"subscribe": "in", "publish": "out", "control": "control", "events": "events"}
        urls = StreamStart.model_validate({f"{kind}_url": f"{base}/{name}" for kind, name in names.items()})
        chosen = SessionSettings(pipeline=PipelineSettings(width=64, height=48))
        self.session = trickle_session(
            "fuzzed", urls, self.processor, chosen, start_params={}, verify_tls=False
        )
        self._life = asyncio.create_task(self.session.run())

    async def _stop(self) -> list[str]:
        self.session.stop("the test is over")
        await asyncio.wait_for(self._life, HANG)
        await self._server.__aexit__(None, None, None)
        left = asyncio.all_tasks() - self._tasks_before - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=3)
        await self._loop.shutdown_default_executor()
        return [repr(task) for task in left]

    def post(self, channel: str, data: bytes) -> None:
        """A whole segment."""
        assert self._ask("POST", f"/{channel}/{self._next(channel)}", data) == 200

    def break_off(self, channel: str, data: bytes) -> None:
        """A segment whose publisher vanishes in the middle, and which somebody then closes for it.

        Left open, it would hold readers back until they give it up, since its publisher may come back.
        """
        number = self._next(channel)
        head = f"POST /{channel}/{number} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANG) as connection:
            connection.sendall(head.encode() + b"%x\r\n%s" % (len(data) + 10, data))
        until(lambda: self._ask("DELETE", f"/{channel}/{number}") == 200, "the segment that broke off")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _next(self, channel: str) -> int:
        number = self._sequence[channel]
        self._sequence[channel] = number + 1
        return number

    def acknowledged(self) -> None:
        """A well-formed message still takes effect, and the session still runs."""
        self._marks += 1
        wanted = f"mark {self._marks}"
        self.post("control", json.dumps({"mark": wanted}).encode())
        until(lambda: self.processor.mark == wanted or self.session.ending is not None, wanted)
        assert self.session.ending is None, self.session.ending

    @property
    def results(self) -> int:
        return self.session.pipeline.figures.result_rate.count

    def held(self) -> tuple[int, int]:
        """Tasks of the session, open descriptors; requests that are being answered are not counted."""

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        return self.call(tasks()), len(os.listdir("/proc/self/fd"))


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.001)


@pytest.fixture
def live(memory: None) -> Iterator[LiveSession]:
    """One session for all examples; at the end it holds no more than at the beginning, and still works."""
    with LiveSession() as made:
        # One of everything that is made once for good.
        made.post("control", b"{}")
        made.acknowledged()
        tasks, descriptors = made.held()
        yield made
        before, end = made.results, time.monotonic() + HANG
        while made.results == before:
            # As a live source does; what was sent faster than any reader reads is lost to it.
            assert time.monotonic() < end, "no result came after all the damage"
            made.post("in", CLEAN[0])
            time.sleep(0.1)
        made.acknowledged()
        slack = 4  # Long polls of the three readers come and go.
        until(
            lambda: made.held()[0] <= tasks + slack and made.held()[1] <= descriptors + slack,
            f"what was held before ({tasks} tasks, {descriptors} descriptors); now {made.held()}",
        )


odd = [10**400, -1, "\ud800", "\x00", "16", "passthrough", 1e308, {"keep": "alive"}]
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(odd)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(["strength", "prompt", "width", "height", "workflow", "keep", "type", ""])
params = st.dictionaries(names | st.text(max_size=8), values, max_size=4)
documents = (params | values).map(json.dumps).map(str.encode)
truncated = st.builds(lambda data, share: data[: int(share * len(data))], documents, st.floats(0, 1))
messages = st.one_of(
    documents, truncated, st.binary(max_size=200), st.builds(lambda a, b: a + b, documents, documents)
)
actions = st.tuples(
    st.sampled_from(["control", "control", "control", "in"]), messages, segments, st.integers(0, 9)
)


@fuzz
@pytest.mark.descriptors
@given(st.lists(actions, min_size=1, max_size=4))
@example([("control", b"[" * 100_000, b"", 1)])
@example([("control", b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"", 1)])
@example([("control", b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", b"", 1)])
@example([("control", b"9" * 10_000, b"", 1), ("control", b"\xff\xfe{\x00}\x00", b"", 1)])
@example([("control", b'{"strength": NaN}', b"", 1), ("control", b'{"strength": 1e999}', b"", 1)])
@example([("control", b'{"prompt": "' + b"x" * (MAX_MESSAGE - 100) + b'"}', b"", 1)])
@example([("control", b" " * (MAX_MESSAGE + 1), b"", 1), ("control", b"", b"", 1)])
@example([("in", b"", CLEAN[0][:1000], 0), ("control", b'{"strength"', b"", 0)])
def test_a_live_session_outlives_malformed_messages_and_segments(
    live: LiveSession, todo: list[tuple[str, bytes, bytes, int]]
) -> None:
    for channel, message, segment, dice in todo:
        send = live.break_off if dice == 0 else live.post
        send(channel, message if channel == "control" else segment)
    live.acknowledged()
