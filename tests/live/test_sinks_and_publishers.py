"""Sinks and publishers that come and go while a session runs, through the real codecs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest

from stream.codecs.audio_encoder import AudioEncoder
from stream.codecs.video_decoder import VideoDecoder
from stream.codecs.video_encoder import VideoEncoder, VideoEncoderSettings
from stream.codecs.vp8_encoder import Vp8Encoder
from stream.encoding_parts import EncodingSettings
from stream.errors import Conflict, SinkError
from stream.frames import AudioFrame, Picture
from stream.ingest import BYE, Ingest
from stream.mpegts import AccessUnit
from stream.pattern_session import NoSideChannels
from stream.pipeline import PipelineSettings
from stream.processor import FrameProcessor
from stream.session import Session, SessionSettings
from stream.units import EncodedUnit, Rendition

TICKS, FPS = 90_000, 30
ENCODING = EncodingSettings(video=VideoEncoderSettings(hardware="off", bitrate=400_000))
HIGH = Rendition(purpose="viewers")
SMALL = Rendition(profile="constrained_baseline", purpose="viewers_low", max_size=(64, 48))
VP8 = Rendition(codec="vp8", purpose="viewers")
HANG = 20.0


@dataclass(eq=False)
class Viewer:
    """A sink that keeps what it gets."""

    rendition: Rendition | None = HIGH
    breaks: bool = False
    units: list[EncodedUnit] = field(default_factory=list)
    expected: list[tuple[bool, bool]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False

    def expect(self, *, video: bool, audio: bool) -> None:
        self.expected.append((video, audio))

    def offer(self, unit: EncodedUnit) -> None:
        if self.breaks:
            raise RuntimeError("no room")
        self.units.append(unit)

    def end(self) -> None:
        self.ended.set()

    async def run(self) -> None:
        try:
            await self.ended.wait()
        finally:
            self.left = True

    @property
    def pictures(self) -> list[EncodedUnit]:
        return [unit for unit in self.units if unit.kind == "video"]

    @property
    def sounds(self) -> list[EncodedUnit]:
        return [unit for unit in self.units if unit.kind == "audio"]


class Publisher:
    """Encodes a moving picture and a tone in real time and puts them into an ingest."""

    def __init__(self, ingest: Ingest, name: str, *, start: int, codec: str = "h264") -> None:
        self.feed = ingest.publish(name, on_replaced=self._replaced)
        self.replaced = False
        self.wishes = 0
        self._codec = codec
        self._start = start
        self._key = True
        self._lost: set[int] = set()
        settings = VideoEncoderSettings(hardware="off", bitrate=300_000, key_interval=3600)
        self._video = (Vp8Encoder if codec == "vp8" else VideoEncoder)(settings, 128, 96)
        self._audio = AudioEncoder()
        self.feed.wants_key = self._wanted
        self.feed.tracks(video=True, audio=True)

    def _replaced(self) -> None:
        self.replaced = True

    def _wanted(self) -> None:
        self.wishes += 1
        self._key = True

    async def play(self, seconds: float, *, lose: range = range(0)) -> None:
        begun = time.monotonic()
        for index in range(int(seconds * FPS)):
            await asyncio.sleep(begun + index / FPS - time.monotonic())
            self._put_picture(index, lost=index in lose)
            self._put_sound(index)

    def _put_picture(self, index: int, *, lost: bool) -> None:
        rgb = np.full((96, 128, 3), 60, np.uint8)
        rgb[:, index % 100 : index % 100 + 20] = (200, 80, 40)
        pts = self._start + index * TICKS // FPS
        key, self._key = self._key, False
        for unit in self._video.encode(Picture.from_rgb(rgb), pts, key=key):
            if not lost:
                self._put("video", self._codec, unit, discontinuity=index - 1 in self._lost)
        self._lost = {index} if lost else set()

    def _put_sound(self, index: int) -> None:
        count = 48_000 // FPS
        samples = np.sin(np.arange(index * count, (index + 1) * count) / 20).astype(np.float32)[None] * 0.3
        at = self._start + index * TICKS // FPS
        for unit in self._audio.encode(
            AudioFrame(samples, at, Fraction(1, TICKS), rate=48_000, layout="mono")
        ):
            self._put("audio", "opus", unit)

    def _put(self, kind: str, codec: str, unit: EncodedUnit, discontinuity: bool = False) -> None:
        now = time.monotonic_ns()
        self.feed.put(
            AccessUnit(1, codec, kind, unit.data, unit.pts, unit.pts, now, unit.key, discontinuity, 1)
        )


@contextlib.asynccontextmanager
async def session_of(ingest: Ingest, **settings: object) -> AsyncIterator[Session]:
    chosen = SessionSettings(pipeline=PipelineSettings(encoding=ENCODING), **settings)
    session = Session("one", ingest, FrameProcessor(), NoSideChannels(), chosen)
    running = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        session.stop("the test is over")
        await asyncio.wait_for(running, HANG)


async def until(wanted, timeout: float = HANG) -> None:
    end = time.monotonic() + timeout
    while not wanted():
        assert time.monotonic() < end, "still not so"
        await asyncio.sleep(0.02)


def decoded(units: list[EncodedUnit]) -> list[tuple[int, int]]:
    """The sizes of the pictures; every unit must be one."""
    decoder = VideoDecoder(units[0].codec, hardware="off")
    frames = []
    for unit in units:
        frames += decoder.decode(
            AccessUnit(1, unit.codec, "video", unit.data, unit.pts, unit.pts, 1, unit.key)
        )
    assert len(frames) == len(units)
    assert decoder.errors == 0
    return [(frame.width, frame.height) for frame in frames]


@pytest.fixture
def encoder_calls(monkeypatch) -> dict[object, int]:
    """How often the encoder of each rendition was called."""
    calls: dict[object, int] = {}
    for encoder in (VideoEncoder, Vp8Encoder):

        def counted(self, *args, _real=encoder.encode, **kwargs):
            calls[self._rendition] = calls.get(self._rendition, 0) + 1
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(encoder, "encode", counted)
    return calls


async def test_viewers_join_and_leave_and_nothing_is_encoded_for_nobody(encoder_calls):
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        seen: list[int] = []
        session.pipeline.encoding.taps.append(lambda picture, pts: seen.append(pts))
        publisher = Publisher(ingest, "camera", start=1000)
        playing = asyncio.create_task(publisher.play(60))
        try:
            await until(lambda: session.pipeline.figures.counts.frames_out > 10)
            counts = session.pipeline.figures.counts
            assert set(encoder_calls) == {None}  # the publisher's own
            assert len(seen) > 5
            first, second = Viewer(), Viewer()
            session.attach(first)
            await until(lambda: len(first.pictures) > 15)
            session.attach(second)
            await until(lambda: len(second.pictures) > 15)
            session.detach(first)
            session.detach(first)
            await until(lambda: first.left)
            got = len(first.units)
            session.detach(second)
            await until(lambda: second.left and not session.sinks)
            await asyncio.sleep(0.2)
            calls, out = encoder_calls[HIGH], counts.frames_out
            await until(lambda: counts.frames_out > out + 15)
            assert encoder_calls[HIGH] == calls
            assert len(first.units) == got
            assert session.pipeline.encoding.report() == []
            third = Viewer()
            session.attach(third)
            await until(lambda: len(third.pictures) > 5 and len(third.sounds) > 5)
            for viewer in (first, second, third):
                assert viewer.pictures[0].key
                assert viewer.expected[0] == (True, True)
                assert set(decoded(viewer.pictures)) == {(128, 96)}
            # Encoded once for both: the very same units.
            shared = {id(u) for u in first.pictures} & {id(u) for u in second.pictures}
            assert shared
            latency = session.pipeline.figures.latency.summary()
            assert {"decode", "wait", "process", "encode", "received_to_encoded"} <= latency.keys()
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
    assert third.ended.is_set()


async def test_two_renditions_run_side_by_side_each_to_its_own_viewers(encoder_calls):
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        viewers = [Viewer(HIGH), Viewer(HIGH), Viewer(SMALL), Viewer(VP8), Viewer(None)]
        handles = [session.attach(viewer) for viewer in viewers]
        publisher = Publisher(ingest, "camera", start=0)
        await publisher.play(1.5)
        high, _, small, vp8, sound = viewers
        await until(lambda: all(len(v.pictures) > 20 for v in viewers[:4]) and len(sound.sounds) > 20)
        assert sound.pictures == []
        assert handles[4] is None
        assert set(decoded(high.pictures)) == {(128, 96)}
        assert set(decoded(small.pictures)) == {(64, 48)}
        assert set(decoded(vp8.pictures)) == {(128, 96)}
        for viewer in viewers[:4]:
            assert {unit.rendition for unit in viewer.pictures} == {viewer.rendition}
        assert abs(encoder_calls[HIGH] - len(high.pictures)) <= 2
        made = {unit.source for unit in high.pictures if not (unit.repeat or unit.overlay)}
        assert made <= {index * 3000 for index in range(60)}
        assert handles[0].parameters.width == 128
        handles[0].set_bitrate(900_000)
        handles[1].set_bitrate(500_000)
        assert handles[0].bitrate == 500_000
        session.detach(viewers[1])
        assert handles[0].bitrate == 900_000


async def test_a_publisher_leaves_comes_back_and_is_replaced_and_viewers_go_on():
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        viewer = Viewer()
        session.attach(viewer)
        before = Publisher(ingest, "obs", start=500_000)
        await before.play(1)
        before.feed.close("the connection was lost")
        await asyncio.sleep(0.6)
        assert session.ending is None
        assert session.publisher is None
        count = len(viewer.pictures)
        again = Publisher(ingest, "obs", start=7)
        await again.play(1)
        other = Publisher(ingest, "phone", start=80_000_000, codec="vp8")
        assert again.replaced
        await other.play(1)
        await until(lambda: len(viewer.pictures) > count + 40)
        pts = [unit.pts for unit in viewer.pictures]
        sounds = [unit.pts for unit in viewer.sounds]
        assert pts == sorted(set(pts))
        assert sounds == sorted(set(sounds))
        # One timeline: no jump to the other publishers' own times.
        assert pts[-1] - pts[0] < 10 * TICKS
        assert abs(pts[-1] - sounds[-1]) < TICKS
        assert any(unit.repeat for unit in viewer.pictures)
        fresh = {unit.source for unit in viewer.pictures} - {None}
        assert any(source < 100_000 for source in fresh)
        assert any(source >= 80_000_000 for source in fresh)
        assert len(decoded(viewer.pictures)) > 60
        other.feed.close("gone")


async def test_loss_makes_the_publisher_be_asked_for_a_key_picture_at_most_twice_a_second():
    ingest = Ingest(grace=HANG)
    async with session_of(ingest):
        publisher = Publisher(ingest, "camera", start=0)
        # The wish for the first picture comes while it is under way.
        await publisher.play(0.7)
        wishes = publisher.wishes
        await publisher_continues(publisher)
        assert wishes + 1 <= publisher.wishes <= wishes + 3


async def publisher_continues(publisher: Publisher) -> None:
    publisher._start += 21 * 3000
    await publisher.play(1.0, lose=range(3, 6))


async def test_what_publishers_do_ends_the_session_only_when_it_should():
    ingest = Ingest(grace=0.3, end_on_bye=True)
    session = Session("one", ingest, FrameProcessor(), NoSideChannels(), SessionSettings())
    running = asyncio.create_task(session.run())
    heard: list[tuple[str, object]] = []
    session.listen(lambda kind, what: heard.append((kind, what)))
    viewer = Viewer()
    session.attach(viewer)
    publisher = Publisher(ingest, "obs", start=0)
    await asyncio.sleep(0.5)
    publisher.feed.close(BYE)
    await asyncio.wait_for(running, HANG)
    assert session.ending.error is None
    assert session.ending.reason == "the publisher has ended the stream"
    assert viewer.left
    assert heard[-1] == ("ended", {"reason": session.ending.reason, "error": None})
    with pytest.raises(Conflict):
        session.attach(Viewer())


@dataclass(eq=False)
class Fails(Viewer):
    async def run(self) -> None:
        await asyncio.sleep(0.1)
        raise SinkError("the other side has gone")


async def test_a_viewer_that_fails_leaves_and_an_essential_sink_ends_the_session():
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        steady = Viewer()
        for viewer in (steady, Viewer(breaks=True), Fails()):
            session.attach(viewer)
        publisher = Publisher(ingest, "camera", start=0)
        await publisher.play(1)
        await until(lambda: session.sinks == (steady,))
        assert len(steady.pictures) > 10
        assert session.ending is None
        session.attach(Fails(), essential=True)
        await until(lambda: session.ending is not None)
        assert session.ending.error.message == "the other side has gone"
    assert steady.left


async def test_an_encoder_that_cannot_be_opened_costs_only_its_own_viewers(monkeypatch):
    def broken(self, *args, **kwargs):
        raise SinkError("no such encoder")

    monkeypatch.setattr(Vp8Encoder, "__init__", broken)
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        steady, lost = Viewer(HIGH), Viewer(VP8)
        session.attach(steady)
        session.attach(lost)
        await Publisher(ingest, "camera", start=0).play(1)
        await until(lambda: session.sinks == (steady,))
        assert len(steady.pictures) > 10
        assert session.ending is None


async def test_what_a_session_says_reaches_listeners_until_they_stop():
    ingest = Ingest(grace=HANG)
    async with session_of(ingest) as session:
        heard: list[tuple[str, object]] = []
        stop = session.listen(lambda kind, what: heard.append((kind, what)))
        session.listen(lambda kind, what: 1 / 0)
        session.processor.emit("text", "hello")
        session.processor.emit("event", {"type": "mine"})
        await until(lambda: len(heard) == 2)
        applied = await session.update_params({})
        assert ("params", {"params": {}, "frame": applied["frame"]}) in heard
        stop()
        stop()
        count = len(heard)
        await session.update_params({})
        assert len(heard) == count
    assert heard[0][0] == "data"
    assert heard[1] == ("event", {"type": "mine"})
