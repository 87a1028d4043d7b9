"""How a worker ends: real processes, real signals."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time

import aiohttp
import psutil
from live_rig import Rig, Viewer, clip

from benchmarks.workers import HEADRACE, free_port
from benchmarks.workers import running as program
from stream.trickle.server import TrickleServer, TrickleServerSettings
from tests.stream.recording.recorded_file import boxes, contents

READY = 60.0
LIMIT = 10.0


class Served:
    """``headrace serve`` as a process, and how it came to its end."""

    def __init__(self, running, port):
        self.running = running
        self.url = f"http://127.0.0.1:{port}"

    async def ready(self, http, *wanted):
        """Wait until its health is one of ``wanted``."""
        end = time.monotonic() + READY
        while time.monotonic() < end:
            self.running.check()
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{self.url}/health") as answer:
                    if (await answer.json())["status"] in wanted:
                        return
            await asyncio.sleep(0.05)
        raise AssertionError(self.running.tail())

    async def ends(self, *signals):
        """Send the signals; the exit status, the seconds it took, and what of its tree is left."""
        tree = self.running.tree
        begun = time.monotonic()
        for number in signals:
            self.running.process.send_signal(number)
            await asyncio.sleep(0.05)
        try:
            status = await asyncio.to_thread(self.running.process.wait, LIMIT + 5)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.running.tail()}") from None
        took = time.monotonic() - begun
        _, left = await asyncio.to_thread(psutil.wait_procs, tree, 3)
        return status, took, left


@contextlib.asynccontextmanager
async def served(folder, port=None, **environment):
    port = port or free_port()
    settings = {"HEADRACE_PORT": str(port), "HEADRACE_HARDWARE": "off", "HEADRACE_LOG_FORMAT": "json"}
    log = folder / f"worker-{time.monotonic_ns()}.log"
    with program("headrace", [*HEADRACE, "serve"], log, settings | environment) as running:
        yield Served(running, port)


@contextlib.asynccontextmanager
async def streaming(folder, *, port=None, environment=None, **change):
    """A worker in the midst of a stream; the worker, the viewer's task, the viewer and the rig."""
    settings = TrickleServerSettings(port=0, keepalive_interval=1.0)
    async with (
        TrickleServer(settings) as trickle,
        aiohttp.ClientSession() as http,
        served(folder, port, **(environment or {})) as worker,
    ):
        rig = Rig(None, trickle, http, worker.url, folder)
        await worker.ready(http, "IDLE")
        viewer = Viewer(rig.channel("one-out"))
        feeding, viewing = asyncio.create_task(rig.play(clip(30))), asyncio.create_task(viewer.run())
        try:
            status, answer = await rig.start(**change)
            assert status == 200, answer
            await rig.until(lambda report: report["counts"]["frames_out"] > 40)
            yield worker, viewer, viewing, rig
        finally:
            for task in (feeding, viewing):
                task.cancel()
            await asyncio.gather(feeding, viewing, return_exceptions=True)


async def test_sigterm_finishes_segment_and_recordings_closes_the_channel_and_frees_the_port(tmp_path):
    folder, port = tmp_path / "recordings", free_port()
    settings = {"HEADRACE_RECORDINGS": str(folder), "HEADRACE_RECORDING_RESERVE": "0"}
    async with streaming(tmp_path, port=port, environment=settings) as (worker, viewer, viewing, rig):
        status, _ = await rig.post("/stream/record", {"stream_id": "one", "what": "both", "name": "end"})
        assert status == 201
        await asyncio.sleep(1.5)
        status, took, left = await worker.ends(signal.SIGTERM)
        assert (status, left) == (0, [])
        assert took < LIMIT
        # The channel was deleted: the viewer comes to its end by itself, with every picture decodable.
        await asyncio.wait_for(viewing, 5)
        assert len(viewer.pictures) > 40
        times = [picture.time for picture in viewer.pictures]
        assert times == sorted(times)
        lines = [json.loads(line) for line in worker.running.log.read_text().splitlines() if line[0] == "{"]
        ended = [line for line in lines if "ended: the worker is shutting down" in line["message"]]
        assert [line["session"] for line in ended] == ["one"]
        # Its connections, which stay known to the kernel for a while, do not keep the port.
        await _starts_again(tmp_path, port, rig.http)
    for name in ("end-in.mp4", "end-out.mp4"):
        assert "moof" not in boxes(folder / name)
        found = contents(folder / name)
        assert found.duration > 1
        assert found.first_is_key


async def _starts_again(folder, port, http):
    """On the port of one that has just ended; another one there is told that the port is taken."""
    async with served(folder, port) as worker:
        # The engine may still be starting.
        await worker.ready(http, "LOADING", "IDLE")
        async with served(folder, port) as second:
            status = await asyncio.to_thread(second.running.process.wait, READY)
            assert status == 2
            assert "already in use" in second.running.tail()
        status, took, left = await worker.ends(signal.SIGTERM)
        assert (status, left) == (0, [])
        assert took < LIMIT


async def test_a_second_signal_ends_it_at_once(tmp_path):
    async with streaming(tmp_path) as (worker, *_):
        # A stopped engine cannot answer: the first signal alone would have to wait for it.
        for child in worker.running.tree[1:]:
            child.suspend()
        status, took, _ = await worker.ends(signal.SIGTERM, signal.SIGINT)
        assert status == 128 + signal.SIGINT
        assert took < 2


async def test_what_hangs_is_left_behind_in_time(tmp_path):
    # Connections to it stand, and nobody ever reads or answers.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as hole:
        base = f"http://127.0.0.1:{hole.getsockname()[1]}"
        urls = {name: f"{base}/{name}" for name in ("events_url", "control_url", "data_url")}
        async with streaming(tmp_path, **urls) as (worker, *_):
            for child in worker.running.tree[1:]:
                child.suspend()
            status, took, left = await worker.ends(signal.SIGTERM)
            assert took < LIMIT + 1, worker.running.tail()
            assert (status, left) == (0, [])
