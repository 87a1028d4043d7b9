"""The page in a real Chromium over a real worker: what a newcomer sees and touches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
from browser import Tab, chromium, find_chromium, open_tab
from page_server import PageServer, page_server

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")

# Mean brightness, the share of coloured pixels, and the picture as a coarse grid of brightness.
LOOK = """(() => {
  const canvas = document.getElementById("picture");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let light = 0, coloured = 0; const grid = new Array(256).fill(0);
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]];
    light += g; coloured += Math.max(r, g, b) - Math.min(r, g, b) > 40;
    const pixel = i / 4, x = pixel % canvas.width, y = (pixel / canvas.width) | 0;
    grid[((y * 16 / canvas.height) | 0) * 16 + ((x * 16 / canvas.width) | 0)] += g;
  }
  const pixels = data.length / 4;
  const { width, height } = canvas;
  return { light: light / pixels, coloured: coloured / pixels, grid, width, height };
})()"""
PICTURE = "document.getElementById('empty').hidden && document.getElementById('picture').width === 640"
STATE = "document.getElementById('state-name').textContent"
PROCESSED = "parseFloat(document.getElementById('fps-processed').textContent) > 0"
WORKING = f"{PICTURE} && ['Running', 'Degraded'].includes({STATE}) && {PROCESSED}"
APPLIED = "document.getElementById('applied').textContent.startsWith('in force from frame')"


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server("--demo", "--workflow", "edges") as running:
        yield running


@pytest.fixture(scope="module")
def debugger() -> Iterator[str]:
    assert CHROMIUM is not None
    with chromium(CHROMIUM) as address:
        yield address


async def choose(tab: Tab, workflow: str) -> None:
    await tab.until(f"document.querySelector('input[value={workflow}]:enabled') !== null")
    await tab.run(f"document.querySelector('input[value={workflow}]').click()")
    await tab.until(f"document.querySelector('input[value={workflow}]:checked:enabled') !== null")


async def enter(tab: Tab, label: str, value: str) -> None:
    """Type a value into the control of that label, as a change that is finished."""
    await tab.run(
        f"""(() => {{
          const labels = [...document.querySelectorAll("#params label")];
          const label = labels.find((each) => each.textContent === {json.dumps(label)});
          const input = document.getElementById(label.htmlFor);
          input.value = {json.dumps(value)};
          input.dispatchEvent(new Event("change", {{ bubbles: true }}));
        }})()"""
    )


async def test_the_picture_is_live_and_processed_and_every_figure_is_there(
    server: PageServer, debugger: str
) -> None:
    async with open_tab(debugger, f"{server.url}/") as tab:
        await tab.until(WORKING)
        await tab.until("document.querySelectorAll('#stages tr').length === 5")
        seen = await tab.run(LOOK)
        assert (seen["width"], seen["height"]) == (640, 360)
        # Edges: no colour anywhere, mostly black, and some white lines.
        assert seen["coloured"] < 0.02
        assert 1 < seen["light"] < 60
        grid = json.dumps(seen["grid"])
        await tab.until(f"{LOOK}.grid.some((g, i) => Math.abs(g - {grid}[i]) > 1000)")
        await choose(tab, "passthrough")
        await tab.until(f"{WORKING} && {LOOK}.coloured > 0.3")
        await tab.until("document.querySelectorAll('#stages tr').length === 5")
        for name in ("fps-input", "fps-processed", "fps-output", "left-out"):
            figure = await tab.run(f"document.getElementById('{name}').textContent")
            assert float(figure.split()[0]) >= 0
        rows = await tab.run(
            "[...document.querySelectorAll('#stages tr')]"
            ".map((row) => [...row.children].map((cell) => cell.textContent))"
        )
        assert [row[0] for row in rows] == [
            "Draw the pattern",
            "Wait",
            "Process",
            "Encode",
            "All, until encoded",
        ]
        assert all(float(value) >= 0 for row in rows for value in row[1:])
        assert await tab.run("document.getElementById('reason').textContent.length > 0")
        assert not tab.errors


async def test_a_parameter_takes_effect_and_a_wrong_one_says_why_and_changes_nothing(
    server: PageServer, debugger: str
) -> None:
    async with open_tab(debugger, f"{server.url}/") as tab:
        await choose(tab, "edges")
        await tab.until(f"{WORKING} && {LOOK}.coloured < 0.02")
        before = (await tab.run(LOOK))["light"]
        await enter(tab, "low_threshold", "0.05")
        await enter(tab, "high_threshold", "0.1")
        await tab.until(APPLIED)
        await tab.until(f"{LOOK}.light > {before * 1.3}")
        await enter(tab, "low_threshold", "7")
        words = await tab.until("document.querySelector('#params .problem:not([hidden])')?.textContent")
        assert words == "Must be at most 0.99, got 7. 0.05 stays in force."
        assert await tab.run("document.querySelectorAll('#params [aria-invalid=true]').length") == 1
        values = await tab.run("fetch('/api/page').then((r) => r.json()).then((s) => s.session.values)")
        assert values == {"2.low_threshold": 0.05, "2.high_threshold": 0.1}
        await tab.run("document.getElementById('reset').click()")
        await tab.until("document.getElementById('reset').hidden")
        values = await tab.run("fetch('/api/page').then((r) => r.json()).then((s) => s.session.values)")
        assert values == {"2.low_threshold": 0.4, "2.high_threshold": 0.8}
        assert await tab.run("document.querySelectorAll('#params .problem:not([hidden])').length") == 0


async def test_the_demo_is_stopped_and_started_again(server: PageServer, debugger: str) -> None:
    async with open_tab(debugger, f"{server.url}/") as tab:
        await tab.until(WORKING)
        await tab.run("document.getElementById('stop').click()")
        await tab.until(f"{STATE} === 'No stream' && !document.getElementById('start').hidden")
        assert "stopped on the page" in await tab.words()
        await tab.run("document.getElementById('start').click()")
        await tab.until(WORKING)


async def test_an_engine_that_is_killed_is_told_of_and_the_picture_comes_back(
    server: PageServer, debugger: str
) -> None:
    async with open_tab(debugger, f"{server.url}/") as tab:
        await tab.until(WORKING)
        server.engine().kill()
        await tab.until(
            f"{STATE} === 'Degraded' && /restart/.test(document.getElementById('reason').textContent)"
        )
        await tab.until("document.getElementById('engine-text').textContent.includes('restarted 1×')", 60)
        await tab.until("document.getElementById('engine').dataset.state === 'ready'", 60)
        grid = json.dumps((await tab.run(LOOK))["grid"])
        await tab.until(f"{LOOK}.grid.some((g, i) => Math.abs(g - {grid}[i]) > 1000)", 60)
        # The picture's own stream went on throughout.
        assert sum(url.endswith("preview.mjpeg") for url in tab.requests) == 1


async def test_nothing_is_asked_of_other_servers_and_every_control_has_a_name(
    server: PageServer, debugger: str
) -> None:
    async with open_tab(debugger, f"{server.url}/") as tab:
        await choose(tab, "cartoon")
        await tab.until(WORKING)
        for url in tab.requests:
            assert urlsplit(url).scheme in ("data", "blob") or url.startswith(f"{server.url}/"), url
        assert not tab.errors
        tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "radio", "checkbox", "combobox", "spinbutton", "slider", "textbox", "image"}
        found = [
            node for node in tree if node.get("role", {}).get("value") in roles and not node.get("ignored")
        ]
        assert len(found) > 8
        assert not [node for node in found if not node.get("name", {}).get("value")]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
async def test_it_fits_the_screen(server: PageServer, debugger: str, width: int, height: int) -> None:
    async with open_tab(debugger, f"{server.url}/", width, height) as tab:
        await tab.until(WORKING)
        assert await tab.run("document.documentElement.scrollWidth") <= width
        bottom = await tab.run("document.getElementById('figures').getBoundingClientRect().bottom")
        assert bottom < height
        if width == 1280:
            assert (
                await tab.run("document.querySelector('.latency').getBoundingClientRect().bottom") <= height
            )


async def test_a_token_is_asked_for_once_and_the_end_of_the_worker_is_told(debugger: str) -> None:
    enter_token = """(token) => {
      document.getElementById("token").value = token;
      document.getElementById("token-form").requestSubmit();
    }"""
    secret = {"HEADRACE_TOKEN": "open-sesame"}
    async with AsyncExitStack() as stack:
        with page_server("--demo", "--workflow", "passthrough", environment=secret) as server:
            tab = await stack.enter_async_context(open_tab(debugger, f"{server.url}/"))
            await tab.until("document.getElementById('token-dialog').open")
            await tab.run(f"({enter_token})('wrong')")
            await tab.until("!document.getElementById('token-problem').hidden")
            await tab.run(f"({enter_token})('open-sesame')")
            await tab.until(WORKING)
            await tab.go(f"{server.url}/")
            await tab.until(WORKING)
            assert not await tab.run("document.getElementById('token-dialog').open")
            assert await tab.run("localStorage.length + document.cookie.length") == 0
            assert not any("open-sesame" in url for url in tab.requests)
        await tab.until("!document.getElementById('banner').hidden")
        assert "The worker does not answer." in await tab.words()
        assert await tab.run("document.getElementById('screen').classList.contains('stale')")
