"""An orchestrator, a gateway and generated streams for the tests of a container's author; no network needed.

    from byoc.testing import MockGateway, MockOrchestrator, generated

    async with MockOrchestrator("s3cret") as orchestrator:
        # Start the worker with ORCH_URL=orchestrator.url and ORCH_SECRET=s3cret.
        await orchestrator.registered("my-capability")
        async with MockGateway(orchestrator).stream("my-capability", {"strength": 0.5}) as stream:
            await stream.play(generated(seconds=3))
            await stream.update({"strength": 1.0})
            assert all(answer.status == 200 for answer in await stream.stop())
        assert not stream.problems

Whatever a worker does against go-livepeer's rules is in `GatewayStream.problems`; `measured` makes numbers of
what came back. Works with any worker that speaks the protocol, in this process or in another.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from byoc.mock.answers import Answer, Call
from byoc.mock.clip import Chunk, Recipe, cached, cut
from byoc.mock.figures import Measured, measured
from byoc.mock.gateway import MockGateway
from byoc.mock.orchestrator import MockOrchestrator
from byoc.mock.stream import GatewaySettings, GatewayStream

__all__ = [
    "Answer",
    "Call",
    "Chunk",
    "GatewaySettings",
    "GatewayStream",
    "Measured",
    "MockGateway",
    "MockOrchestrator",
    "Recipe",
    "generated",
    "measured",
]


def generated(
    seconds: float = 4, *, width: int = 384, height: int = 384, fps: int = 30, sound: bool = True
) -> list[list[Chunk]]:
    """A clip of moving texture with numbered frames, H.264 and AAC, as the segments of a gateway; made once
    and kept in the folder for temporary files. Takes a second or two: call it outside of a running loop, or
    by `asyncio.to_thread`."""
    recipe = Recipe(
        width, height, fps, seconds, key_every=1, bitrate=1_500_000, audio="aac" if sound else None
    )
    return cut(cached(recipe, Path(tempfile.gettempdir()) / "headrace-clips"))
