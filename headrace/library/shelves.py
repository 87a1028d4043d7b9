"""Where the command line finds workflows: a folder of this machine, or a running worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from headrace.checking.object_info import elsewhere
from headrace.library.files import to_keep
from headrace.library.names import Library
from headrace.models.remote import Remote
from headrace.server.catalogue import Catalogue, examined
from headrace.server.definitions import WorkerDefinitions
from headrace.server.specs import Specs
from headrace.settings import load_settings
from stream.errors import InvalidInput
from workflows.carriers import is_picture


class Shelf(Protocol):
    """Workflows that are kept somewhere. ``where`` goes behind a verb: ``in FOLDER``, ``by URL``."""

    where: str

    def entries(self) -> list[dict[str, Any]]: ...
    def content(self, name: str) -> bytes: ...
    def schema(self, name: str) -> dict[str, Any]: ...
    def put(self, name: str, content: bytes, *, replace: bool) -> list[dict[str, Any]]: ...
    def remove(self, name: str) -> None: ...


def shelf_of(folder: Path | None, url: str | None, token: str | None, insecure_tls: bool) -> Shelf:
    """The worker under ``url``, else the folder (None: that of the settings)."""
    if url is None:
        return FolderShelf(folder)
    if folder is not None:
        raise InvalidInput("give --folder or --url, not both", field="--url")
    return RemoteShelf(url, token, verify_tls=not insecure_tls)


class FolderShelf:
    """The folder of this machine, looked at as a worker with the same settings would."""

    def __init__(self, folder: Path | None) -> None:
        settings = load_settings({"workflows": folder})
        self._names = Library(settings.workflows)
        definitions = WorkerDefinitions(settings.input_folder, settings.models_folder)
        if settings.object_info is not None:
            definitions.elsewhere = elsewhere(settings.object_info)
        self._specs = Specs(
            definitions,
            local=settings.engine_python is None,
            named=self._names.load,
        )
        self._catalogue = Catalogue(self._specs, self._names)
        self.where = f"in {self._names.store.folder}"

    def entries(self) -> list[dict[str, Any]]:
        return [entry.as_dict() for entry in self._catalogue.entries()]

    def content(self, name: str) -> bytes:
        return self._names.read(name)[0]

    def schema(self, name: str) -> dict[str, Any]:
        return self._specs.parameters(self._specs.of_workflow(name)).schema()

    def put(self, name: str, content: bytes, *, replace: bool) -> list[dict[str, Any]]:

        self._names.check_own(name)
        data, kept = to_keep(content, lambda data: len(examined(data, self._specs)["problems"]))
        found = examined(data, self._specs)
        if not found["nodes"]:
            raise InvalidInput("this JSON has no nodes; it is no workflow", field="FILE")
        self._names.store.put(name, kept, create=not replace)
        problems: list[dict[str, Any]] = found["problems"]
        return problems

    def remove(self, name: str) -> None:
        self._names.check_own(name)
        self._names.store.remove(name)


class RemoteShelf:
    """A running worker."""

    def __init__(self, url: str, token: str | None, *, verify_tls: bool) -> None:

        self._remote = Remote(url, token, verify_tls=verify_tls)
        self.where = f"by {url}"

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._remote.get("/workflows").get("workflows", [])
        return found

    def content(self, name: str) -> bytes:
        return self._remote.file(_path(name))

    def schema(self, name: str) -> dict[str, Any]:
        return self._remote.get(f"{_path(name)}/schema")

    def put(self, name: str, content: bytes, *, replace: bool) -> list[dict[str, Any]]:

        kind = "application/octet-stream" if is_picture(content) else "application/json"
        headers = {} if replace else {"If-None-Match": "*"}
        problems: list[dict[str, Any]] = self._remote.put(_path(name), content, kind, **headers)["problems"]
        return problems

    def remove(self, name: str) -> None:
        self._remote.delete(_path(name))


def _path(name: str) -> str:
    return f"/workflows/{quote(name, safe='')}"
