"""``headrace workflows``, on a folder and on a running worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_library_routes import carrying, idle_worker
from typer.testing import CliRunner, Result

from headrace.cli import app
from workflows import library

EDGES = library.content("edges")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["workflows", *arguments])


@pytest.fixture(params=["folder", "worker"])
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Runs the command on a folder, or on a worker with that folder, in a thread."""

    def asking(*where: str) -> Callable[..., Any]:
        return lambda *arguments: asyncio.to_thread(run, *arguments, *where)

    if request.param == "folder":
        yield asking("--folder", str(tmp_path / "kept"))
        return
    async with idle_worker(tmp_path / "kept", token="secret") as client:
        yield asking("--url", str(client._base_url), "--token", "secret")


async def test_a_file_is_added_listed_shown_and_removed(shelf: Any, tmp_path: Path) -> None:
    (tmp_path / "night sky.json").write_bytes(EDGES)
    added = await shelf("add", str(tmp_path / "night sky.json"))
    assert (added.exit_code, "night sky is kept" in added.output) == (0, True)
    assert (tmp_path / "kept" / "night sky.json").read_bytes() == EDGES
    listed = json.loads((await shelf("list", "--json")).output)
    assert [entry["name"] for entry in listed] == ["night sky", *library.names()]
    assert "night sky" in (await shelf("list")).output
    shown = (await shelf("show", "night sky")).output
    assert "2.low_threshold" in shown
    assert "0.01 to 0.99" in shown
    assert (await shelf("show", "night sky", "--json")).stdout_bytes == EDGES
    again = await shelf("add", str(tmp_path / "night sky.json"))
    assert again.exception.message.endswith("--replace overwrites it")
    assert (await shelf("add", str(tmp_path / "night sky.json"), "--replace")).exit_code == 0
    assert "--yes" in (await shelf("rm", "night sky")).exception.message
    assert (await shelf("rm", "night sky", "--yes")).exit_code == 0
    assert (await shelf("show", "night sky")).exception.code == "not_found"


async def test_what_cannot_run_is_added_with_its_problems_told(shelf: Any, tmp_path: Path) -> None:
    workflow = library.load("edges")
    workflow["2"]["class_type"] = "Cany"
    (tmp_path / "own.png").write_bytes(carrying("PNG", prompt=json.dumps(workflow)))
    added = await shelf("add", str(tmp_path / "own.png"), "mine")
    assert added.exit_code == 0
    assert "1 problem" in added.output
    assert 'node 2 "Edges" (Cany): there is no node class Cany' in added.output
    assert "Cany" in (await shelf("list")).output
    assert json.loads((tmp_path / "kept" / "mine.json").read_bytes()) == workflow


async def test_bad_input_is_refused(shelf: Any, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "edges.json").write_bytes(EDGES)
    for arguments, code in (
        (("add", str(tmp_path / "gone.json")), "not_found"),
        (("add", str(tmp_path / "list.json")), "invalid_input"),
        (("add", str(tmp_path / "edges.json")), "conflict"),
        (("add", str(tmp_path / "edges.json"), "../out"), "invalid_input"),
        (("rm", "edges", "--yes"), "conflict"),
    ):
        assert (await shelf(*arguments)).exception.code == code, arguments
