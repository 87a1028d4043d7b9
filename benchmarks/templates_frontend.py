"""ComfyUI's own frontend in a headless Chromium: what it queues of a file that its editor saved."""

from __future__ import annotations

import json
import mimetypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_READY_MS = 120_000
_ORIGIN = "http://comfyui.invalid/"
_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
}
_NAMED_VALUES = "Comfy.Workflow.NamedValuesRestore"
_HAS_NODES = """(count) => window.app?.graph && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).length >= count"""
# Two pictures drawn: some nodes settle their inputs in the one after they were made.
_QUEUE = """async (data) => {
    const drawn = () => new Promise((done) => requestAnimationFrame(done))
    await window.app.loadGraphData(data, true, false, null, {})
    await drawn()
    await drawn()
    try {
        return { output: (await window.app.graphToPrompt()).output }
    } catch (error) {
        return { error: String(error) }
    }
}"""


def reason_to_skip(package: Path | None) -> str | None:
    """Why there can be no frontend here; None when there can."""
    if package is None or not (package / "static" / "index.html").is_file():
        return "comfyui-frontend-package is not there: pip install --target DIR comfyui-frontend-package"
    if _chromium() is None:
        return "no Chromium on the PATH"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "Playwright is not installed"
    return None


class Frontend:
    """The editor, with the nodes of an ``/object_info``."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def queued(self, workflow: dict[str, Any]) -> dict[str, Any] | str:
        """API-format data of a workflow, or what the frontend says instead."""
        answer = self._page.evaluate(_QUEUE, workflow)
        return str(answer["error"]) if "error" in answer else dict(answer["output"])


@contextmanager
def frontend(package: Path, object_info: dict[str, Any], *, named_values: bool = False) -> Iterator[Frontend]:
    """``named_values``: let it restore widgets by the names in a file where a file has them; it does so by
    position otherwise."""
    from playwright.sync_api import sync_playwright

    answers = _answers(object_info, named_values)
    static = package / "static"

    def answer(route: Any) -> None:
        path = route.request.url.removeprefix(_ORIGIN).partition("?")[0]
        if not route.request.url.startswith(_ORIGIN):
            route.abort()
        elif path.removeprefix("api/") in answers and path.startswith("api/"):
            text = answers[path.removeprefix("api/")]
            route.fulfill(status=200, content_type="application/json", body=text)
        elif (file := static / (path or "index.html")).is_file():
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            route.fulfill(status=200, content_type=kind, body=file.read_bytes())
        else:
            route.fulfill(status=404, content_type="application/json", body="{}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=list(_OPTIONS))
        try:
            page = browser.new_page()
            page.route("**/*", answer)
            page.route_web_socket("**/ws**", lambda socket: None)
            page.goto(_ORIGIN, wait_until="domcontentloaded", timeout=_READY_MS)
            page.wait_for_function(_HAS_NODES, arg=len(object_info) // 2, timeout=_READY_MS)
            page.wait_for_timeout(2000)
            yield Frontend(page)
        finally:
            browser.close()


def _answers(object_info: dict[str, Any], named_values: bool) -> dict[str, str]:
    versions = dict.fromkeys(("comfyui_version", "python_version", "pytorch_version"), "0")
    system = versions | {"os": "posix", "embedded_python": False, "argv": []}
    given: dict[str, Any] = {
        "object_info": object_info,
        "settings": {**_SETTINGS, _NAMED_VALUES: named_values},
        "users": {"storage": "server", "migrated": True},
        "extensions": [],
        "system_stats": {"system": system, "devices": []},
        "features": {},
        "i18n": {},
        "queue": {"queue_running": [], "queue_pending": []},
        "history": {},
        "userdata": [],
        "v2/userdata": [],
        "embeddings": [],
        "workflow_templates": {},
        "experiment/models": [],
        "global_subgraphs": {},
        "jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 200, "total": 0, "has_more": False}},
    }
    return {path: json.dumps(data) for path, data in given.items()}


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)
