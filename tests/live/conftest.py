"""One worker and its engine for all tests of a module that ask for nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from live_rig import Rig, running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with running(tmp_path_factory.mktemp("live")) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(shared_rig: Rig) -> AsyncIterator[Rig]:
    """The module's worker, with names of sessions and channels of the test's own. The tests of the module
    have to run in its loop: ``pytestmark = pytest.mark.asyncio(loop_scope="module")``."""
    rig = shared_rig.fresh()
    yield rig
    await rig.end_sessions()
