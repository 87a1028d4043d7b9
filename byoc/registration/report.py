"""How a registration stands, for those who ask: ``GET /capability`` and ``GET /metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from byoc.registration.registrar import Registrar, RegistrationState


class CapabilityRoute:
    """``GET /capability``; without a registrar its ``state`` is ``off``."""

    def __init__(self, registrar: Callable[[], Registrar | None]) -> None:
        self._registrar = registrar

    def register(self, app: web.Application) -> None:
        app.router.add_get("/capability", self.capability)

    async def capability(self, request: web.Request) -> web.Response:
        registrar = self._registrar()
        told = {"state": "off", "capabilities": []} if registrar is None else registrar.status()
        return web.json_response(told, headers={"Cache-Control": "no-store"})


class RegistrationCollector(Collector):
    """Reads a `Registrar`, where there is one, when it is scraped; for the loop's thread."""

    def __init__(self, registrar: Callable[[], Registrar | None]) -> None:
        self._registrar = registrar

    def collect(self) -> Iterator[Metric]:
        registrar = self._registrar()
        if registrar is None:
            return
        state = GaugeMetricFamily(
            "headrace_registration_state", "1 for the state of the registration.", labels=["state"]
        )
        for each in RegistrationState:
            state.add_metric([str(each)], int(registrar.state is each))
        yield state
        outcomes = CounterMetricFamily(
            "headrace_registrations", "Registrations with the orchestrator, by outcome.", labels=["outcome"]
        )
        outcomes.add_metric(["taken"], registrar.registrations)
        outcomes.add_metric(["failed"], registrar.failures)
        yield outcomes
        offered = GaugeMetricFamily(
            "headrace_capability_offered",
            "Places that the orchestrator was last told of.",
            labels=["capability"],
        )
        for told in registrar.status()["capabilities"]:
            offered.add_metric([told["name"]], told["offered"])
        yield offered
