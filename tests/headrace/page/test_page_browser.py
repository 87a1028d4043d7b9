"""The page in a real Chromium with its made-up camera over a real worker: what a person sees and touches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import pytest
from chromium import Tab, chromium, open_tab, reason_to_skip
from page_server import PageServer, page_server
from PIL import Image

pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=reason_to_skip() or "")

# Mean of each colour (0 to 255), and the picture as a coarse grid of its green.
LOOK = """(() => {
  const preview = document.getElementById("picture"), video = document.getElementById("result");
  const seen = preview.hidden ? video : preview;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [64, 36];
  const context = canvas.getContext("2d");
  context.drawImage(seen, 0, 0, 64, 36);
  const { data } = context.getImageData(0, 0, 64, 36);
  const mean = [0, 0, 0], grid = new Array(144).fill(0);
  for (let i = 0; i < data.length; i += 4) {
    for (const c of [0, 1, 2]) mean[c] += data[i + c] / 2304;
    grid[((i / 1024) >> 0) % 9 * 16 + ((i / 16) & 15)] += data[i + 1];
  }
  return { red: mean[0], green: mean[1], blue: mean[2], grid };
})()"""
COLOURED = f"""(({{ red, green, blue }}) =>
  Math.max(red, green, blue) - Math.min(red, green, blue) > 8)({LOOK})"""

STATE = "document.getElementById('state-name').textContent"
SHOWN = f"document.getElementById('empty').hidden && ['Running', 'Degraded'].includes({STATE})"
OWN = f"{SHOWN} && document.getElementById('start-words').textContent === 'Stop'"
APPLIED = "document.getElementById('applied').textContent.startsWith('in force from frame')"
VIDEO = "document.getElementById('picture').hidden && document.getElementById('result').videoWidth === 640"
PROBLEMS = "!document.getElementById('problems').hidden"
MOVES = f"""(async () => {{
  const before = {LOOK}.grid;
  await new Promise((done) => setTimeout(done, 400));
  return {LOOK}.grid.some((value, index) => Math.abs(value - before[index]) > 100);
}})()"""

WATCH_LIGHT = f"""(() => {{
  const video = document.getElementById("result");
  globalThis.lights = [];
  const see = () => {{
    const {{ red, green, blue }} = {LOOK};
    lights.push(Math.max(red, green, blue));
    video.requestVideoFrameCallback(see);
  }};
  video.requestVideoFrameCallback(see);
}})()"""
LOSE = """(() => {
  const connect = RTCPeerConnection.prototype.setRemoteDescription;
  globalThis.peers = [];
  RTCPeerConnection.prototype.setRemoteDescription = function (...given) {
    peers.push(this);
    return connect.apply(this, given);
  };
})()"""

NEGATIVE = {
    "1": {"class_type": "LoadTensor", "inputs": {}, "_meta": {"title": "In"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["2", 0], "image2": ["1", 0], "blend_factor": 0.0, "blend_mode": "normal"},
        "_meta": {"title": "Mix"},
    },
    "4": {"class_type": "SaveTensor", "inputs": {"images": ["3", 0]}, "_meta": {"title": "Out"}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page_server("--demo", "--workflow", "edges") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def choose(tab: Tab, workflow: str) -> None:
    tab.until(f"document.querySelector('input[value={workflow}]:enabled') !== null")
    tab.run(f"document.querySelector('input[value={workflow}]').click()")
    tab.until(f"document.querySelector('input[value={workflow}]:checked:enabled') !== null")


def start_own(tab: Tab, source: str = "camera", workflow: str | None = None) -> None:
    tab.page.check(f"input[name=source][value={source}]")
    tab.click("start")
    tab.until(OWN)
    if workflow is not None:
        choose(tab, workflow)


def test_the_demo_is_watched_by_whep_with_every_figure_and_its_workflow_can_be_changed(
    server: PageServer, browser: Any
) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(f"{SHOWN} && {VIDEO}")
        # Edges: white lines on black.
        assert not tab.run(COLOURED)
        tab.until(MOVES)
        assert any("/whep/demo" in url for url in tab.requests)
        assert not any("preview.mjpeg" in url for url in tab.requests)
        choose(tab, "passthrough")
        tab.until(f"{SHOWN} && {COLOURED}")
        tab.until("document.querySelectorAll('#stages tr').length >= 5")
        for name in ("latency", "fps-input", "fps-processed", "fps-shown", "left-out", "bitrate"):
            tab.until(f"parseFloat(document.getElementById('{name}').textContent) >= 0")
        assert tab.text("latency-name") == "Latency, about"
        assert tab.text("reason")


def test_a_parameter_takes_effect_and_a_wrong_one_says_why_and_changes_nothing(
    server: PageServer, browser: Any
) -> None:
    values = "fetch('/api/page').then((r) => r.json()).then((s) => s.session.values)"
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        choose(tab, "edges")
        tab.until(f"{SHOWN} && !{COLOURED} && document.querySelectorAll('#params label').length === 2")
        before = tab.run(LOOK)["green"]
        tab.enter("low_threshold", "0.05")
        tab.enter("high_threshold", "0.1")
        tab.until(APPLIED)
        tab.until(f"{LOOK}.green > {before * 1.3}")
        tab.enter("low_threshold", "7")
        words = tab.until("document.querySelector('#params .problem:not([hidden])')?.textContent")
        assert words == "Must be at most 0.99, got 7. 0.05 stays in force."
        assert tab.run("document.querySelectorAll('#params [aria-invalid=true]').length") == 1
        assert tab.run(values) == {"2.low_threshold": 0.05, "2.high_threshold": 0.1}
        tab.click("reset")
        tab.until("document.getElementById('reset').hidden")
        assert tab.run(values) == {"2.low_threshold": 0.4, "2.high_threshold": 0.8}
        assert tab.run("document.querySelectorAll('#params .problem:not([hidden])').length") == 0


def test_a_camera_is_processed_and_its_latency_is_measured_frame_by_frame(
    server: PageServer, browser: Any
) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        choose(tab, "edges")
        start_own(tab)
        tab.until(f"{VIDEO} && !{COLOURED}")
        tab.until("document.getElementById('latency-name').textContent === 'Glass to glass'")
        # Not a number is true in Python, so the page's zero stands for it.
        latency = tab.until("parseFloat(document.getElementById('latency').textContent) || 0")
        assert 1 < latency < 5000
        # The source beside the result: green on the left, edges on the right.
        tab.page.check("input[name=view][value=split]")
        assert tab.run("!document.getElementById('split').hidden")
        tab.page.focus("#split")
        tab.page.keyboard.press("PageDown")
        assert tab.run("document.getElementById('split').getAttribute('aria-valuenow')") == "40"
        tab.click("start")
        tab.until(f"{STATE} === 'Your stream has ended'")
        # It ends at the worker at once, not only when its publisher has been gone for a while.
        tab.until("fetch('/api/page').then((r) => r.json()).then((s) => s.sessions.length === 1)", 8)


def test_a_dropped_workflow_replaces_the_one_that_runs_without_a_black_frame(
    server: PageServer, browser: Any
) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        start_own(tab, "camera", "passthrough")
        # The camera is green: no red in it; its negative is red all over.
        tab.until(f"{LOOK}.red < 60 && {LOOK}.green > 60")
        tab.run(WATCH_LIGHT)
        tab.until("lights.length > 3")
        tab.drop("negative.json", json.dumps(NEGATIVE))
        tab.until(f"{LOOK}.red > 180")
        seen = tab.run("lights.length")
        tab.until(f"lights.length > {seen + 3}")
        assert min(tab.run("lights")) > 60
        tab.until("document.querySelector('.choice:has(:checked) strong').textContent === 'negative'")
        tab.until("document.getElementById('params').innerText.includes('blend_factor')")
        tab.enter("blend_factor", "1")
        tab.until(f"{APPLIED} && {LOOK}.red < 60")
        broken = {**NEGATIVE, "2": {"class_type": "ImageInvrt", "inputs": {"image": ["1", 0]}}}
        tab.drop("broken.json", json.dumps(broken))
        tab.until(PROBLEMS)
        wrong = tab.run("[...document.querySelectorAll('.node.wrong')].map((each) => each.innerText)")
        assert len(wrong) == 1
        assert "node 2" in wrong[0]
        assert "did you mean ImageInvert" in wrong[0]
        tab.drop("notes.json", "{ not JSON")
        tab.until(f"{PROBLEMS} && document.getElementById('problems').innerText.includes('This is not JSON')")
        # What ran goes on.
        assert tab.run(SHOWN)
        tab.until(MOVES)


def test_a_stream_of_the_page_is_watched_from_another_and_outlives_the_engine(
    server: PageServer, browser: Any
) -> None:
    with open_tab(browser, f"{server.url}/") as own, ExitStack() as stack:
        own.until(SHOWN)
        start_own(own, "pattern", "passthrough")
        own.until(f"{LOOK}.green > 60 && {VIDEO}")
        session = own.until("document.getElementById('session').value")
        viewer = stack.enter_context(open_tab(browser, f"{server.url}/#session={session}"))
        viewer.until(f"{SHOWN} && {VIDEO} && {LOOK}.green > 60")
        server.engine().kill()
        own.until("document.getElementById('engine-text').textContent.includes('restarted')", 60)
        for tab in (own, viewer):
            tab.until("document.getElementById('engine').dataset.state === 'ready'", 60)
            tab.until(f"{SHOWN} && {MOVES}", 60)
        # The connections went on throughout.
        assert sum(url.endswith("/offer") for url in own.requests) == 1
        assert sum("/whep/" in url for url in viewer.requests) == 1
        own.page.close()
        viewer.until("document.getElementById('empty-title').textContent.startsWith('There is no session')")


def test_a_picture_file_is_a_source_and_the_result_is_recorded_to_a_file(
    server: PageServer, browser: Any, tmp_path: Path
) -> None:
    red = tmp_path / "red.png"
    Image.new("RGB", (320, 180), (230, 20, 20)).save(red)
    with open_tab(browser, f"{server.url}/", accept_downloads=True) as tab:
        tab.until(SHOWN)
        choose(tab, "passthrough")
        tab.page.set_input_files("#file", red)
        assert tab.text("file-name") == "red.png"
        tab.click("start")
        tab.until(f"{OWN} && {LOOK}.red > 180 && {LOOK}.green < 80")
        tab.until("!document.getElementById('record').disabled")
        tab.click("record")
        tab.until("/Recording 0:0[1-9]/.test(document.getElementById('record-words').textContent)")
        with tab.page.expect_download() as saved:
            tab.click("record")
        path = tmp_path / saved.value.suggested_filename
        saved.value.save_as(path)
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) >= 3
        assert frames[-1].shape == (180, 320, 3)
        assert frames[-1][:, :, 0].mean() > 180


def test_latency_is_the_time_from_capture_to_display_whatever_the_timestamps_begin_with(
    server: PageServer, browser: Any
) -> None:
    # 60 frames, one each 33 ms, encoded 5 to 14 ms after their capture, shown 80 ms after it; both RTP
    # timestamps wrap on the way. The encoder is said to take 5 ms.
    script = """(async () => {
      const { GlassToGlass } = await import("/page/latency.js");
      const glass = new GlassToGlass();
      glass.clock.encodeTime = 5;
      const latencies = [];
      for (let n = 0; n < 60; n += 1) {
        const captured = 1_700_000_000_000 + n * 33;
        const [source, out] = [20_000, 90_000].map((early) => (2 ** 32 - early + n * 2970) % 2 ** 32);
        glass.sent({ rtp: source, encoded: captured + 5 + (n * 7) % 10, captured: null });
        glass.displayed(out, captured + 80);
        latencies.push(...glass.timing([[source, out, 12], [null, out, 0], [source + 1, out + 1, 12]]));
      }
      return latencies;
    })()"""
    with open_tab(browser, f"{server.url}/health") as tab:
        latencies = tab.run(script)
    assert len(latencies) == 60
    # The first frames know no better than that they waited; from the least one on it is exact.
    assert all(abs(value - 80) < 10 for value in latencies)
    assert all(abs(value - 80) < 0.01 for value in latencies[10:])


def test_a_connection_that_was_lost_is_made_again(server: PageServer, browser: Any) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        tab.run(LOSE)
        start_own(tab, "pattern")
        tab.run("peers.at(-1).close(), peers.at(-1).dispatchEvent(new Event('connectionstatechange'))")
        tab.until(f"peers.length === 2 && {OWN}")
        tab.until(MOVES)


def test_where_webrtc_does_not_get_through_the_picture_comes_over_http(
    server: PageServer, browser: Any
) -> None:
    def refuse(route: Any) -> None:
        route.fulfill(status=415, json={"code": "unsupported_type", "message": "no codec is left"})

    with open_tab(browser, "about:blank") as tab:
        tab.page.route("**/whep/*", refuse)
        tab.page.goto(f"{server.url}/")
        tab.until(f"{SHOWN} && !document.getElementById('picture').hidden")
        tab.until(MOVES)
        assert tab.text("reason").endswith("Shown over HTTP.")
        assert "no codec is left" in tab.run("document.getElementById('status').title.toLowerCase()")
        tab.until("document.getElementById('latency-name').textContent === 'In the worker'")


def test_without_a_camera_it_says_what_to_do(server: PageServer, browser: Any) -> None:
    with open_tab(browser, f"{server.url}/", permissions=[]) as tab:
        tab.until(SHOWN)
        tab.click("start")
        tab.until(f"{STATE} === 'The camera is not allowed'")
        assert "address bar" in tab.text("reason")
        # The demo is still there, and the way to try again too.
        assert tab.run("document.getElementById('empty').hidden")
        assert tab.text("start-words") == "Start camera"


def test_nothing_is_asked_of_other_servers_and_every_control_has_a_name(
    server: PageServer, browser: Any
) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        choose(tab, "cartoon")
        tab.until("document.querySelectorAll('#params label').length > 8")
        for url in tab.requests:
            assert urlsplit(url).scheme in ("data", "blob") or url.startswith(f"{server.url}/"), url
        nameless = tab.run(
            """[...document.querySelectorAll("button, input, select, textarea, [role=slider], canvas, video")]
            .filter((each) => !each.closest("[hidden], dialog, [aria-hidden=true]"))
            .filter((each) => !each.labels?.length && !each.textContent.trim() && !each.ariaLabel)
            .map((each) => each.outerHTML)"""
        )
        assert nameless == []
        # From the first tab stop to the main action by the keyboard alone.
        tab.page.keyboard.press("Tab")
        tab.page.keyboard.press("Enter")
        assert tab.run("document.activeElement.id") == "start"
        # A viewer takes leave of a session that may be gone already: another workflow is another demo.
        assert [error for error in tab.errors if "/whep/demo/" not in error] == []


def test_it_fits_the_screen_by_day_and_night(server: PageServer, browser: Any) -> None:
    with open_tab(browser, f"{server.url}/") as tab:
        tab.until(SHOWN)
        for width, height, scheme in ((1280, 800, "dark"), (1280, 800, "light"), (360, 780, "light")):
            tab.page.set_viewport_size({"width": width, "height": height})
            tab.page.emulate_media(color_scheme=scheme)
            tab.until(f"innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches")
            assert tab.run("document.documentElement.scrollWidth") <= width, width
            assert tab.run("document.getElementById('figures').getBoundingClientRect().bottom") < height
            ground = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (max(ground) < 60) == (scheme == "dark")


def test_a_token_is_asked_for_once_and_failures_are_told_in_words(browser: Any) -> None:
    enter_token = """((token) => {
      document.getElementById("token").value = token;
      document.getElementById("token-form").requestSubmit();
    })"""
    secret = {"HEADRACE_TOKEN": "open-sesame"}
    with ExitStack() as stack:
        with page_server(
            *("--demo", "--workflow", "passthrough", "--capacity", "1", "--host", "0.0.0.0"),
            environment=secret,
        ) as server:
            tab = stack.enter_context(open_tab(browser, f"{server.url.replace('0.0.0.0', '127.0.0.1')}/"))
            tab.until("document.getElementById('token-dialog').open")
            tab.run(f"{enter_token}('wrong')")
            tab.until("!document.getElementById('token-problem').hidden")
            tab.run(f"{enter_token}('open-sesame')")
            tab.until(SHOWN)
            tab.page.reload()
            tab.until(f"{SHOWN} && {VIDEO}")
            assert not tab.run("document.getElementById('token-dialog').open")
            assert tab.run("localStorage.length + document.cookie.length") == 0
            assert not any("open-sesame" in url for url in tab.requests)
            tab.page.check("input[name=source][value=pattern]")
            tab.click("start")
            tab.until("document.getElementById('reason').textContent.includes('Every place is taken')")
            tab.click("start")
            tab.until(f"{STATE} === 'Your stream has ended'")
            hosts = tab.run(
                """fetch("/api/page", { headers: { Authorization: "Bearer open-sesame" } })
                .then((answer) => answer.json()).then(({ hosts }) => hosts)"""
            )
            for host in [host for host in hosts if host.replace(".", "").isdigit()][:1]:
                away = stack.enter_context(open_tab(browser, f"http://{host}:{urlsplit(server.url).port}/"))
                away.until("!document.getElementById('source-note').hidden")
                assert "--self-signed" in away.text("source-note")
                assert away.run("document.querySelector('input[name=source]:checked').value") == "pattern"
        tab.until("!document.getElementById('banner').hidden")
        assert "The worker does not answer." in tab.words()
        assert tab.run("document.getElementById('screen').classList.contains('stale')")
