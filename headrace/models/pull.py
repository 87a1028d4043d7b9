"""Getting models from the hub: the files that are needed, resumable, with progress.

The worker and the command line use it without torch. huggingface_hub names the files; they are fetched one
after the other in the calling thread, into the hub's cache, where other programs find them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.models.download import PullFailed, download
from headrace.models.errors import ModelNotFound, amount
from headrace.models.files import choose
from headrace.models.refs import ModelRef
from headrace.models.roots import Roots
from headrace.models.store import repo_folder
from stream.errors import HeadraceError, InvalidInput, NotInstalled

log = logging.getLogger(__name__)

_TIMEOUT = 20.0
"""Seconds without an answer of the hub's API."""


class AccessDenied(HeadraceError):
    """The repository is private, or its licence must be accepted first."""

    code = "access_denied"
    status = 403


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file of a repository, its size in bytes, and its digest, by which the hub's cache names it."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pull fetches: ``files`` of a ``repository`` at a ``commit``."""

    ref: ModelRef
    repository: str
    commit: str
    files: tuple[Wanted, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


OnBytes = Callable[[str, int, int], None]
"""Called with a file's name, bytes done of all files, and bytes of all files."""


class Puller:
    """Pulls into the hub's cache. ``endpoint``: of the hub (None: HF_ENDPOINT, else huggingface.co)."""

    def __init__(self, roots: Roots, *, endpoint: str | None = None, token: str | None = None) -> None:
        self._roots = roots
        self._endpoint = endpoint
        self._token = token

    @property
    def endpoint(self) -> str:
        """The hub's address, without a slash at its end."""
        return (self._endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    def hub_token(self) -> str | None:
        """The token for the hub, if this account has one."""
        from huggingface_hub import get_token

        return self._token or get_token()

    def url_of(self, plan: Plan, file: Wanted) -> str:
        """Where the hub has a file of ``plan``."""
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(plan.repository, file.name, revision=plan.commit, endpoint=self.endpoint))

    def plan(self, ref: ModelRef | str, *, variant: str | None = None) -> Plan:
        """What there is to fetch. ``variant``: ``fp16`` takes files of half precision where there are any.

        Raises `InvalidInput` for what is no repository, `ModelNotFound`, `AccessDenied`, `PullFailed`,
        `UnsafeFile` where there are only pickles, `NotInstalled` without huggingface_hub.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        repository = ref.repository
        if repository is None:
            what = "is no repository of the hub"
            if ref.kind == "demo":
                what += "; a package brings it, or it is made when it is first used"
            raise InvalidInput(f"{ref} {what}", field="model_id")
        with self._translated(ref):
            info = self._api().model_info(
                repository, revision=ref.revision, files_metadata=True, timeout=_TIMEOUT
            )
        known = {file.rfilename: _wanted(file) for file in info.siblings or ()}
        names = self._names(ref, repository, str(info.sha), known, variant)
        return Plan(ref, repository, str(info.sha), tuple(known[name] for name in names))

    def _names(
        self, ref: ModelRef, repository: str, commit: str, known: dict[str, Wanted], variant: str | None
    ) -> Iterable[str]:
        inner = ref.file_in_repository
        if inner is not None:
            if inner not in known:
                raise ModelNotFound(f"{repository} has no file {inner}", field="model_id")
            return [inner]
        index = None
        if "model_index.json" in known:
            index = json.loads(self._fetch(repository, commit, known["model_index.json"]).read_text())
        choice = choose(known, variant=variant, index=index, name=f"model {ref}")
        if choice.layout == "other" and len(choice.weights) > 1:
            one = f"{repository}/{choice.weights[0]}"
            raise InvalidInput(
                f"{repository} has {len(choice.weights)} files of weights; name one, as {one}",
                field="model_id",
            )
        if not choice.weights:
            gguf = [name for name in known if name.endswith(".gguf")]
            hint = f"; name one of its files, as {repository}/{gguf[0]}" if gguf else ""
            raise ModelNotFound(f"{repository} has no weights that can be used{hint}", field="model_id")
        return choice.files

    def fetch(
        self, plan: Plan, on_bytes: OnBytes | None = None, cancel: threading.Event | None = None
    ) -> Path:
        """Fetch what is missing; the folder of the snapshot.

        What was fetched before, also half of a file, is not fetched again. ``cancel`` ends it between two
        pieces of a file (`PullFailed`). Raises as `plan`.
        """
        done = 0
        for file in plan.files:
            before = done

            def tell(count: int, name: str = file.name, before: int = before, size: int = file.size) -> None:
                if cancel is not None and cancel.is_set():
                    raise PullFailed(f"pulling {plan.ref} was given up; what came so far is kept")
                if on_bytes is not None:
                    on_bytes(name, before + min(count, size), plan.size)

            tell(0)
            self._fetch(plan.repository, plan.commit, file, tell)
            done += file.size
            tell(file.size)
        self._write_ref(plan)
        return repo_folder(self._roots.hub, plan.repository) / "snapshots" / plan.commit

    def _fetch(
        self, repository: str, commit: str, file: Wanted, tell: Callable[[int], None] | None = None
    ) -> Path:
        """One file at its place in the hub's cache: a blob by its digest, and a link in the snapshot."""
        from huggingface_hub import hf_hub_url

        folder = repo_folder(self._roots.hub, repository)
        blob, link = folder / "blobs" / file.digest, folder / "snapshots" / commit / file.name
        if not blob.exists():
            url = hf_hub_url(repository, file.name, revision=commit, endpoint=self.endpoint)
            part = blob.with_name(f"{file.digest}.headrace.incomplete")
            download(url, part, file.size, file.digest, token=self.hub_token(), tell=tell)
            part.replace(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return link

    def _write_ref(self, plan: Plan) -> None:
        """The branch that was asked for means this commit from now on, as the hub's own tools write it."""
        revision = plan.ref.revision or "main"
        if revision == plan.commit:
            return
        refs = repo_folder(self._roots.hub, plan.repository) / "refs"
        target = refs / revision
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(plan.commit)

    def _api(self) -> Any:
        try:
            from huggingface_hub import HfApi
        except ModuleNotFoundError as error:
            if error.name != "huggingface_hub":
                raise
            raise NotInstalled("pulling needs huggingface_hub: pip install 'headrace[batch]'") from error
        return HfApi(endpoint=self.endpoint, token=self._token, library_name="headrace")

    def _translated(self, ref: ModelRef) -> _Translated:
        return _Translated(ref)


class _Translated:
    """Turns what huggingface_hub raises into our errors."""

    def __init__(self, ref: ModelRef) -> None:
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, HeadraceError):
            return
        from huggingface_hub import errors

        ref = self._ref
        if isinstance(error, errors.GatedRepoError):
            page = f"https://huggingface.co/{ref.repository}"
            raise AccessDenied(
                f"{ref} is gated: accept its licence at {page}, then set HF_TOKEN", field="model_id"
            ) from None
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            raise ModelNotFound(
                f"the hub has no model {ref}, or it is private (then set HF_TOKEN)", field="model_id"
            ) from None
        if isinstance(error, errors.OfflineModeIsEnabled):
            raise PullFailed(f"{ref} cannot be pulled: HF_HUB_OFFLINE is set", field="model_id") from None
        if isinstance(error, OSError):
            raise PullFailed(_reason(ref, error), field="model_id") from None
        if isinstance(error, Exception) and type(error).__module__.partition(".")[0].startswith(
            ("httpx", "httpcore")
        ):
            raise PullFailed(_reason(ref, error), field="model_id") from None


def _reason(ref: ModelRef, error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"pulling {ref} broke off ({text}); what came so far is kept, pull it again to go on"


def _wanted(file: Any) -> Wanted:
    """What the hub says of one file: large ones are named by their SHA-256, others by git's digest."""
    digest = str(file.lfs.sha256 if file.lfs is not None else file.blob_id)
    name = str(file.rfilename)
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest) or not _is_sound(name):
        raise PullFailed(f"the hub names a file {name!r} with digest {digest!r}")
    return Wanted(name, int(file.size or 0), digest)


def _is_sound(name: str) -> bool:
    """Whether a name that a hub gives stays in its folder."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and part.isprintable() for part in parts) and "\\" not in name


def space_needed(plan: Plan, roots: Roots) -> None:
    """Raise `InvalidInput` when the disk has no room for what ``plan`` still has to fetch."""
    import shutil

    folder = roots.hub
    while not folder.exists():
        folder = folder.parent
    blobs = repo_folder(roots.hub, plan.repository) / "blobs"
    wanted = sum(file.size for file in plan.files if not (blobs / file.digest).exists())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise InvalidInput(
            f"{plan.ref} needs {amount(wanted)} more on {folder}, which has {amount(free)} free",
            field="model_id",
        )
