"""The guardian against real processes that behave badly (`stub_host.py`); no torch, so they start fast."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from headrace.engine.guardian import Engine
from headrace.engine.settings import EngineSettings
from stream.errors import EngineError, InvalidInput, NotInstalled

pytestmark = pytest.mark.descriptors

uvloop.new_event_loop().close()
STUB = Path(__file__).with_name("stub_host.py")


def settings(behaviour: str, **changes: Any) -> EngineSettings:
    values: dict[str, Any] = {
        "name": "stub",
        "python": (sys.executable, str(STUB)),
        "env": {"STUB": behaviour},
        "start_timeout": 20.0,
        "call_timeout": 0.8,
        "open_timeout": 2.0,
        "stop_timeout": 2.0,
        "backoff_first": 0.02,
        "backoff_ceiling": 0.1,
        "attempts": 3,
    }
    return EngineSettings(**(values | changes))


async def poll(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Return when ``condition`` holds; fail when it does not within ``timeout`` seconds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.005)


async def test_an_engine_starts_answers_and_stops() -> None:
    engine = Engine(settings("serve"))
    states: list[str] = []
    unsubscribe = engine.subscribe(lambda e: states.append(e.state))
    await engine.start()
    assert engine.state == "starting"
    with pytest.raises(EngineError, match="starting"):
        await engine.call({"op": "x"})
    await engine.wait_ready(20)
    assert engine.facts is not None
    assert engine.pid == engine.facts.pid
    assert engine.rss > 1_000_000
    assert (await engine.call({"op": "x", "x": [1, 2]}))["echo"] == [1, 2]
    with pytest.raises(InvalidInput) as caught:
        await engine.call({"op": "fail"})
    assert (caught.value.field, caught.value.details) == ("x", [{"a": 1}])
    await engine.stop()
    unsubscribe()
    assert states == ["starting", "ready", "stopped"]
    assert engine.pid is None
    assert engine.restarts == 0
    with pytest.raises(EngineError, match="stopped"):
        await engine.call({"op": "x"})
    await engine.stop()


async def test_a_stopped_engine_starts_again() -> None:
    engine = Engine(settings("serve"))
    for _ in range(2):
        async with engine:
            await engine.wait_ready(20)
            await engine.start()
            assert (await engine.call({"op": "x", "x": 1}))["echo"] == 1
        assert engine.state == "stopped"


async def test_an_engine_that_is_started_while_it_stops_is_there_afterwards() -> None:
    engine = Engine(settings("serve"))
    await engine.start()
    await engine.wait_ready(20)
    stop = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    assert engine.stopping
    with pytest.raises(EngineError, match="stopped"):
        await engine.wait_ready(20)
    await stop
    await engine.start()
    stop = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    await asyncio.gather(engine.start(), engine.start())
    await engine.wait_ready(20)
    await stop
    assert (engine.state, engine.stopping) == ("ready", False)
    assert (await engine.call({"op": "x", "x": 1}))["echo"] == 1
    await engine.stop()
    assert engine.state == "stopped"


async def test_a_killed_engine_fails_its_calls_at_once_and_is_started_again() -> None:
    async with Engine(settings("serve")) as engine:
        await engine.wait_ready(20)
        first, generation = engine.pid, engine.generation
        with pytest.raises(EngineError, match=r"^the engine is restarting"):
            await engine.call({"op": "die"})
        assert engine.state == "restarting"
        await engine.wait_ready(20)
        assert engine.pid != first
        assert engine.generation == generation + 1
        assert engine.restarts == 1
        assert engine.last_exit == "was killed by SIGKILL"
        assert engine.last_lines == ["stub: serve"]
        assert (await engine.call({"op": "x", "x": 1}))["echo"] == 1


async def test_an_engine_that_never_gets_ready_has_failed_with_its_last_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    engine = Engine(settings("die"))
    await engine.start()
    with pytest.raises(EngineError, match="exited with status 5\nstub: die\nno luck"):
        await engine.wait_ready(20)
    assert engine.state == "failed"
    restarts = engine.restarts
    assert restarts >= 2
    await poll(lambda: engine.restarts > restarts)  # it goes on trying, slowly
    assert engine.state == "failed"
    await engine.stop()
    assert "no luck" in caplog.text


async def test_an_engine_that_comes_up_after_all_is_ready(tmp_path: Path) -> None:
    async with Engine(settings(f"flaky {tmp_path / 'starts'}", attempts=2)) as engine:
        await poll(lambda: engine.state == "failed")
        await poll(lambda: engine.state == "ready")
        assert engine.failure is None
        assert engine.restarts == 2


async def test_a_missing_package_fails_at_once_and_is_not_tried_again() -> None:
    engine = Engine(settings("refused not_installed"))
    await engine.start()
    with pytest.raises(NotInstalled, match="there is no torch here"):
        await engine.wait_ready(20)
    assert engine.state == "failed"
    assert engine.missing_package
    await asyncio.sleep(0.3)
    assert engine.restarts == 0
    assert "there is no torch here" in engine.describe()
    await engine.stop()


async def test_a_refusal_that_may_pass_is_tried_again() -> None:
    engine = Engine(settings("refused engine_unavailable"))
    await engine.start()
    with pytest.raises(EngineError, match="there is no torch here"):
        await engine.wait_ready(20)
    assert engine.restarts >= 2
    await engine.stop()


BROKEN_RULES = {
    "silent": "was not ready within",
    "garbage": "sent what is not a message",
    "unknown": "sent an unknown message 'surprise'",
    "badready": "makes no sense",
    "fatal": "lost its device: CUDA error: misaligned address",
    "mute": "was killed by SIGKILL",
}


async def test_an_engine_that_breaks_the_rules_is_killed_and_the_reason_kept() -> None:
    async def run(behaviour: str, reason: str) -> None:
        async with Engine(settings(behaviour, start_timeout=1.0 if behaviour == "silent" else 20)) as engine:
            pid = engine.pid
            await poll(lambda: reason in engine.last_exit)
            assert pid is not None
            assert not psutil.pid_exists(pid)

    async with asyncio.TaskGroup() as group:
        for behaviour, reason in BROKEN_RULES.items():
            group.create_task(run(behaviour, reason))


async def test_a_stopped_process_is_found_by_the_deadline_of_a_call() -> None:
    async with Engine(settings("serve")) as engine:
        await engine.wait_ready(20)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"gave no answer for 0\.8 s"):
            await engine.call({"op": "x"})
        await engine.wait_ready(20)
        assert engine.last_exit == "gave no answer for 0.8 s"


async def test_a_loop_that_turns_but_never_answers_hangs_all_the_same() -> None:
    async with Engine(settings("pongs")) as engine:
        await engine.wait_ready(20)
        with pytest.raises(EngineError, match=r"gave no answer for 0\.8 s"):
            await engine.call({"op": "call"})


async def test_pongs_keep_a_session_that_opens_alive() -> None:
    async with Engine(settings("pongs", open_timeout=0.9, stop_timeout=0.4)) as engine:
        await engine.wait_ready(20)
        opening = asyncio.create_task(engine.call({"op": "open"}, kind="open"))
        waiting = asyncio.create_task(engine.call({"op": "call"}))
        done, _ = await asyncio.wait({opening, waiting}, timeout=1.3)
        assert not done, "longer than both limits, and yet not hung"
        assert engine.state == "ready"
    for call in (opening, waiting):
        with pytest.raises(EngineError, match="stopped"):
            await call


async def test_silence_ends_an_opening_at_its_own_limit() -> None:
    async with Engine(settings("stubborn", open_timeout=1.0, stop_timeout=0.4)) as engine:
        await engine.wait_ready(20)
        begun = time.monotonic()
        with pytest.raises(EngineError, match="gave no answer for 1 s"):
            await engine.call({"op": "open"}, kind="open")
        assert time.monotonic() - begun > 0.95


async def test_an_idle_engine_is_left_alone() -> None:
    async with Engine(settings("serve")) as engine:
        await engine.wait_ready(20)
        await asyncio.sleep(1.0)
        assert engine.restarts == 0
        assert engine.state == "ready"


async def test_a_worker_that_stood_still_does_not_blame_the_engine() -> None:
    async with Engine(settings("serve", call_timeout=0.8)) as engine:
        await engine.wait_ready(20)
        call = asyncio.create_task(engine.call({"op": "late", "x": 1.4}))
        await asyncio.sleep(0)
        time.sleep(1.1)  # noqa: ASYNC251 (that is the point)
        assert (await call)["echo"] == 1.4
        assert engine.restarts == 0


async def test_an_engine_that_does_not_want_to_stop_is_stopped_in_time() -> None:
    engine = Engine(settings("stubborn", stop_timeout=1.0))
    await engine.start()
    await engine.wait_ready(20)
    pid, begun = engine.pid, time.monotonic()
    await engine.stop()
    assert time.monotonic() - begun < 3
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_stop_while_it_starts_and_one_while_it_waits_to_restart() -> None:
    for behaviour, state in (("silent", "starting"), ("die", "failed")):
        engine = Engine(settings(behaviour, backoff_ceiling=60.0))
        await engine.start()
        await poll(lambda e=engine, s=state: e.state == s)
        begun = time.monotonic()
        await engine.stop()
        assert time.monotonic() - begun < 4
        assert engine.state == "stopped"


def test_a_loop_that_ends_takes_its_engine_with_it() -> None:
    pids: list[int] = []

    async def main() -> None:
        engine = Engine(settings("serve"))
        await engine.start()
        await engine.wait_ready(20)
        assert engine.pid is not None
        pids.append(engine.pid)

    asyncio.run(main())
    assert not psutil.pid_exists(pids[0])


async def test_the_log_of_the_engine_reaches_that_of_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="headrace.engine.child")
    engine = Engine(settings("chatty"))
    async with engine:
        await engine.wait_ready(20)
        assert (await engine.call({"op": "x", "x": 1}))["echo"] == 1
    lines = [record.getMessage() for record in caplog.records]
    assert sum(" line " in line for line in lines) == 20_000
    assert max(map(len, lines)) < 5000, "a line without end is cut"
    steps = [line for line in lines if "step" in line]
    assert len(steps) < 50, "of a progress bar only what a terminal would still show"
    assert steps[-1].endswith("] step 2000 of 2000")
    assert lines[-1].endswith("] end")


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    engine = Engine(EngineSettings(python=("/no/such/python",)))
    with pytest.raises(EngineError, match="/no/such/python"):
        await engine.start()
    assert engine.state == "stopped"
    await engine.stop()


def test_only_the_main_thread_may_start_an_engine() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        async def main() -> None:
            await Engine(settings("serve")).start()

        try:
            asyncio.run(main())
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert "main thread" in str(errors[0])


async def test_the_fault_of_a_subscriber_does_not_reach_the_guardian() -> None:
    engine = Engine(settings("serve"))
    engine.subscribe(lambda e: 1 / 0)
    async with engine:
        await engine.wait_ready(20)


def test_it_runs_on_uvloop_too() -> None:
    async def main() -> None:
        async with Engine(settings("serve")) as engine:
            await engine.wait_ready(20)
            with pytest.raises(EngineError):
                await engine.call({"op": "die"})
            await engine.wait_ready(20)
            assert engine.last_exit == "was killed by SIGKILL"
            assert (await engine.call({"op": "x", "x": "y" * 200_000}))["echo"] == "y" * 200_000

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    "wrong", [{"call_timeout": 0.0}, {"backoff_first": 0.0}, {"backoff_ceiling": 0.01}, {"threads": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings("serve", **wrong)
