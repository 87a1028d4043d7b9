"""``GET /comfyui``: the installation, its packs, and the engines that run in it."""

from __future__ import annotations

from aiohttp import web

from headrace.comfyui.service import ComfyService


class ComfyRoutes:
    def __init__(self, service: ComfyService) -> None:
        self._service = service

    def register(self, app: web.Application) -> None:
        app.router.add_get("/comfyui", self._show)

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._service.report())
