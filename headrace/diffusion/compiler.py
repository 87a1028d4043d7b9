"""Makes packages of pieces, one after another, each in a process of its own, and keeps them on the disk.

Tracing and compiling take seconds to minutes and hold the interpreter; in a process beside, frames go on. The
compiler is one for a process: a thread that waits for the process that it has started.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.diffusion.pieces import Piece
from headrace.models.roots import Roots

if TYPE_CHECKING:
    from headrace.diffusion.networks import Networks

log = logging.getLogger(__name__)

LIMIT = 1800.0
"""Seconds that one piece may take."""
MAX_WAITING = 32
MAX_KEPT = 96
"""Packages on the disk; those used longest ago are removed."""
_LOOK_EVERY = 0.5
_STALE = 86_400.0
_COMMAND = (sys.executable, "-m", "headrace.diffusion.compile_piece")

Made = Callable[[Path | None, str], None]
"""Told the package, or None and the reason why there is none; in the compiler's thread."""


@dataclass(frozen=True, slots=True)
class _Job:
    piece: Piece
    made: Made
    wanted: Callable[[], bool]


class Compiler:
    """``folder`` holds the packages. ``command``: of the process, before its arguments; for tests."""

    def __init__(self, folder: Path, *, command: tuple[str, ...] = _COMMAND, limit: float = LIMIT) -> None:
        self.folder = folder
        self._command, self._limit = command, limit
        self._jobs: queue.Queue[_Job | None] = queue.Queue(MAX_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        """For all pieces, which have headers and more in common."""
        self._lock = threading.Lock()
        self._stopped = False

    def ask(self, piece: Piece, made: Made, wanted: Callable[[], bool]) -> bool:
        """Have ``made`` told of a package of ``piece``, from the disk or new; False when too many wait.

        Never blocks. A piece that is not ``wanted`` any more when its turn comes is left out.
        """
        with self._lock:
            if self._stopped:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="compiler", daemon=True)
                self._thread.start()
        try:
            self._jobs.put_nowait(_Job(piece, made, wanted))
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """End the process that compiles, with all that it has started, and the thread."""
        with self._lock:
            self._stopped = True
            self._kill()
            thread = self._thread
        if thread is not None:
            while True:
                try:
                    self._jobs.put_nowait(None)
                    break
                except queue.Full:
                    self._jobs.get_nowait()
            if thread is not threading.current_thread():
                thread.join(5)

    # -- inside ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._stopped or not job.wanted():
                continue
            try:
                job.made(self._package(job), "")
            except (_NotMade, OSError) as error:
                log.warning("%s of %s is not compiled: %s", job.piece.kind, job.piece.tensors[0][1], error)
                job.made(None, str(error))
        if self._scratch is not None:
            self._scratch.cleanup()

    def _package(self, job: _Job) -> Path:
        path = self.folder / f"{job.piece.key}.pt2"
        if path.exists():
            os.utime(path)
            return path
        if self._scratch is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryDirectory(dir=self.folder, prefix="making-")
        scratch = Path(self._scratch.name)
        told, made = scratch / "piece.json", scratch / "piece.pt2"
        told.write_text(job.piece.dump())
        self._run(job, told, made, scratch)
        if not made.exists():
            raise _NotMade("the compiler left no package")
        made.replace(path)
        self._prune()
        return path

    def _run(self, job: _Job, told: Path, made: Path, scratch: Path) -> None:
        said = scratch / "said"
        with said.open("wb") as output:
            with self._lock:
                if self._stopped:
                    raise _NotMade("stopped")
                process = self._process = subprocess.Popen(
                    [*self._command, str(told), str(made), str(os.getpid())],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    env=_environment(job.piece, scratch),
                )  # fmt: skip
            try:
                status = self._wait(process, job.wanted)
            finally:
                with self._lock:
                    self._kill()
                    self._process = None
        if self._stopped:
            raise _NotMade("stopped")
        if status != 0:
            raise _NotMade(_last_line(said) or f"the compiler ended with status {status}")

    def _wait(self, process: subprocess.Popen[bytes], wanted: Callable[[], bool]) -> int:
        end = time.monotonic() + self._limit
        while time.monotonic() < end:
            if not wanted():
                raise _NotMade("nobody wants it any more")
            try:
                return process.wait(min(_LOOK_EVERY, self._limit))
            except subprocess.TimeoutExpired:
                continue
        raise _NotMade(f"compiling took longer than {self._limit:g} s")

    def _kill(self) -> None:
        """The group, for compilers of C++ run in processes of their own. With the lock."""
        process = self._process
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of it has ended
        process.wait()

    def _prune(self) -> None:
        kept = sorted(self.folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[MAX_KEPT:]:
            path.unlink(missing_ok=True)
        for left in self.folder.glob("making-*"):
            # Of a process that was killed.
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)


class _NotMade(Exception):
    """There is no package, and why."""


def _environment(piece: Piece, scratch: Path) -> Mapping[str, str]:
    """Of the process: it finds what this one finds, and leaves nothing behind."""
    # On a CPU the frames need the cores; for CUDA many kernels are compiled side by side.
    alone = (
        {}
        if piece.device.startswith("cuda")
        else {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    )
    return {
        **os.environ,
        **alone,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TMPDIR": str(scratch),
    }


def _last_line(said: Path) -> str:
    lines = said.read_text(errors="replace").strip().splitlines()
    return lines[-1][:400] if lines else ""


def accelerate(networks: Networks, wanted: str) -> None:
    """Have what frames ask for compiled, if ``wanted`` says so: a value of the parameter ``acceleration``."""
    if wanted in ("compile", "tensorrt") or (wanted == "auto" and networks.device.type == "cuda"):
        networks.acceleration.use(compiler_for(Roots.from_environment().cache / "compiled"))
    else:
        networks.acceleration.refuse("not asked for" if wanted != "auto" else "auto compiles for CUDA alone")


_compilers: dict[Path, Compiler] = {}
_lock = threading.Lock()


def compiler_for(folder: Path) -> Compiler:
    """The one of this process for ``folder``; it stops with the process."""
    with _lock:
        if folder not in _compilers:
            _compilers[folder] = Compiler(folder)
            atexit.register(_compilers[folder].stop)
        return _compilers[folder]
