"""The shared memory of a session on the engine's side: frames that came, and where results are laid down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.engine import slots
from headrace.engine.host_frames import SlotFrame, put_audio, put_video
from headrace.engine.host_voice import Voice
from headrace.engine.link import Message
from stream.frames import AudioFrame, Plane, VideoFrame

MEDIA = ("video", "audio")
"""The messages that come with memory."""


@dataclass(frozen=True)
class Job:
    """A message for a session, with the memory that it came with."""

    op: str
    call: int
    body: dict[str, Any]
    memory: Plane | None = None


@dataclass(frozen=True)
class Laid:
    """Results that lie in shared memory: their headers, and the slots in the same order."""

    headers: list[dict[str, Any]]
    slots: list[slots.Slot]

    def send(self, voice: Voice, job: Job, taken: int, more: dict[str, Any]) -> None:
        """Answer ``job`` with them; ``taken``: when it was begun, `time.monotonic_ns`."""
        fds = [fd for slot in self.slots for fd in slot.announce()[1]]
        try:
            voice.answer(job.call, {"taken": taken, "frames": self.headers, **more}, fds)
        except BaseException:
            self.give_back()
            raise
        for slot in self.slots:
            slot.sent()

    def give_back(self) -> None:
        for slot in self.slots:
            slot.busy = False


class SharedSlots:
    """Those that the worker fills and those that the session does, for pictures and for sound."""

    def __init__(self) -> None:
        self._inputs = {op: slots.SlotTable(slots.INPUT_SLOTS, writable=True) for op in MEDIA}
        self._outputs = {op: slots.SlotPool(slots.OUTPUT_SLOTS, f"headrace-{op}-out") for op in MEDIA}

    def given(self, message: Message) -> Plane:
        """What came with a message; results that it says are read are free again."""
        done = message.body.get("done")
        for number in done if isinstance(done, list) else ():
            self._outputs[message.op].free(number)
        return self._inputs[message.op].array(message.body.get("slot"), message)

    def lay_down(self, job: Job, source: VideoFrame | AudioFrame, frames: Sequence[Any]) -> Laid:
        """Put returned frames into shared memory; those that are the input as it came are only named."""
        pool = self._outputs[job.op]
        laid = Laid([], [])

        def take(size: int) -> slots.Slot:
            slot = pool.take(size)
            laid.slots.append(slot)
            return slot

        try:
            for frame in frames:
                if frame is source and _as_it_came(frame, job):
                    laid.headers.append({"same": 1})
                    continue
                header, slot = (put_video if job.op == "video" else put_audio)(frame, take)
                laid.headers.append(header | {"slot": slot.announce()[0]})
        except BaseException:
            laid.give_back()
            raise
        return laid

    def close(self) -> None:
        for table in self._inputs.values():
            table.close()
        for pool in self._outputs.values():
            pool.close()


def _as_it_came(frame: VideoFrame | AudioFrame, job: Job) -> bool:
    """Whether a returned input frame still has the pixels or samples, and the time, that it came with."""
    pts, time_base = slots.get_time(job.body)
    if frame.timestamp != pts or frame.time_base != time_base:
        return False
    if isinstance(frame, SlotFrame):
        return frame.untouched
    assert isinstance(frame, AudioFrame)
    assert job.memory is not None
    before = slots.get_audio(job.memory, job.body.get("audio"), pts, time_base)
    same_kind = (frame.format, frame.layout, frame.rate) == (before.format, before.layout, before.rate)
    return same_kind and slots.same_samples(frame.samples, before.samples)
