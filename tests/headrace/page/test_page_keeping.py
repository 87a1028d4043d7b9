"""Keeping workflows on the page, in a real browser before a real worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Tab, chromium, open_tab, reason_to_skip
from page_server import page_server

from tests.headrace.library.test_library_routes import carrying
from workflows import library

pytest.importorskip("torch")
if reason := reason_to_skip():
    pytest.skip(reason, allow_module_level=True)

DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
CHECKED = "document.querySelector('#workflows :checked')?.value"
RUNNING = "document.getElementById('empty').hidden"
DIALOG = "document.getElementById('keep-dialog').open"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workflows")


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Tab]:
    settings = {"HEADRACE_WORKFLOWS": str(folder)}
    with (
        page_server("--demo", "--workflow", "edges", environment=settings) as server,
        chromium() as browser,
        open_tab(browser, f"{server.url}/") as tab,
    ):
        tab.until(f"{RUNNING} && document.querySelectorAll('#params input').length > 0")
        yield tab


def drop(tab: Tab, name: str, kind: str, content: bytes) -> None:
    tab.page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])


def shown(element: str) -> str:
    return f"!document.getElementById('{element}').hidden"


def negative() -> dict[str, Any]:
    workflow: dict[str, Any] = library.load("edges")
    workflow["2"] = {
        "class_type": "ImageInvert",
        "inputs": {"image": ["1", 0]},
        "_meta": {"title": "Negative"},
    }
    return workflow


def test_a_picture_that_carries_a_workflow_runs_and_is_kept_under_a_name(tab: Tab, folder: Path) -> None:
    drop(tab, "night: sky.png", "image/png", carrying("PNG", prompt=json.dumps(negative())))
    tab.until(f"{CHECKED} === 'own:' && {shown('keep')}")
    tab.click("keep")
    assert tab.run("document.getElementById('keep-name').value") == "night sky"
    tab.click("keep-submit")
    tab.until(f"!{DIALOG} && {CHECKED} === 'night sky'")
    assert json.loads((folder / "night sky.json").read_text()) == negative()
    # The worker says the same of what runs, and nobody is offered what was brought a second time.
    tab.until("document.getElementById('workflow-of').textContent.includes('pattern')")
    tab.page.wait_for_timeout(2500)
    assert tab.run(CHECKED) == "night sky"
    assert tab.run("document.querySelectorAll('#workflows [value=\"night: sky\"]').length") == 0


def test_what_cannot_run_is_told_node_by_node_and_can_be_kept_all_the_same(tab: Tab, folder: Path) -> None:
    broken = negative()
    broken["2"]["class_type"] = "ImageInvrt"
    drop(tab, "broken.webp", "image/webp", carrying("WEBP", prompt=json.dumps(broken)))
    tab.until(shown("problems"))
    assert "There is no node class ImageInvrt (did you mean ImageInvert?)" in tab.text("problem-list")
    assert tab.run("document.querySelector('.node.wrong').textContent").startswith("Negative")
    tab.click("problems-keep")
    # A name that is taken is only used when that is meant.
    tab.page.fill("#keep-name", "night sky")
    tab.click("keep-submit")
    tab.until("document.getElementById('keep-submit').textContent === 'Replace it'")
    assert "already" in tab.text("keep-problem")
    tab.page.fill("#keep-name", "broken")
    assert tab.text("keep-submit") == "Keep"
    tab.click("keep-submit")
    tab.until(f"!{DIALOG} && document.querySelector('#workflows [value=broken]:disabled') !== null")
    assert json.loads((folder / "night sky.json").read_text()) == negative()
    tab.page.click("[aria-label='Problems of broken']")
    tab.until(
        f"{shown('problems')} && document.getElementById('problems-title').textContent.startsWith('broken')"
    )
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.page.click("[aria-label='Remove broken']")
    tab.until("document.querySelector('#workflows [value=broken]') === null")
    assert not (folder / "broken.json").exists()


def test_tuned_parameters_are_saved_into_the_kept_file(tab: Tab, folder: Path) -> None:
    workflow = library.load("edges")
    workflow["2"]["_meta"]["note"] = "left alone"
    drop(tab, "outlines.json", "application/json", json.dumps(workflow).encode())
    tab.until(f"{CHECKED} === 'own:' && {shown('keep')}")
    tab.until("document.querySelectorAll('#params input').length > 0")
    # The demo begins anew with another workflow.
    tab.until("['Running', 'Degraded'].includes(document.getElementById('state-name').textContent)")
    tab.enter("low_threshold", "0.15")
    tab.until(f"{shown('save')} && document.getElementById('keep').hidden")
    tab.click("save")
    assert tab.run("document.getElementById('keep-name').value") == "outlines"
    tab.click("keep-submit")
    tab.until(f"!{DIALOG} && document.querySelector('#workflows [value=outlines]') !== null")
    workflow["2"]["inputs"]["low_threshold"] = 0.15
    assert json.loads((folder / "outlines.json").read_text()) == workflow


def test_a_dropped_picture_without_a_workflow_is_the_source(tab: Tab) -> None:
    drop(tab, "plain.png", "image/png", carrying("PNG"))
    tab.until("document.getElementById('file-name').textContent.includes('plain.png')")
    assert tab.run("document.querySelector('input[name=source]:checked').value") == "file"
