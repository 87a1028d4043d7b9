"""A headless Chromium, driven by the Chrome DevTools Protocol over its websocket."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CALL_S = 20.0
START_S = 40.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(path: str) -> Iterator[str]:
    """A running browser; yields the ``host:port`` of its DevTools."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [path, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"127.0.0.1:{_debugging_port(process, Path(folder))}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _debugging_port(process: subprocess.Popen[bytes], folder: Path) -> int:
    file = folder / "DevToolsActivePort"
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (text := file.read_text()).count("\n"):
            return int(text.splitlines()[0])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not start: status {process.poll()}")


@dataclass
class Tab:
    """One page. ``requests`` are the URLs that it asked for, ``errors`` what its console complained of."""

    socket: aiohttp.ClientWebSocketResponse
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _open: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        number = next(self._numbers)
        future = self._open[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(CALL_S):
            answer = await future
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited when it is a promise."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, timeout: float = CALL_S) -> Any:
        """The value of an expression as soon as it is truthy."""
        end = time.monotonic() + timeout
        while not (value := await self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}; {await self.words()}"
            await asyncio.sleep(0.1)
        return value

    async def words(self) -> str:
        """What can be read on the page."""
        return str(await self.run("document.body.innerText"))

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def listen(self) -> None:
        """Read what the browser says until the websocket is closed."""
        async for message in self.socket:
            data = json.loads(message.data)
            if "id" in data:
                future = self._open.pop(data["id"], None)
                if future is not None and not future.done():
                    future.set_result(data)
                continue
            parameters = data.get("params", {})
            if data["method"] == "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            elif data["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(parameters["exceptionDetails"]))
            elif data["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")


@asynccontextmanager
async def open_tab(debugger: str, url: str, width: int = 1280, height: int = 800) -> AsyncIterator[Tab]:
    """A fresh tab with a storage of its own, gone to ``url``."""
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://{debugger}/json/version") as answer:
            browser_url = (await answer.json())["webSocketDebuggerUrl"]
        async with client.ws_connect(browser_url, max_msg_size=0) as socket:
            browser = Tab(socket)
            listening = asyncio.create_task(browser.listen())
            context = (await browser.call("Target.createBrowserContext", disposeOnDetach=True))[
                "browserContextId"
            ]
            target = await browser.call("Target.createTarget", url="about:blank", browserContextId=context)
            try:
                async with _tab(client, f"ws://{debugger}/devtools/page/{target['targetId']}") as tab:
                    await tab.size(width, height)
                    await tab.go(url)
                    yield tab
            finally:
                await browser.call("Target.disposeBrowserContext", browserContextId=context)
                await socket.close()
                await listening


@asynccontextmanager
async def _tab(client: aiohttp.ClientSession, url: str) -> AsyncIterator[Tab]:
    async with client.ws_connect(url, max_msg_size=0) as socket:
        tab = Tab(socket)
        listening = asyncio.create_task(tab.listen())
        try:
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                await tab.call(f"{domain}.enable")
            yield tab
        finally:
            await socket.close()
            await listening
