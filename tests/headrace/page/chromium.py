"""A headless Chromium with a made-up camera, driven by Playwright; it keeps the page's security policy."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 30.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--mute-audio",
    # No processes in reserve, and none for each address.
    "--disable-features=SpareRendererForSitePerProcess,IsolateOrigins,site-per-process",
    "--renderer-process-limit=1",
    # The camera is a picture of its own, green with a clock's hand; not many, since software codes them.
    "--use-fake-device-for-media-stream=fps=10",
    "--autoplay-policy=no-user-gesture-required",
)
HELP = "; on Debian and Ubuntu: apt install chromium, and pip install playwright (extra dev)"


def reason_to_skip() -> str | None:
    """Why there can be no browser here, and how to get one; None when there is one."""
    if find_chromium() is None:
        return f"no {' or '.join(NAMES[:3:2])} on the PATH{HELP}"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return f"Playwright is not installed{HELP}"
    return None


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser, as Playwright's `Browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """One page. ``requests`` are the URLs that it asked for, ``errors`` what its console complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def heard(self, said: Any) -> None:
        """Keep what the console complains of, with the address that it is about."""
        if said.type == "error":
            self.errors.append(f"{said.text} {said.location.get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited when it is a promise."""
        return self.page.evaluate(script)

    def until(self, script: str, timeout: float = WAIT_S) -> Any:
        """The value of an expression as soon as it is truthy."""
        end = time.monotonic() + timeout
        # Playwright's own waiting evaluates text in the page, which the page's policy forbids.
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}; {self.errors}; {self.words()[:600]!r}"
            self.page.wait_for_timeout(100)
        return value

    def words(self) -> str:
        """What can be read on the page."""
        return str(self.run("document.body.innerText"))

    def text(self, element: str) -> str:
        """The words of the element of that id."""
        return str(self.run(f"document.getElementById({json.dumps(element)}).textContent"))

    def click(self, element: str) -> None:
        self.page.click(f"#{element}")

    def enter(self, label: str, value: str) -> None:
        """Type a value into the parameter of that label, as a change that is finished."""
        self.run(
            f"""(() => {{
              const labels = [...document.querySelectorAll("#params label")];
              const label = labels.find((each) => each.textContent === {json.dumps(label)});
              const input = document.getElementById(label.htmlFor);
              input.value = {json.dumps(value)};
              input.dispatchEvent(new Event("change", {{ bubbles: true }}));
            }})()"""
        )

    def drop(self, name: str, content: str) -> None:
        """Drop a file of JSON on the page."""
        self.run(
            f"""(() => {{
              const dataTransfer = new DataTransfer();
              const about = {{ type: "application/json" }};
              dataTransfer.items.add(new File([{json.dumps(content)}], {json.dumps(name)}, about));
              const drop = new DragEvent("drop", {{ dataTransfer, bubbles: true, cancelable: true }});
              document.body.dispatchEvent(drop);
            }})()"""
        )


@contextmanager
def open_tab(browser: Any, url: str, width: int = 1280, height: int = 800, **context: Any) -> Iterator[Tab]:
    """A fresh tab with a storage of its own, gone to ``url``; it may use the camera unless
    ``permissions=[]`` says otherwise."""
    context.setdefault("permissions", ["camera"])
    # The same layout in a quarter of the dots: software draws them.
    context.setdefault("device_scale_factor", 0.5)
    # Nothing is looked at for its own sake: what breathes is drawn sixty times a second.
    context.setdefault("reduced_motion", "reduce")
    scope = browser.new_context(viewport={"width": width, "height": height}, **context)
    try:
        tab = Tab(scope.new_page())
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.on("console", tab.heard)
        tab.page.goto(url)
        yield tab
    finally:
        scope.close()
