"""A gateway without a network: starts streams and batch requests at a `MockOrchestrator`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from byoc.mock.answers import Answer
from byoc.mock.jobs import Job, new_stream_id
from byoc.mock.orchestrator import MockOrchestrator
from byoc.mock.stream import GatewaySettings, GatewayStream


class MockGateway:
    """Starts streams and batch requests at one orchestrator, as clients of a gateway have it do."""

    def __init__(self, orchestrator: MockOrchestrator, settings: GatewaySettings | None = None) -> None:
        self.orchestrator = orchestrator
        self.settings = settings or GatewaySettings()

    @asynccontextmanager
    async def stream(
        self,
        capability: str,
        params: Mapping[str, Any] | None = None,
        *,
        video_in: bool = True,
        video_out: bool = True,
        data: bool = True,
        stream_id: str | None = None,
    ) -> AsyncIterator[GatewayStream]:
        """A stream for the length of the block; ``params`` None is sent as null, as gateways do.

        One that the worker refuses comes with ``accepted`` false.
        """
        stream = await self.start(
            capability, params, video_in=video_in, video_out=video_out, data=data, stream_id=stream_id
        )
        try:
            yield stream
        finally:
            await stream.close()

    async def start(
        self,
        capability: str,
        params: Mapping[str, Any] | None = None,
        *,
        video_in: bool = True,
        video_out: bool = True,
        data: bool = True,
        stream_id: str | None = None,
    ) -> GatewayStream:
        """As `stream`; whoever calls it closes it."""
        flags = {
            "enable_video_ingress": video_in,
            "enable_video_egress": video_out,
            "enable_data_output": data,
        }
        job = Job(
            capability,
            id=stream_id or new_stream_id(),
            parameters=json.dumps(flags),
            timeout=self.settings.timeout,
        )
        answer = await self.orchestrator.start_stream(job, json.dumps({"params": params}).encode())
        stream = GatewayStream(self.orchestrator, job, answer, self.settings)
        if stream.accepted:
            stream.begin()
        return stream

    async def request(
        self, capability: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> Answer:
        """A batch request: ``path`` as after ``/process/request/``; bytes go as they are, else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        job = Job(capability, timeout=self.settings.timeout)
        return await self.orchestrator.process(job, path.lstrip("/"), data, content_type)
