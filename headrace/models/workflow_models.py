"""The models that a workflow's file names, into ComfyUI's layout below the models folder.

Files that ComfyUI's editor saves say of a loader's models ``{"name", "url", "directory"}``, some with
``hash`` and ``hash_type``; files in API format say nothing.
"""

from __future__ import annotations

import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from headrace.models.download import TIMEOUT, PullFailed, download
from headrace.models.errors import amount
from headrace.models.pull import OnBytes, Puller
from headrace.models.refs import ModelRef
from headrace.models.roots import Roots
from stream.errors import Forbidden, HeadraceError, InvalidInput

SUFFIXES = (".safetensors", ".sft", ".gguf")
"""Formats that hold numbers alone; others run code when they are loaded."""
HUB = "huggingface.co"
MAX_MODELS = 200
_DEPTH = 12
_ON_HUB = re.compile(r"/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+)")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model as a workflow's file names it. ``digest``: SHA-256 in hexadecimal, where the file tells it."""

    name: str
    url: str
    directory: str
    digest: str | None = None

    @property
    def path(self) -> str:
        """Below the models folder."""
        return f"{self.directory}/{self.name}"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file to be had: from where, how many bytes, its digest if one is known, and whether it is there."""

    model: NamedModel
    target: Path
    url: str
    size: int
    digest: str | None
    here: bool = False


def models_of(workflow: Any) -> list[NamedModel]:
    """What a workflow's data names, each file once. Raises `InvalidInput` that lists every bad entry."""
    found: dict[str, NamedModel] = {}
    problems: list[str] = []
    for entry in _entries(workflow, _DEPTH):
        try:
            model = _named(entry)
            before = found.setdefault(model.path, model)
            addresses = {each.url.partition("?")[0] for each in (before, model)}
            if len(addresses) > 1 or (before.digest or model.digest) != (model.digest or before.digest):
                raise InvalidInput(f"{model.path} is named with two addresses: {before.url}, {model.url}")
        except InvalidInput as error:
            problems.append(error.message)
    if len(found) > MAX_MODELS:
        problems.append(f"it names {len(found)} models; at most {MAX_MODELS} are taken")
    if problems:
        problems = list(dict.fromkeys(problems))
        raise InvalidInput(
            "; ".join(problems), field="workflow", details=[{"message": text} for text in problems]
        )
    return list(found.values())


def _entries(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Every entry of a list ``models`` of a node's properties, of the file itself or of a subgraph."""
    if depth == 0:
        return
    if isinstance(value, Mapping):
        models = value.get("models")
        if isinstance(models, list):
            yield from (
                each for each in models if isinstance(each, Mapping) and each.keys() & {"url", "name"}
            )
        for inner in value.values():
            yield from _entries(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, depth - 1)


def _named(entry: Mapping[str, Any]) -> NamedModel:
    name, url, directory = (entry.get(key) for key in ("name", "url", "directory"))
    if not all(isinstance(each, str) and each for each in (name, url, directory)):
        raise InvalidInput(f"a model is not told by name, url and directory: {repr(dict(entry))[:120]}")
    model = NamedModel(str(name).replace("\\", "/"), str(url), str(directory), _digest(entry))
    ModelRef.parse(model.path)
    if not model.name.lower().endswith(SUFFIXES):
        raise InvalidInput(
            f"{model.path}: files of this kind may run code when they are loaded; {', '.join(SUFFIXES)} are "
            "fetched"
        )
    return model


def _digest(entry: Mapping[str, Any]) -> str | None:
    kind, digest = str(entry.get("hash_type", "")).lower().replace("-", ""), entry.get("hash")
    if kind == "sha256" and isinstance(digest, str) and _SHA256.fullmatch(digest):
        return digest.lower()
    return None


class WorkflowPuller:
    """Fetches into the models folder, from the hub and from ``allowed_hosts``, resuming as `Puller` does."""

    def __init__(
        self,
        roots: Roots,
        *,
        allowed_hosts: Collection[str] = (),
        endpoint: str | None = None,
        token: str | None = None,
    ) -> None:
        self._roots = roots
        self._allowed = {host.lower() for host in allowed_hosts}
        self._puller = Puller(roots, endpoint=endpoint, token=token)

    def plan(self, models: Collection[NamedModel]) -> list[ModelFile]:
        """Where each is, and which are here already (by name and, where it is told, size).

        Raises `Forbidden` for other hosts, before anybody is asked, and as `Puller.plan`.
        """
        for model in models:
            self._check_host(model)
        return [self._locate(model) for model in models]

    def fetch(
        self,
        files: Collection[ModelFile],
        on_bytes: OnBytes | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Fetch what is missing; what came before, also half of a file, is not fetched again.

        Raises `PullFailed`, `InvalidInput` when the disk has no room.
        """
        missing = [file for file in files if not file.here]
        total = sum(file.size for file in missing)
        self._check_space(total)
        done = 0
        for file in missing:
            before = done

            def tell(count: int, file: ModelFile = file, before: int = before) -> None:
                if cancel is not None and cancel.is_set():
                    raise PullFailed(f"pulling {file.model.path} was given up; what came so far is kept")
                if on_bytes is not None:
                    on_bytes(file.model.path, before + min(count, file.size), total)

            part = file.target.with_name(f".{file.target.name}.headrace.incomplete")
            tell(0)
            token = self._puller.hub_token() if self._is_hub(file.url) else None
            download(file.url, part, file.size, file.digest, token=token, tell=tell)
            part.replace(file.target)
            done += file.size
            tell(file.size)

    def _locate(self, model: NamedModel) -> ModelFile:
        target = self._roots.models / model.directory / model.name
        on_hub = _ON_HUB.fullmatch(urlsplit(model.url).path) if self._is_hub(model.url) else None
        url, digest = model.url, model.digest
        if on_hub is not None:
            url, size, digest = self._on_hub(model, *map(unquote, on_hub.groups()))
        else:
            size = _size_of(url)
        if target.exists() and target.stat().st_size != size:
            raise InvalidInput(
                f"{target} is there with {target.stat().st_size} bytes, and {model.url} has {size}: another "
                "file of that name; move it away first",
                field="workflow",
            )
        return ModelFile(model, target, url, size, digest, target.exists())

    def _on_hub(self, model: NamedModel, repository: str, revision: str, path: str) -> tuple[str, int, str]:
        plan = self._puller.plan(ModelRef.parse(f"{repository}/{path}@{revision}"))
        (wanted,) = plan.files
        if model.digest is not None and len(wanted.digest) == 64 and wanted.digest != model.digest:
            raise InvalidInput(
                f"{model.path}: the workflow says SHA-256 {model.digest}, the hub has {wanted.digest}; it is "
                "another file by now",
                field="workflow",
            )
        return self._puller.url_of(plan, wanted), wanted.size, wanted.digest

    def _is_hub(self, url: str) -> bool:
        return url.startswith((f"https://{HUB}/", f"{self._puller.endpoint}/"))

    def _check_host(self, model: NamedModel) -> None:
        parts = urlsplit(model.url)
        host = (parts.hostname or "").lower()
        if self._is_hub(model.url) or (host in self._allowed and parts.scheme in ("https", "http")):
            return
        raise Forbidden(
            f"{model.path} comes from {host or model.url[:80]!r}; models are fetched from https://{HUB} alone"
            " and from hosts that --allow-host names",
            field="workflow",
        )

    def _check_space(self, wanted: int) -> None:
        folder = self._roots.models
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if wanted > free:
            raise InvalidInput(
                f"the models need {amount(wanted)} more on {folder}, which has {amount(free)} free",
                field="workflow",
            )


def _size_of(url: str) -> int:
    """Bytes of a file on a host that is no hub. Raises `PullFailed`."""
    request = urllib.request.Request(
        quote(url, safe=":/?&=%#+,;@~"),
        method="HEAD",
        headers={"User-Agent": "headrace", "Accept-Encoding": "identity"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, urllib.error.URLError, HeadraceError) as error:
        raise PullFailed(f"{url} cannot be asked for its size: {error}") from None
    except (TypeError, ValueError):
        raise PullFailed(f"{url} does not say how large the file is") from None
