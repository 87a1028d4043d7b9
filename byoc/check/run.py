"""``headrace byoc check``: a container's program against the mock orchestrator, from its start to its end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byoc.check.findings import Findings
from byoc.check.plan import CheckPlan, PlannedRequest
from byoc.check.program import Program, running
from byoc.mock.answers import Answer
from byoc.mock.figures import Measured, measured
from byoc.mock.gateway import MockGateway
from byoc.mock.orchestrator import MockOrchestrator
from byoc.mock.stream import GatewayStream
from byoc.testing import generated
from stream.errors import HeadraceError

NAME, SECRET = "checked", "secret-of-the-check"
START, REGISTER, LOADING, IDLE, END = 120.0, 15.0, 30.0, 20.0, 15.0
"""Seconds: until it answers, until it is registered then, for a stream's model to load, until it is free
after a stream, and to end."""
JUNK = b"\xff\x00 not JSON"


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """``seconds`` of video at ``size`` x ``size`` and ``fps``; ``port`` 0 takes a free one."""

    seconds: float = 6.0
    size: int = 384
    fps: int = 30
    port: int = 0


async def check(
    folder: Path, plan: CheckPlan, options: CheckOptions, tell: Callable[[str], None] = lambda text: None
) -> Findings:
    """Run the folder's program and look at it from all sides; ``tell`` hears what is being done.

    Raises `HeadraceError` when the program cannot even be started.
    """
    found = Findings()
    tell("making a stream")
    port = options.port or _free_port()
    async with MockOrchestrator(SECRET) as orchestrator:
        environment = {
            "PORT": str(port),
            "HEADRACE_PORT": str(port),
            "ORCH_URL": orchestrator.url,
            "ORCH_SECRET": SECRET,
            "CAPABILITY_NAME": NAME,
            "CAPABILITY_URL": f"http://127.0.0.1:{port}",
        }
        tell(f"starting {' '.join(plan.command)}")
        async with running(plan.command, folder, port, environment) as program:
            checking = _Check(found, plan, options, orchestrator, program, tell)
            await checking.run()
            found.log = program.tail()
    return found


class _Check:
    def __init__(
        self,
        found: Findings,
        plan: CheckPlan,
        options: CheckOptions,
        orchestrator: MockOrchestrator,
        program: Program,
        tell: Callable[[str], None],
    ) -> None:
        self.found = found
        self.plan = plan
        self.options = options
        self.orchestrator = orchestrator
        self.gateway = MockGateway(orchestrator)
        self.program = program
        self.tell = tell

    async def run(self) -> None:
        try:
            await self._start()
            if self.plan.stream:
                await self._stream()
                await self._abandoned()
            for request in self.plan.request:
                await self._request(request)
        except HeadraceError as error:
            self.found.wrong("check", error.message)
        await self._end()

    # -- start -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        begun = time.monotonic()
        self.tell("waiting for /health")
        health = await self.program.until("LOADING", "IDLE", "OK", "ERROR", timeout=START)
        self.found.ok("answers", f"/health is {health} after {time.monotonic() - begun:.1f} s")
        if health == "LOADING" and self.plan.stream:
            await self._start_while_loading()
        if await self.program.until("IDLE", "OK", "ERROR", timeout=START) == "ERROR":
            self.found.wrong("ready", "/health is ERROR")
            return
        self.found.ok("ready", f"after {time.monotonic() - begun:.1f} s")
        await self._registration()

    async def _start_while_loading(self) -> None:
        """A gateway may well ask now: the answer may be no, but there must be one."""
        self._register_for_it()
        stream = await self.gateway.start(NAME, None)
        status = stream.answer.status
        await stream.close()
        self.found.expect(
            "start while loading", status in (200, 503), f"answered with {status} {stream.answer.text[:120]}"
        )

    async def _registration(self) -> None:
        self.tell("waiting for the registration")
        end = time.monotonic() + REGISTER
        while not self.orchestrator.registrations and time.monotonic() < end:
            if self.orchestrator.refused:
                break
            await asyncio.sleep(0.05)
        if self.orchestrator.refused:
            self.found.wrong("registration", f"refused: {self.orchestrator.refused[0]}")
        elif self.orchestrator.registrations:
            body = self.orchestrator.registrations[-1]
            self.found.ok("registration", f"{body['name']} at {body['url']}, capacity {body['capacity']}")
        else:
            self.found.note("registration", f"none within {REGISTER:g} s: it does not register by itself")
        if self.orchestrator.book.find(NAME) is None:
            self._register_for_it()

    def _register_for_it(self) -> None:
        body = {"name": NAME, "url": self.program.url, "capacity": 1}
        self.orchestrator.book.register(json.dumps(body))

    # -- a stream --------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        options, plan = self.options, self.plan
        clip = await asyncio.to_thread(
            generated, options.seconds, width=options.size, height=options.size, fps=options.fps
        )
        self.tell(f"a stream of {options.seconds:g} s")
        begun = time.monotonic()
        async with self.gateway.stream(NAME, {"width": options.size, "height": options.size}) as stream:
            took = (time.monotonic() - begun) * 1000
            self.found.expect("start", stream.accepted, f"{_said(stream.answer)}, in {took:.0f} ms")
            if not stream.accepted:
                return
            playing = asyncio.create_task(stream.play(clip))
            await asyncio.sleep(options.seconds / 2)
            await self._params(stream)
            await playing
            await asyncio.sleep(0.5)
            self._frames(await self.program.stream_report())
            self.tell("stopping it, three times")
            answers = await stream.stop(JUNK)
            statuses = [answer.status for answer in answers]
            self.found.expect(
                "stop, with junk, three times", statuses == [200] * 3, f"answered with {statuses}"
            )
        await self._free_again("after the stop")
        self._media(stream, await asyncio.to_thread(measured, stream, fps_in=options.fps))
        if plan.data:
            self.found.expect("data", bool(stream.data), f"{len(stream.data)} lines, as {_first(stream)}")
        self._protocol(stream)

    async def _params(self, stream: GatewayStream) -> None:
        plan = self.plan
        end = time.monotonic() + LOADING
        # Where models are loaded by stream, there is nothing yet that could take them.
        while (  # noqa: ASYNC110 (asking is all that there is)
            answer := await stream.update(plan.params)
        ).status == 503 and time.monotonic() < end:
            await asyncio.sleep(0.25)
        self.found.expect("params", answer.status == 200, f"{json.dumps(plan.params)}: {_said(answer)}")
        if plan.refused is not None:
            answer = await stream.update(plan.refused)
            self.found.expect(
                "wrong params", 400 <= answer.status < 500, f"{json.dumps(plan.refused)}: {_said(answer)}"
            )
        answer = await stream.update(JUNK)
        self.found.expect("params that are junk", 400 <= answer.status < 500, _said(answer))

    def _frames(self, report: dict[str, Any]) -> None:
        """What the session counted; programs of others may not say."""
        counts, error = report.get("counts"), report.get("error")
        if not isinstance(counts, dict):
            return
        names = ("frames_in", "audio_in", "failed", "overlaid")
        worked, heard, failed, notices = (int(counts.get(name, 0)) for name in names)
        media = report.get("works_on", ["video"])
        worked = worked * ("video" in media) + heard * ("audio" in media)
        if failed:
            reason = error.get("message") if isinstance(error, dict) else error
            self.found.wrong("frames", f"{failed} of {worked} failed: {reason}")
        elif not media:
            self.found.note("frames", "all pass as they came: no process_... method and no handler is there")
        elif notices:
            self.found.note("frames", f"instead of {notices} of them a notice was shown: results stayed away")
        else:
            self.found.ok("frames", f"none of {worked} failed")

    def _media(self, stream: GatewayStream, figures: Measured) -> None:
        rate = f"{figures.pictures_in} in, {figures.pictures_out} out, {figures.fps:.1f} fps"
        self.found.expect("pictures", figures.pictures_out > 0, rate)
        if figures.latency_ms:
            shares = ", ".join(f"p{share} {value:.0f}" for share, value in figures.latency_ms.items())
            self.found.ok("latency", f"{shares} ms from last byte in to last byte out")
        elif figures.pictures_out:
            self.found.note("latency", "no picture could be told apart")
        if figures.first_output_ms is not None:
            self.found.ok("first output", f"{figures.first_output_ms:.0f} ms after the first frame went in")
        seconds = f"{figures.sound_s:.1f} s out of {self.options.seconds:g} s"
        (self.found.ok if figures.sound_s else self.found.note)("sound", seconds)
        for problem in figures.problems:
            self.found.wrong("media", problem)

    def _protocol(self, stream: GatewayStream) -> None:
        kinds = sorted({event["event"].get("type", "?") for event in stream.events})
        self.found.expect("events", bool(stream.events), f"{len(stream.events)}: {', '.join(kinds)}")
        errors = [event["event"] for event in stream.events if event["event"].get("type") == "error"]
        for text in dict.fromkeys(str(error.get("message")) for error in errors):
            self.found.wrong("event of type error", text)
        for problem in stream.problems:
            self.found.wrong("protocol", problem)
        if not stream.problems:
            self.found.ok("protocol", "no error")

    async def _abandoned(self) -> None:
        """Ends without a stop: the channels vanish; the input ends."""
        clip = await asyncio.to_thread(
            generated, 2, width=self.options.size, height=self.options.size, fps=self.options.fps
        )
        self.tell("a stream whose channels vanish")
        async with self.gateway.stream(NAME, None) as stream:
            self.found.expect("params null", stream.accepted, _said(stream.answer))
            if stream.accepted:
                await stream.play(clip[:1])
                stream.vanish()
                await self._free_again("after the channels vanished")
        self.tell("a stream whose input ends")
        async with self.gateway.stream(NAME, {}, data=False) as stream:
            self.found.expect("another stream", stream.accepted, _said(stream.answer))
            if stream.accepted:
                await stream.play(clip[:1], end=True)
                await self._free_again("after the input ended")

    async def _free_again(self, when: str) -> None:
        begun = time.monotonic()
        await self.program.until("IDLE", timeout=IDLE)
        self.found.ok(f"free {when}", f"in {time.monotonic() - begun:.1f} s")

    # -- requests and the end --------------------------------------------------------------------------

    async def _request(self, planned: PlannedRequest) -> None:
        self.tell(f"request {planned.path}")
        begun = time.monotonic()
        answer = await self.gateway.request(NAME, planned.path, planned.body)
        took = (time.monotonic() - begun) * 1000
        holds = answer.status == planned.status
        seen = f"{_said(answer)}, in {took:.0f} ms"
        if holds and planned.events:
            holds = bool(answer.events) and answer.events[-1] == "[DONE]"
            seen = f"{len(answer.events)} events, the last {answer.events[-1:]}, in {took:.0f} ms"
        self.found.expect(f"request {planned.path}", holds, seen)

    async def _end(self) -> None:
        self.tell("ending it by SIGTERM")
        registered = bool(self.orchestrator.registrations)
        if self.program.status is not None:
            self.found.wrong("end", f"it ended by itself, {self.program.ending}")
            return
        took = await self.program.end(END)
        if took is None:
            self.found.wrong("end", f"still running {END:g} s after SIGTERM")
            return
        self.found.expect("end", self.program.status == 0, f"{took:.1f} s, status {self.program.status}")
        if registered:
            taken_back = NAME in self.orchestrator.unregistered
            self.found.expect(
                "unregistered", taken_back, "at the end" if taken_back else "it was not taken back"
            )


def _said(answer: Answer) -> str:
    text = answer.text.strip()
    if answer.status >= 400:
        try:
            text = str(answer.json()["message"])
        except (ValueError, LookupError, TypeError):
            pass
        return f"{answer.status} {text[:160]}"
    return str(answer.status)


def _first(stream: GatewayStream) -> str:
    return json.dumps(stream.data[0])[:100] if stream.data else "none"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
