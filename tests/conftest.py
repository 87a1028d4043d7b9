"""What every test is held to: it leaves no task, thread or child process behind, and where it asks for it
(`@pytest.mark.descriptors`) no open descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import pytest_asyncio
from hypothesis import settings

T = TypeVar("T")

GRACE_S = 3.0
"""How long what a test started may take to end after it."""

pytest_plugins = ["pytester"]

# Each run draws other examples: what twenty-five miss, the next twenty-five find.
settings.register_profile("suite", deadline=None, max_examples=25)
settings.load_profile("suite")

# What is imported stays: there is nothing to collect before all is.
gc.disable()

# What a shell starts in the background ignores SIGINT, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

OF_THE_MODULE = {"RequestHandler.start", "Event.wait", "_Holder._read", "Process.wait"}
"""What serves a connection that a module keeps open, and what watches its engines and holders of weights."""

LONGEST = (
    "live/test_live_stream",
    "headrace/page/test_page_browser",
    "live/test_files",
    "headrace/models/test_models_sharing",
    "headrace/diffusion/test_diffusion_compiled",
    "headrace/models/test_models_sharing_worker",
    "headrace/engine/test_engine_faults",
    "headrace/batch/test_engine_models",
    "live/test_stopping",
    "headrace/batch/test_engine_requests",
    "headrace/library/test_library_runs",
    "headrace/engine/test_engine_session",
    "headrace/page/test_page_keeping",
    "live/test_live_media",
    "headrace/diffusion/test_diffusion_loras",
    "headrace/batch/test_image_engine",
    "headrace/models/test_models_shared_device",
    "headrace/batch/test_llm_together",
    "headrace/batch/test_image_generation",
    "headrace/batch/test_engine_parler",
    "test_rooms",
    "headrace/comfyui/test_comfyui_engine",
    "headrace/page/test_page_routes",
    "headrace/diffusion/test_diffusion_processor",
    "byoc/test_check",
    "headrace/nodes/test_single_files",
    "byoc/test_stream_server",
    "live/test_as_capability",
    "headrace/batch/test_front_clients",
    "headrace/diffusion/test_diffusion_batch",
    "headrace/models/test_models_weights",
    "live/test_recording_live",
    "headrace/batch/test_image_together",
    "stream/test_preview",
    "headrace/engine/test_engine_guardian",
    "stream/webrtc/test_media_network",
    "headrace/engine/test_engine_preparation",
    "headrace/models/test_models_pull",
    "live/test_sinks_and_publishers",
    "headrace/comfyui/test_comfyui_beside",
    "headrace/batch/test_image_loras",
    "live/test_comfystream_live",
    "stream/webrtc/test_whip_media",
    "benchmarks/test_clip",
    "headrace/batch/test_front_validation",
)
"""Modules that take long: they run first, so that none is left to one process when the others are done; those
that compute beside those that wait for streams and engines."""


# Workflows that a person keeps on this machine are none of the tests'.
os.environ["HEADRACE_WORKFLOWS"] = os.path.join(os.path.dirname(__file__), "no workflows are kept here")


def pytest_configure(config: pytest.Config) -> None:
    # Where tests are handed out by file, in our order and not by how many there are in each.
    config.option.loadscopereorder = False
    config.addinivalue_line("markers", "descriptors: fails when more descriptors are open after than before")


def pytest_collection(session: pytest.Session) -> None:
    """Where several processes collect, each begins with other modules, so that what one has compiled (with
    its assertions) the others find done."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or sys.dont_write_bytecode:
        return
    folders = [Path(argument) for argument in session.config.args if Path(argument).is_dir()]
    modules = sorted(path for folder in folders for path in folder.resolve().rglob("test_*.py"))
    for path in modules[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        sys.path.insert(0, str(path.parent))
        # What is wrong with a module is told when it is collected.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(path.stem)
        sys.path.remove(str(path.parent))


def pytest_collection_finish() -> None:
    # Nothing that was imported goes away, and looking through it takes a collection half a second.
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _cuda():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    here = Path(__file__).parent
    places = {here / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def _cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves non-daemon threads, child processes or, when marked so, descriptors."""
    counts_descriptors = request.node.get_closest_marker("descriptors") is not None
    threads, children = set(threading.enumerate()), _children()
    shared_loop = _runs_in_the_modules_loop(request)

    def may_stay(thread: threading.Thread) -> bool:
        # A loop keeps the threads of `asyncio.to_thread` until it is closed.
        return thread.daemon or (shared_loop and thread.name.startswith("asyncio_"))

    descriptors = _descriptors() if counts_descriptors else Counter[str]()
    yield
    left: list[str] = []
    if strays := _wait(lambda: {t for t in threading.enumerate() if not may_stay(t)} - threads):
        left.append(f"threads {sorted(thread.name for thread in strays)}")

    def orphaned() -> set[psutil.Process]:
        now = _children()
        # An engine of the module's that was killed has another in its place.
        return set() if shared_loop and len(now) <= len(children) else now - children

    if orphans := _wait(orphaned):
        left.append(f"processes {[_end(process) for process in orphans]}")
    if counts_descriptors and _descriptors() - descriptors:
        gc.collect()
        if opened := _wait(lambda: set(_descriptors() - descriptors)):
            left.append(f"descriptors {sorted(opened)}")
    assert not left, f"left behind: {'; '.join(left)}"


@pytest.fixture(autouse=True)
def no_tasks_left(request: pytest.FixtureRequest, nothing_left_running: None) -> None:
    """Fails an asynchronous test that leaves tasks (pytest-asyncio cancels them silently)."""
    if inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        shared = _runs_in_the_modules_loop(request)
        request.getfixturevalue("module_loop_without_leftovers" if shared else "loop_without_leftovers")


def _runs_in_the_modules_loop(request: pytest.FixtureRequest) -> bool:
    marker = request.node.get_closest_marker("asyncio")
    return marker is not None and marker.kwargs.get("loop_scope") == "module"


@pytest_asyncio.fixture
async def loop_without_leftovers() -> AsyncIterator[None]:
    async with _nothing_left_in_the_loop():
        yield


@pytest_asyncio.fixture(loop_scope="module")
async def module_loop_without_leftovers() -> AsyncIterator[None]:
    async with _nothing_left_in_the_loop(but=OF_THE_MODULE):
        yield


@contextlib.asynccontextmanager
async def _nothing_left_in_the_loop(but: Collection[str] = ()) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    late = asyncio.all_tasks() - before - {asyncio.current_task()}
    late = {task for task in late if getattr(task.get_coro(), "__qualname__", "") not in but}
    if late:
        _, late = await asyncio.wait(late, timeout=GRACE_S)
    assert not late, f"left behind: tasks {sorted(map(repr, late))}"


def _wait(late: Callable[[], set[T]]) -> set[T]:
    """What is still there after the grace."""
    end = time.monotonic() + GRACE_S
    while (left := late()) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _children() -> set[psutil.Process]:
    """Child processes, without the one that `multiprocessing` keeps for itself."""
    return {child for child in _started() if "resource_tracker" not in _command(child)}


def _started() -> Iterator[psutil.Process]:
    if not Path("/proc/thread-self/children").exists():
        yield from psutil.Process().children()
        return
    # What each thread has started: a hundredth of the time that a look at all processes takes.
    threads, numbers = [""], list[str]()
    while threads != (now := os.listdir("/proc/self/task")):
        threads, numbers = now, []
        for thread in threads:
            # What one that ends has started goes to another of them.
            with contextlib.suppress(OSError):
                numbers += Path(f"/proc/self/task/{thread}/children").read_text().split()
    for number in numbers:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(int(number))


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _end(process: psutil.Process) -> str:
    """Kill a process so that it does not disturb the next test; what it was."""
    name = f"{process.pid} {_command(process) or 'zombie'}"
    try:
        process.kill()
        process.wait(GRACE_S)
    except psutil.Error as error:
        name += f" ({error})"
    return name


def _descriptors() -> Counter[str]:
    kinds: Counter[str] = Counter()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        kinds[target.split(":[")[0]] += 1
    return kinds
