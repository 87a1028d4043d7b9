"""``POST /workflows/{id}/run``: a workflow over one picture or clip, in one request."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Protocol

from aiohttp import web

from headrace.batch.answers import error_headers
from headrace.batch.bodies import UploadBudget, read_body
from headrace.batch.schemas_run import WorkflowRun
from headrace.batch.validation import parse_request
from headrace.library.names import Library
from headrace.server.run_media import JSON, VIDEO, Made, described, file_of, picture_of, wanted_type
from headrace.server.run_once import spec_for_one
from headrace.server.runs import Run, Runs
from headrace.server.specs import Specs
from stream.answers import error_response
from stream.connected import while_connected
from stream.errors import HeadraceError, InvalidInput
from workflows.stream_rules import Modalities, modalities

FILES = frozenset({"image", "video"})


class Host(Protocol):
    """What the route needs of the worker."""

    specs: Specs
    library: Library
    runs: Runs


class RunRoutes:
    """See the module."""

    def __init__(self, host: Host, uploads: int) -> None:
        """``uploads``: bytes of all uploads that are in memory together."""
        self._host = host
        self._budget = UploadBudget(uploads)

    def register(self, app: web.Application) -> None:
        app.router.add_post("/workflows/{id}/run", self.run)

    async def run(self, request: web.Request) -> web.Response:
        """The picture as PNG, JPEG or WebP, the clip as MP4, or all with texts as JSON, as Accept says."""
        try:
            return await self._run(request)
        except HeadraceError as error:
            answer = error_response(error)
            answer.headers.update(error_headers(error))
            return answer

    async def _run(self, request: web.Request) -> web.Response:
        host = self._host
        host.runs.check_room()
        name = request.match_info["id"]
        data = await asyncio.to_thread(host.library.load, name)
        account = self._budget.open()
        try:
            fields = {}
            if request.can_read_body:
                fields = await while_connected(request, read_body(request, account, FILES))
            asked = parse_request(WorkflowRun, fields)
            spec = await asyncio.to_thread(spec_for_one, data, host.specs)
            media = await asyncio.to_thread(self._checked, spec, asked.params)
            run = await _wanted(asked, spec, media, client=request.remote or "", lane=name)
            kind = wanted_type(request.headers.get("Accept"), video=run.video is not None)
            made = await while_connected(request, host.runs.run(run))
            return await asyncio.to_thread(_answer, made, kind if media.video_output else JSON)
        finally:
            account.close()

    def _checked(self, spec: dict[str, Any], params: dict[str, Any]) -> Modalities:
        """The media of a workflow whose parameters are right. Raises as `ParameterTable.resolve`."""
        specs = self._host.specs
        specs.parameters(spec).resolve(params)
        return modalities(specs.graphs(spec))


async def _wanted(asked: WorkflowRun, spec: dict[str, Any], media: Modalities, **more: str) -> Run:
    """The run that was asked for. Raises `InvalidInput` where media and workflow do not fit."""
    if asked.image is not None and asked.video is not None:
        raise InvalidInput("send an image or a video, not both", field="image")
    given = "image" if asked.image is not None else "video" if asked.video is not None else None
    if media.video_input and given is None:
        raise InvalidInput("this workflow works on pictures: send an image or a video", field="image")
    if given is not None and not media.video_input:
        raise InvalidInput("this workflow makes its pictures itself: it takes none", field=given)
    if (asked.width is None) != (asked.height is None):
        raise InvalidInput("width and height are given together", field="width")
    size = None if asked.width is None or asked.height is None else (asked.width, asked.height)
    picture = None if asked.image is None else await asyncio.to_thread(picture_of, asked.image)
    return Run(spec, asked.params, picture, asked.video, size, asked.bitrate, **more)


def _answer(made: Made, kind: str) -> web.Response:
    headers = {"X-Headrace-Frames": str(made.frames), "Cache-Control": "no-store"}
    if kind == JSON:
        body = json.dumps(described(made)).encode()
    elif kind == VIDEO:
        assert made.video is not None
        body = made.video
    else:
        if not made.pictures:
            raise InvalidInput("the workflow put no picture out; Accept: application/json has the rest")
        headers["X-Headrace-Pictures"] = str(len(made.pictures))
        body = file_of(made.pictures[0], kind)
    return web.Response(body=body, content_type=kind, headers=headers)
