"""The models that a workflow's file names: reading them, and pulling them into ComfyUI's layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from hub_server import Hub, running
from typer.testing import CliRunner

from headrace.cli import app
from headrace.models.download import PullFailed
from headrace.models.errors import ModelNotFound
from headrace.models.roots import Roots
from headrace.models.workflow_models import NamedModel, WorkflowPuller, models_of
from stream.errors import Forbidden, InvalidInput

LARGE = os.urandom(600_000)
DIGEST = hashlib.sha256(LARGE).hexdigest()
ON_HUB = "https://huggingface.co/owner/split/resolve/main/split_files"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        hub.repositories["owner/split"] = {
            "split_files/vae/small ae.safetensors": b"vae",
            "split_files/large.safetensors": LARGE,
        }
        yield hub


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "models", tmp_path / "hub", tmp_path / "cache")


def model(name: str, url: str, directory: str = "checkpoints", **more: str) -> dict[str, str]:
    return {"name": name, "url": url, "directory": directory, **more}


def drawn(*models: Any, inner: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A file as the editor saves it, with models of a node, and of one in a subgraph."""

    def node(number: int, models: tuple[Any, ...]) -> dict[str, Any]:
        return {"id": number, "type": "CheckpointLoaderSimple", "properties": {"models": list(models)}}

    subgraph = {"id": "a-b", "nodes": [node(7, inner)], "links": []}
    return {"nodes": [node(1, models)], "links": [], "definitions": {"subgraphs": [subgraph]}}


def test_models_are_read_from_nodes_and_subgraphs_each_once() -> None:
    large = model("large.safetensors", f"{ON_HUB}/large.safetensors", hash=DIGEST.upper(), hash_type="SHA256")
    small = model("ae.safetensors", f"{ON_HUB}/vae/small%20ae.safetensors", "vae")
    assert models_of(drawn(large, small, inner=(small,))) == [
        NamedModel("large.safetensors", large["url"], "checkpoints", DIGEST),
        NamedModel("ae.safetensors", small["url"], "vae"),
    ]
    assert models_of({"1": {"class_type": "X", "inputs": {"models": ["no"]}}}) == []
    for nonsense in (None, [], 3, "x", {"models": {"name": 1}}):
        assert models_of(nonsense) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (model("../../x.safetensors", "u"), "begins with a dot"),
        (model("x.safetensors", "u", "../out"), "begins with a dot"),
        (model("x.safetensors", "u", "/etc"), "begins or ends with a slash"),
        (model("x.ckpt", "u"), "may run code"),
        (model("x", "u"), "may run code"),
        ({"name": "x.safetensors"}, "not told by name, url and directory"),
        (model("x.safetensors", "", "vae"), "not told by"),
    ],
)
def test_bad_entries_are_refused_all_at_once(entry: dict[str, str], words: str) -> None:
    other = model("b.bin", "u")
    with pytest.raises(InvalidInput, match=words) as caught:
        models_of(drawn(entry, other))
    assert len(caught.value.details) == 2


def test_two_addresses_of_one_file_are_refused() -> None:
    with pytest.raises(InvalidInput, match="two addresses"):
        models_of(drawn(model("a.safetensors", "u"), model("a.safetensors", "v")))


def test_they_come_into_their_folders_checked_and_only_once(hub: Hub, roots: Roots) -> None:
    url = f"{ON_HUB}/large.safetensors"
    named = models_of(
        drawn(
            model(
                "large.safetensors",
                f"{url}?download=true",
                hash=DIGEST,
                hash_type="SHA256",
            ),
            model("sub/ae.safetensors", f"{ON_HUB}/vae/small%20ae.safetensors", "vae"),
        )
    )
    puller = WorkflowPuller(roots, endpoint=hub.url)
    files = puller.plan(named)
    assert [(file.size, file.here) for file in files] == [(len(LARGE), False), (3, False)]
    told: list[tuple[int, int]] = []
    puller.fetch(files, lambda name, done, size: told.append((done, size)))
    assert (roots.models / "checkpoints" / "large.safetensors").read_bytes() == LARGE
    assert (roots.models / "vae" / "sub" / "ae.safetensors").read_bytes() == b"vae"
    assert told[-1] == (len(LARGE) + 3, len(LARGE) + 3)
    served = len(hub.served)
    again = puller.plan(named)
    assert all(file.here for file in again)
    puller.fetch(again)
    assert len(hub.served) == served


def test_a_file_goes_on_where_it_broke_off(hub: Hub, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.models.download._PAUSE", 0.0)
    named = [NamedModel("large.safetensors", f"{ON_HUB}/large.safetensors", "checkpoints")]
    puller = WorkflowPuller(roots, endpoint=hub.url)
    hub.cut, hub.patience = 200_000, 1
    files = puller.plan(named)
    with pytest.raises(PullFailed):
        puller.fetch(files)
    assert not files[0].target.exists()
    hub.cut = hub.patience = None
    puller.fetch(files)
    assert files[0].target.read_bytes() == LARGE
    assert any(span for _, span in hub.served[-1:]), "it began anew"


def test_another_digest_or_another_file_of_that_name_is_refused(hub: Hub, roots: Roots) -> None:
    puller = WorkflowPuller(roots, endpoint=hub.url)
    url = f"{ON_HUB}/large.safetensors"
    with pytest.raises(InvalidInput, match="another file by now"):
        puller.plan([NamedModel("large.safetensors", url, "checkpoints", "0" * 64)])
    target = roots.models / "checkpoints" / "large.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="another file of that name"):
        puller.plan([NamedModel("large.safetensors", url, "checkpoints")])
    assert target.read_bytes() == b"mine"
    with pytest.raises(ModelNotFound):
        puller.plan([NamedModel("x.safetensors", f"{ON_HUB}/x.safetensors", "vae")])


def test_other_hosts_are_asked_only_where_that_is_allowed(hub: Hub, roots: Roots) -> None:
    elsewhere = f"{hub.url}/owner/split/resolve/main/split_files/large.safetensors"
    for url in (elsewhere, "http://huggingface.co/a/b/resolve/main/x", "file:///etc/passwd", "nonsense"):
        with pytest.raises(Forbidden, match=r"huggingface\.co alone"):
            WorkflowPuller(roots, endpoint="https://hub.example").plan(
                [NamedModel("x.safetensors", url, "vae")]
            )
    assert hub.served == []
    puller = WorkflowPuller(roots, endpoint="https://hub.example", allowed_hosts=("127.0.0.1",))
    for digest in (None, DIGEST):
        files = puller.plan([NamedModel(f"x{digest}.safetensors", elsewhere, "vae", digest)])
        puller.fetch(files)
        assert files[0].target.read_bytes() == LARGE
    with pytest.raises(PullFailed, match="damaged"):
        puller.fetch(puller.plan([NamedModel("z.safetensors", elsewhere, "vae", "0" * 64)]))
    assert not (roots.models / "vae" / "z.safetensors").exists()


def test_the_command_says_what_it_fetches(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    file, models = tmp_path / "drawn.json", tmp_path / "models"
    file.write_text(json.dumps(drawn(model("large.safetensors", f"{ON_HUB}/large.safetensors"))))

    def pull(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["models", "pull", *arguments, "--folder", str(models)])

    planned = pull("--workflow", str(file), "--dry-run")
    assert (planned.exit_code, "to fetch" in planned.output) == (0, True), planned.exception
    assert not models.exists()
    assert "1 fetched" in pull("--workflow", str(file)).output
    assert (models / "checkpoints" / "large.safetensors").read_bytes() == LARGE
    assert "here" in pull("--workflow", str(file)).output
    assert "names no models" in pull("--workflow", "edges").output
    assert pull().exception.field == pull("owner/x", "--workflow", "edges").exception.field == "MODEL"
