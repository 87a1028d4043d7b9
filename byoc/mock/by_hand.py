"""The mock orchestrator as a program: a log of who registers, and a stream for each if wanted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

from byoc.mock.figures import measured
from byoc.mock.gateway import MockGateway
from byoc.mock.orchestrator import MockOrchestrator
from byoc.testing import generated
from stream.errors import HeadraceError

LOOK = 0.2


async def serve_by_hand(host: str, port: int, secret: str, play: float, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM. Raises `OSError` when the port is taken."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with MockOrchestrator(secret, host=host, port=port) as orchestrator:
        say(f"mock orchestrator: ORCH_URL={orchestrator.url} ORCH_SECRET={secret}\n")
        playing = asyncio.create_task(_play_to_all(orchestrator, play, say)) if play else None
        await stop.wait()
        if playing is not None:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)


async def _play_to_all(orchestrator: MockOrchestrator, seconds: float, say: Callable[[str], object]) -> None:
    """One stream for each capability that registers, one after the other."""
    clip = await asyncio.to_thread(generated, seconds)
    served: set[str] = set()
    while True:
        for name in {capability.name for capability in orchestrator.book} - served:
            served.add(name)
            try:
                async with MockGateway(orchestrator).stream(name, None) as stream:
                    say(f"{name}: start answered {stream.answer.status} {stream.answer.text.strip()[:200]}\n")
                    if stream.accepted:
                        await stream.play(clip)
                        await stream.stop()
            except HeadraceError as error:
                say(f"{name}: {error.message}\n")
                continue
            figures = await asyncio.to_thread(measured, stream)
            latency = {f"p{share}": round(value) for share, value in figures.latency_ms.items()}
            say(f"{name}: {figures.pictures_out} pictures, {figures.fps:.1f} fps, ms {json.dumps(latency)}\n")
            for problem in (*stream.problems, *figures.problems):
                say(f"{name}: {problem}\n")
        await asyncio.sleep(LOOK)
