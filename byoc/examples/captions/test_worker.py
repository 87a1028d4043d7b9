import asyncio

import numpy as np
import worker
from aiohttp import web


def test_a_picture_is_measured_where_there_is_no_model():
    green = np.zeros((8, 8, 3), np.uint8)
    green[..., 1] = 60
    assert worker.measured(green) == "A picture dark, mostly green."


def test_a_server_is_asked_with_the_picture(monkeypatch):
    asked = []

    async def complete(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"choices": [{"message": {"content": " A wall. "}}]})

    async def captioned() -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            monkeypatch.setattr(worker, "URL", f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
            return await worker.Captions().ask(np.zeros((64, 64, 3), np.uint8))
        finally:
            await runner.cleanup()

    assert asyncio.run(captioned()) == "A wall."
    picture = asked[0]["messages"][0]["content"][1]["image_url"]["url"]
    assert picture.startswith("data:image/jpeg;base64,")
