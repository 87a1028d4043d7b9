"""The guard of conftest.py catches what a test leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

LEAKS = """
import asyncio, os, subprocess, sys, threading, time
import pytest

async def test_tidy():
    await asyncio.create_task(asyncio.sleep(0))
    await asyncio.to_thread(time.sleep, 0)

async def test_task():
    global task
    task = asyncio.create_task(asyncio.sleep(60))

def test_thread():
    threading.Thread(target=time.sleep, args=(2,), name="stray").start()

def test_child():
    global child
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

@pytest.mark.descriptors
def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

@pytest.mark.descriptors
async def test_descriptor_closed():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
"""


def test_what_a_test_leaves_behind_fails_it(pytester: pytest.Pytester) -> None:
    guard = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(guard.replace("GRACE_S = 3.0", "GRACE_S = 0.3"))
    pytester.makepyfile(LEAKS)
    result = pytester.runpytest_subprocess("-o", "asyncio_mode=auto", timeout=60)
    result.assert_outcomes(passed=6, errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "*left behind: tasks*sleep*",
            "*left behind: threads*stray*",
            "*left behind: processes*time.sleep(60)*",
            "*left behind: descriptors*/dev/null*",
        ]
    )
