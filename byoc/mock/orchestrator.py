"""An orchestrator without a network: takes registrations, hands out trickle channels, calls workers.

Its calls, answers and quirks towards workers are go-livepeer's (package ``byoc``): what it sends, when, with
which headers, and when it forgets a capability. Payments, signatures and the choice among orchestrators are
left out.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from aiohttp import web

from byoc.mock.answers import Answer, Call, json_object, refusal
from byoc.mock.capabilities import CapabilityBook, RegisteredCapability, RegistrationRefused, WouldPanic
from byoc.mock.jobs import BALANCE, HEADER, Job
from stream.errors import HeadraceError, InvalidInput
from stream.trickle.server import TrickleServer, TrickleServerSettings

log = logging.getLogger(__name__)

TRICKLE_PATH = "/ai/trickle"
MAX_BODY = 64 << 20
SLOWEST_BODY = 600.0
"""Seconds for a body, once its head has come."""


class MockOrchestrator:
    """``async with`` it, then let a worker register at `url` with ``secret``. ``port`` 0 takes a free one.

    `calls` holds what workers were asked, `registrations` the body of every registration that was taken.
    """

    def __init__(self, secret: str = "secret", *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.secret = secret
        self.book = CapabilityBook()
        self.registrations: list[dict[str, Any]] = []
        self.refused: list[str] = []
        """Why registrations were refused."""
        self.unregistered: list[str] = []
        self.streams: dict[str, tuple[str, tuple[str, ...]]] = {}
        """The capability and the channels of each running stream."""
        self.calls: list[Call] = []
        self._host, self._port = host, port
        self._changed = asyncio.Event()
        self._trickle = TrickleServer(
            TrickleServerSettings(host=host, port=0, base_path=TRICKLE_PATH, autocreate=False)
        )
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """What workers get as ``ORCH_URL``."""
        return f"http://{self._host}:{self._port}"

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the trickle channels that exist."""
        return self._trickle.channels

    async def __aenter__(self) -> Self:
        await self._trickle.__aenter__()
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
        await self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stream in list(self.streams):
            self.remove_stream(stream)
        await self._end_listening()
        if self._client is not None:
            await self._client.close()
        await self._trickle.__aexit__(*exc_info)

    async def restart(self, *, down: float = 0.0) -> None:
        """Forget everything and be unreachable for ``down`` seconds, as a process that is started again."""
        await self._end_listening()
        self.book.clear()
        for stream in list(self.streams):
            self.remove_stream(stream)
        await asyncio.sleep(down)
        await self._listen()

    async def registered(self, name: str, timeout: float = 30.0) -> RegisteredCapability:
        """The capability of that name; waits for it. Raises `TimeoutError` that says who came instead."""
        try:
            async with asyncio.timeout(timeout):
                while (found := self.book.find(name)) is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            others = ", ".join(capability.name for capability in self.book) or "none"
            text = f"{name!r} did not register within {timeout:g} s; registered are: {others}"
            if self.refused:
                text += f"; refused was: {self.refused[-1]}"
            raise TimeoutError(text) from None
        return found

    # -- what gateways ask -----------------------------------------------------------------------------

    async def start_stream(self, job: Job, body: bytes) -> Answer:
        """``/ai/stream/start``: make the channels, call the worker; both go again when it refuses."""
        if not self.book.reserve(job.capability):
            return refusal(400, "No capacity available for capability")
        channels = self._make_channels(job)
        urls = {name: self._trickle.channel_url(channel) for name, channel in channels.items()}
        accepted = False
        try:
            asked = {"gateway_request_id": job.id, **{f"{name}_url": url for name, url in urls.items()}}
            answer = await self._ask_start(job, {**asked, **json_object(body)})
            accepted = answer.status < 400
            if accepted and job.id in self.streams:
                accepted, answer = False, refusal(500, "Error adding stream to external capabilities")
        except InvalidInput as error:
            answer = refusal(400, error.message)
        finally:
            if accepted:
                self.streams[job.id] = job.capability, tuple(channels.values())
            else:
                self.book.release(job.capability)
                self._close_channels(channels.values())
        # The gateway publishes where the worker subscribes, and the other way round.
        told = {"subscribe": "X-Publish-Url", "publish": "X-Subscribe-Url"}
        headers = {told.get(name, f"X-{name.capitalize()}-Url"): url for name, url in urls.items()}
        return Answer(answer.status, b"" if accepted else answer.body, {**headers, BALANCE: "0"})

    async def stop_stream(self, job: Job, body: bytes) -> Answer:
        """``/ai/stream/stop``: tell the worker, then end the stream whatever it says."""
        stream = str(job.details().get("stream_id") or "")
        try:
            answer = await self._ask_worker(job, "/stream/stop", body, {"X-Stream-Id": stream})
            return self._of_worker(job, answer)
        except OSError as error:
            log.error("the worker was not told to stop %s: %s", stream, error)
            return Answer(200)
        finally:
            self.remove_stream(stream)

    async def update_stream(self, job: Job, body: bytes) -> Answer:
        """``/ai/stream/update``: the worker's answer, as it is."""
        stream = str(job.details().get("stream_id") or "")
        headers = {"X-Stream-Id": stream, "Content-Type": "application/json"}
        return await self._asked(job, "/stream/params", body, headers)

    def remove_stream(self, stream: str) -> None:
        """End a stream and its channels without a word to the worker, as when a balance runs out."""
        capability, channels = self.streams.pop(stream, ("", ()))
        self._close_channels(channels)
        self.book.release(capability)

    async def process(self, job: Job, path: str, body: bytes, content_type: str = "") -> Answer:
        """``/process/request/{path}`` without streaming: events are collected into one body."""
        if not self.book.reserve(job.capability):
            return refusal(503, "No capacity available for capability")
        try:
            answer = await self._ask_worker(
                job, f"/{path}" if path else "", body, {"Content-Type": content_type}
            )
        except TimeoutError:
            # The place that was reserved is not given back: only a registration repairs the count.
            return refusal(500, "job not able to be processed: context canceled")
        except OSError as error:
            self.book.remove(job.capability)
            return refusal(500, f"job not able to be processed, removing capability err={error}")
        if answer.status == 401:
            self.book.remove(job.capability)
            return refusal(
                500, "job not able to be processed, removing capability err=worker auth token failed"
            )
        self.book.release(job.capability)
        headers = {key: answer.headers.get(key, "") for key in ("Content-Type", "X-Metadata")}
        if answer.status > 399:
            return Answer(answer.status, answer.body, {"Content-Type": "text/plain; charset=utf-8"})
        return Answer(200, answer.body, {**headers, BALANCE: "0"})

    # -- calls to workers ------------------------------------------------------------------------------

    async def _ask_start(self, job: Job, asked: dict[str, Any]) -> Answer:
        headers = {"X-Stream-Id": job.id, "Content-Type": "application/json"}
        return await self._asked(job, "/stream/start", json.dumps(asked).encode(), headers)

    async def _asked(self, job: Job, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            return self._of_worker(job, await self._ask_worker(job, path, body, headers))
        except OSError as error:
            log.error("the worker did not answer: %s", str(error) or f"not within {job.timeout} s")
            return refusal(500, "Error sending request to worker")

    async def _ask_worker(self, job: Job, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """The worker's answer. Raises `TimeoutError` when its head took longer than the job has, another
        `OSError` when it cannot be reached or breaks off."""
        assert self._client is not None, "use it as `async with`"
        capability = self.book.find(job.capability)
        url = (capability.url if capability is not None else "") + path
        if capability is not None and capability.token:
            headers = {**headers, "Authorization": f"Bearer {capability.token}"}
        status = None
        try:
            async with asyncio.timeout(job.timeout) as limit:
                # Go names no content type of its own accord.
                async with self._client.post(
                    url, data=body, headers=headers, skip_auto_headers=["Content-Type"], allow_redirects=False
                ) as response:
                    limit.reschedule(asyncio.get_running_loop().time() + SLOWEST_BODY)
                    status = response.status
                    return Answer(status, await response.read(), dict(response.headers))
        except (aiohttp.ClientError, ValueError) as error:
            raise ConnectionError(f"{url}: {error or type(error).__name__}") from None
        finally:
            self.calls.append(Call(path, status, body))

    def _of_worker(self, job: Job, answer: Answer) -> Answer:
        if answer.status == 401:
            self.book.remove(job.capability)
            return refusal(500, "Orchestrator worker failure")
        return Answer(answer.status, answer.body)

    # -- channels --------------------------------------------------------------------------------------

    def _make_channels(self, job: Job) -> dict[str, str]:
        flags = job.flags()
        wanted = [("control", "-control", "application/json"), ("events", "-events", "application/json")]
        if flags.get("enable_video_ingress"):
            wanted.append(("subscribe", "", "video/MP2T"))
        if flags.get("enable_video_egress"):
            wanted.append(("publish", "-out", "video/MP2T"))
        if flags.get("enable_data_output"):
            wanted.append(("data", "-data", "application/jsonl"))
        for _, suffix, kind in wanted:
            self._trickle.create_channel(job.id + suffix, kind)
        return {name: job.id + suffix for name, suffix, _ in wanted}

    def _close_channels(self, channels: Any) -> None:
        for channel in channels:
            if channel in self._trickle.channels:
                self._trickle.delete_channel(channel)

    # -- HTTP ------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/capability/register", self._register)
        app.router.add_post("/capability/unregister", self._unregister)
        app.router.add_get("/process/token", self._token)
        for path, act in {
            "start": self.start_stream,
            "stop": self.stop_stream,
            "update": self.update_stream,
        }.items():
            app.router.add_post(f"/ai/stream/{path}", _of_gateway(act))
        app.router.add_post("/process/request/{path:.*}", self._process)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _end_listening(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _knows_secret(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(errors="surrogateescape"), self.secret.encode())

    async def _register(self, request: web.Request) -> web.Response:
        if not self._knows_secret(request):
            self.refused.append("invalid authorization")
            return web.Response(status=400, text="invalid authorization\n")
        text = (await request.read()).decode("utf-8", "replace")
        try:
            found = self.book.register(text)
        except RegistrationRefused as error:
            self.refused.append(error.message)
            return web.Response(status=400, text=error.message, content_type="application/json")
        except WouldPanic as error:
            self.refused.append(error.message)
            log.error("go-livepeer would panic: %s", error.message)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        self.registrations.append(json.loads(text))
        self._changed.set()
        log.info("registered %s at %s, capacity %d", found.name, found.url, found.capacity)
        return web.Response(text="ok", content_type="application/json")

    async def _unregister(self, request: web.Request) -> web.Response:
        if not self._knows_secret(request):
            return web.Response(status=400, text="invalid authorization\n")
        name = (await request.read()).decode("utf-8", "replace")
        self.book.remove(name)
        self.unregistered.append(name)
        log.info("unregistered %s", name)
        return web.Response(text="ok", content_type="application/json")

    async def _process(self, request: web.Request) -> web.Response:
        async def act(job: Job, body: bytes) -> Answer:
            content_type = request.headers.get("Content-Type", "")
            return await self.process(job, request.match_info["path"], body, content_type)

        answer: web.Response = await _of_gateway(act)(request)
        return answer

    async def _token(self, request: web.Request) -> web.Response:
        names = request.headers.get("Livepeer-Capability")
        if not request.headers.get("Livepeer-Eth-Address"):
            return web.Response(status=400, text="Must have eth address and signature on address")
        if not names:
            return web.Response(status=400, text="Job capabilities not provided")
        found = self.book.find(names)
        token: dict[str, Any] = {"price": {"pixelsPerUnit": 1}, "service_addr": self.url, "LastNonce": 0}
        if found is not None and found.available:
            token["available_capacity"] = found.available
        return web.json_response(token)


def _of_gateway(act: Any) -> Any:
    async def answer(request: web.Request) -> web.Response:
        try:
            job = Job.parse(request.headers.get(HEADER))
            told: Answer = await act(job, await request.read())
        except HeadraceError as error:
            return web.Response(status=400, text=error.message)
        return web.Response(status=told.status, body=told.body, headers=dict(told.headers))

    return answer
