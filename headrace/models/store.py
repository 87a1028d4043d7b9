"""Models on this machine's disks: finding, listing and removing them. No network, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.models.demos import DEMOS, demo_path
from headrace.models.errors import ModelNotFound
from headrace.models.files import Choice, choose, missing
from headrace.models.refs import WEIGHT_SUFFIXES, ModelRef
from headrace.models.roots import Roots
from stream.errors import InvalidInput

ModelKind = Literal[
    "diffusers", "transformers", "gguf", "safetensors", "pickle", "ct2", "onnx", "package", "other"
]
Source = Literal["folder", "hub", "demo"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Located:
    """A model that is here. ``path``: a folder, or a file; for a tiny demo model that is not built yet, the
    folder where it will be (``built``). ``bytes``: of the weights that would be loaded."""

    ref: ModelRef
    path: Path
    kind: ModelKind
    revision: str
    bytes: int
    source: Source
    weights: str = "real"
    variant: str | None = None
    files: tuple[str, ...] = ()
    """The files to use, relative to ``path``; empty for a single file."""
    index: str | None = None
    """For pipelines, the class that ``model_index.json`` names."""

    @property
    def built(self) -> bool:
        return self.path.exists()

    def as_dict(self) -> dict[str, Any]:
        """JSON data for another process; `from_dict` reads it."""
        return {
            "ref": str(self.ref),
            "path": str(self.path),
            "kind": self.kind,
            "revision": self.revision,
            "bytes": self.bytes,
            "source": self.source,
            "weights": self.weights,
            "variant": self.variant,
            "files": list(self.files),
            "index": self.index,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Located:
        rest = {**data, "ref": ModelRef.parse(data["ref"]), "path": Path(data["path"])}
        return cls(**{**rest, "files": tuple(data["files"])})


class ModelStore:
    """Finds models below ``roots`` and nowhere else."""

    def __init__(self, roots: Roots) -> None:
        self.roots = roots

    # -- finding ---------------------------------------------------------------------------------------

    def find(self, ref: ModelRef | str, *, variant: str | None = None) -> Located:
        """The model of that name. ``variant``: ``fp16`` prefers files of half precision (for CUDA).

        Raises `InvalidInput` for what is no name, `ModelNotFound` with what to run, `UnsafeFile` where there
        are only pickles.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        if ref.kind == "demo":
            return self._demo(ref)
        local = self.roots.models / ref.name if ref.revision is None else None
        if local is not None and local.exists():
            return self._local(ref, _inside(local, self.roots.models, ref), variant)
        snapshot = self._snapshot(ref)
        if snapshot is None:
            raise ModelNotFound(self._advice(ref), field="model_id")
        return self._from_hub(ref, snapshot, variant)

    def _demo(self, ref: ModelRef) -> Located:
        demo = DEMOS.get(ref.name)
        if demo is None:
            raise ModelNotFound(
                f"there is no model {ref}; there are {', '.join(f'demo:{name}' for name in DEMOS)}",
                field="model_id",
            )
        path = demo_path(demo, self.roots.cache)
        if not demo.recipe:
            digest = _digest([path]) if path.is_file() else _digest(sorted(path.iterdir()))
            return Located(ref, path, demo.kind, digest, demo.size, "demo")
        files: tuple[str, ...] = ()
        if path.exists():
            files = self._choice(ref, path, None).files
        return Located(ref, path, demo.kind, path.name, demo.size, "demo", "random", files=files, index=None)

    def _local(self, ref: ModelRef, path: Path, variant: str | None) -> Located:
        if path.is_file():
            return Located(ref, path, _kind_of_file(path), _digest([path]), path.stat().st_size, "folder")
        return self._folder(ref, path, variant, None, "folder")

    def _from_hub(self, ref: ModelRef, snapshot: Path, variant: str | None) -> Located:
        inner = ref.file_in_repository
        if inner is None:
            return self._folder(ref, snapshot, variant, snapshot.name, "hub")
        path = snapshot / inner
        if not path.is_file():
            raise ModelNotFound(self._advice(ref), field="model_id")
        _inside(path, self.roots.hub, ref)
        return Located(ref, path, _kind_of_file(path), snapshot.name, path.stat().st_size, "hub")

    def _folder(
        self, ref: ModelRef, path: Path, variant: str | None, revision: str | None, source: Source
    ) -> Located:
        choice = self._choice(ref, path, variant)
        root = self.roots.hub if source == "hub" else self.roots.models
        index = _read_json(path / "model_index.json")
        lost = missing(
            choice, lambda name: (path / name).exists(), lambda name: (path / name).read_text(), index
        )
        if lost or (not choice.weights and choice.layout != "other"):
            what = f"{lost[0]} is missing" if lost else "it has no weights"
            raise ModelNotFound(f"model {ref} is not complete ({what}); {_pull(ref)}", field="model_id")
        weights = [path / name for name in choice.weights]
        for file in (path / name for name in choice.files):
            _inside(file, root, ref)
        kind: ModelKind = choice.layout if choice.layout != "file" else "other"
        if kind == "transformers" and weights and all(w.suffix == ".gguf" for w in weights):
            kind = "gguf"
        if kind == "other" and not weights:
            raise ModelNotFound(
                f"the folder {ref} has no model in it (no config.json, no weights)", field="model_id"
            )
        return Located(
            ref,
            path,
            kind,
            revision or _digest([path / name for name in choice.files]),
            sum(file.stat().st_size for file in weights),
            source,
            variant=choice.variant,
            files=choice.files,
            index=index.get("_class_name"),
        )

    def _choice(self, ref: ModelRef, path: Path, variant: str | None) -> Choice:
        index = _read_json(path / "model_index.json") or None
        return choose(_names(path), variant=variant, index=index, name=f"model {ref}")

    # -- the hub's cache -------------------------------------------------------------------------------

    def _snapshot(self, ref: ModelRef) -> Path | None:
        """The folder of the wanted revision in the hub's cache."""
        repository = ref.repository
        if repository is None:
            return None
        folder = repo_folder(self.roots.hub, repository)
        if not folder.is_dir():
            return None
        snapshots = folder / "snapshots"
        commit = commit_of(folder, ref.revision)
        if commit is not None:
            return snapshots / commit if (snapshots / commit).is_dir() else None
        if ref.revision is None and snapshots.is_dir():
            only = [one for one in snapshots.iterdir() if one.is_dir()]
            return only[0] if len(only) == 1 else None
        return None

    def _advice(self, ref: ModelRef) -> str:
        if ref.repository is None:
            return f"there is no model {ref} in {self.roots.models}"
        where = f"not in {self.roots.models}, not in the hub's cache"
        return f"model {ref} is not on this machine ({where}); {_pull(ref)}"

    # -- listing and removing --------------------------------------------------------------------------

    def list(self) -> list[Located]:
        """Every model that is here and whole, by name; tiny demo models only where they are built."""
        return sorted(self._all(), key=lambda found: (found.source, str(found.ref)))

    def _all(self) -> Iterator[Located]:
        for name in self._local_names():
            yield from self._try(name)
        if self.roots.hub.is_dir():
            for folder in sorted(self.roots.hub.glob("models--*")):
                yield from self._try(folder.name.removeprefix("models--").replace("--", "/"))
        for name in DEMOS:
            yield from (found for found in self._try(f"demo:{name}") if found.built)

    def _try(self, name: str) -> Iterator[Located]:
        try:
            yield self.find(name)
        except (InvalidInput, ModelNotFound):
            return  # half a download, a folder of something else, or a package that is not installed

    def _local_names(self) -> Iterator[str]:
        root = self.roots.models
        waiting = [root] if root.is_dir() else []
        while waiting:
            folder = waiting.pop()
            for entry in sorted(folder.iterdir()):
                name = entry.relative_to(root).as_posix()
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if (entry / "model_index.json").exists() or (entry / "config.json").exists():
                        yield name
                    elif name.count("/") + 1 < _DEPTH and not entry.is_symlink():
                        waiting.append(entry)
                elif entry.suffix.lower() in WEIGHT_SUFFIXES:
                    yield name

    def remove(self, ref: ModelRef | str) -> int:
        """Delete a model's files; how many bytes that freed.

        Of the hub's cache the whole repository goes, or with ``@revision`` what only that one uses. Demo
        models of packages are not ours to delete (`InvalidInput`). Raises `ModelNotFound`.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        if ref.kind == "demo":
            return self._remove_demo(ref)
        local = self.roots.models / ref.name
        if ref.revision is None and os.path.lexists(local):
            _inside(local.parent, self.roots.models, ref)
            return _delete(local)
        repository = ref.repository
        folder = repo_folder(self.roots.hub, repository) if repository else None
        if folder is None or not folder.is_dir():
            raise ModelNotFound(f"there is no model {ref} to remove", field="model_id")
        if ref.kind == "file":
            raise InvalidInput(f"remove the repository {repository}, not one file of it", field="model_id")
        return _delete(folder) if ref.revision is None else self._remove_revision(ref, folder)

    def _remove_demo(self, ref: ModelRef) -> int:
        found = self._demo(ref)
        if found.weights != "random":
            package = DEMOS[ref.name].install
            raise InvalidInput(
                f"{ref} belongs to the package {package}: pip uninstall {package}", field="model_id"
            )
        return _delete(found.path) if found.built else 0

    def _remove_revision(self, ref: ModelRef, folder: Path) -> int:
        commit = commit_of(folder, ref.revision)
        snapshot = folder / "snapshots" / commit if commit else None
        if snapshot is None or not snapshot.is_dir():
            raise ModelNotFound(f"there is no model {ref} to remove", field="model_id")
        shutil.rmtree(snapshot)
        for file in _walk(folder / "refs"):
            if file.read_text().strip() == commit:
                file.unlink()
        used = {os.path.realpath(file) for file in _walk(folder / "snapshots")}
        lonely = [blob for blob in _walk(folder / "blobs") if os.path.realpath(blob) not in used]
        freed = sum(blob.stat().st_size for blob in lonely)
        for blob in lonely:
            blob.unlink()
        return freed


def repo_folder(hub: Path, repository: str) -> Path:
    """Where the hub's cache keeps a repository."""
    return hub / f"models--{repository.replace('/', '--')}"


def commit_of(folder: Path, revision: str | None) -> str | None:
    """The commit that a branch, tag or commit means in a repository's folder of the hub's cache."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        text = (folder / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        return None
    return text if _COMMIT.fullmatch(text) else None


def _pull(ref: ModelRef) -> str:
    return f"`headrace models pull {ref}` gets it" if ref.repository else "copy it whole"


def _inside(path: Path, root: Path, ref: ModelRef) -> Path:
    """``path`` as given, if it lies below ``root`` once every link is followed."""
    real, top = os.path.realpath(path), os.path.realpath(root)
    if real != top and not real.startswith(top.rstrip("/") + "/"):
        raise InvalidInput(f"model {ref} leads out of {root}, by a link", field="model_id")
    return path


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below, by name; links to files are followed, links to folders are not."""
    for top, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(top, name) for name in sorted(names))


def _names(folder: Path) -> list[str]:
    """What `_walk` finds, by names relative to ``folder``; each request asks, so no path is made."""
    start = len(os.path.join(folder, ""))
    return [
        f"{top[start:]}/{name}" if top[start:] else name
        for top, _, files in os.walk(folder)
        for name in files
    ]


def _kind_of_file(path: Path) -> ModelKind:
    suffix = path.suffix.lower()
    return "gguf" if suffix == ".gguf" else "safetensors" if suffix == ".safetensors" else "pickle"


def _digest(files: list[Path]) -> str:
    """Changes when one of the files does: names, sizes and times, so that nothing needs to be read."""
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return f"local-{digest.hexdigest()[:16]}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _delete(path: Path) -> int:
    if path.is_symlink():
        path.unlink()
        return 0
    if path.is_file():
        size = path.stat().st_size
        path.unlink()
        return size
    size = sum(file.stat().st_size for file in _walk(path) if not file.is_symlink())
    shutil.rmtree(path)
    return size
