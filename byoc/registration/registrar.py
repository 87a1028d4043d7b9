"""Keeps capabilities registered with an orchestrator, truthfully, for as long as the worker runs.

go-livepeer forgets a registration when it restarts and whenever a call to the worker fails, and tells nobody.
So it is repeated: after an interval, when the connection that is kept to the orchestrator ends, and when work
begins or ends of which the orchestrator does not know. Each registration sets its counter of running jobs to
0; what is registered is therefore the number of *free* places, and its count is right from there on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from byoc.registration.capability import Capability, distinct
from byoc.registration.link import OrchestratorLink, RegistrationError
from stream.trickle.http1 import Endpoint, short_request
from stream.trickle.retry import Backoff

log = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds between two looks at what is offered."""
SETTLING: Final = 2.0
"""Seconds for which a change must last until it is told."""
WITHDRAWAL: Final = 15.0
"""Seconds without an offer after which a registration is taken back: an engine may restart meanwhile."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
FINAL_PAUSE: Final = 60.0
"""Seconds until the next try where only a person can help."""
CLOSING: Final = 2.0
"""Seconds for taking the registrations back at the end."""


class RegistrationState(StrEnum):
    """WAITING: the worker is not ready. RETRYING: the orchestrator cannot be reached, or fails. REFUSED: it
    said no. WITHDRAWN: the worker stopped being ready, or has ended."""

    WAITING = "waiting"
    REGISTERED = "registered"
    RETRYING = "retrying"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Offer:
    """``free`` places, and the number of jobs ``elsewhere``: running without the orchestrator knowing."""

    free: int
    elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class RegistrationSettings:
    """``orchestrator`` is its service URL. ``interval``: seconds between registrations. ``listening``: the
    address that the worker listens on."""

    orchestrator: str
    secret: str = field(repr=False)
    capabilities: Sequence[Capability]
    verify_tls: bool = True
    interval: float = 60.0
    timeout: float = 5.0
    listening: str | None = None


class Registrar:
    """``offer`` says what is free; None while the worker can take nothing (loading, failed).

    `start` and `stop` frame its life; in between it raises nothing, `status` says how it stands. Raises
    `InvalidInput` for settings that cannot work.
    """

    def __init__(
        self,
        settings: RegistrationSettings,
        offer: Callable[[], Offer | None],
        *,
        pauses: tuple[float, float] = (FIRST_PAUSE, LONGEST_PAUSE),
    ) -> None:
        self.settings = settings
        self.capabilities = distinct(settings.capabilities)
        self.state = RegistrationState.WAITING
        self.error: RegistrationError | None = None
        self.registrations = self.failures = 0
        """Registrations that were taken, and tries that failed."""
        self.registered_at: float | None = None
        """Epoch seconds of the last one that was taken."""
        self.warnings: list[str] = []
        for capability in self.capabilities:
            self.warnings += capability.doubts(settings.orchestrator, settings.listening)
        self._offer = offer
        self._link = OrchestratorLink(
            settings.orchestrator, settings.secret, verify_tls=settings.verify_tls, timeout=settings.timeout
        )
        self._backoff = Backoff(math.inf, first=pauses[0], longest=pauses[1])
        self._offered: Offer | None = None
        """What the orchestrator was last told; None when it was told nothing, or that there is nothing."""
        self._asked = False
        """Whether it may know of a capability."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        for warning in self.warnings:
            log.warning(warning)
        self._task = asyncio.create_task(self._run(), name="registration")

    async def stop(self) -> None:
        """Take the registrations back, in a bounded time. May be called again."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSING):
                await self._withdraw("the worker is ending")
        except TimeoutError:
            log.warning("%s was not told that this worker ends", self.settings.orchestrator)
        finally:
            await self._link.close()

    def status(self) -> dict[str, Any]:
        """How it stands, as JSON data; no secrets."""
        offered = self._offered
        return {
            "state": str(self.state),
            "orchestrator": self.settings.orchestrator,
            "registered_at": self.registered_at,
            "registrations": self.registrations,
            "failures": self.failures,
            "error": self.error.as_dict() if self.error is not None else None,
            "warnings": list(self.warnings),
            "capabilities": [
                {
                    **{key: value for key, value in it.body(it.capacity).items() if key != "token"},
                    "offered": it.body(offered.free)["capacity"] if offered is not None else 0,
                }
                for it in self.capabilities
            ],
        }

    # -- the loop --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        first = True
        while True:
            offer = self._offer()
            if offer is None:
                await asyncio.sleep(LOOK)
                continue
            if first:
                await self._try_own_urls()
                first = False
            pause = await self._register(offer)
            if pause is None:
                await self._until_due(offer)
            else:
                await asyncio.sleep(pause)

    async def _register(self, offer: Offer) -> float | None:
        """Register everything once; seconds until the next try when it failed."""
        known = self._asked
        try:
            for capability in self.capabilities:
                # From here on, since it may take what nobody hears the answer to.
                self._asked = True
                await self._link.register(json.dumps(capability.body(offer.free)).encode())
                known = True
        except RegistrationError as error:
            if error.final:
                self._asked = known
            return self._failed(error)
        names = ", ".join(capability.name for capability in self.capabilities)
        if self.state is not RegistrationState.REGISTERED:
            log.info("registered %s with %s", names, self.settings.orchestrator)
        self.state, self.error = RegistrationState.REGISTERED, None
        self.registrations += 1
        self.registered_at = time.time()
        self._offered = offer
        self._backoff.succeeded()
        return None

    def _failed(self, error: RegistrationError) -> float:
        if self.error is None or self.error.message != error.message:
            log.error("not registered: %s", error.message)
        self.state = RegistrationState.REFUSED if error.final else RegistrationState.RETRYING
        self.error = error
        self.failures += 1
        pause = self._backoff.failed(time.monotonic())
        assert pause is not None
        # After a restart of the orchestrator all its workers come back at once.
        return (FINAL_PAUSE if error.final else pause) * random.uniform(0.5, 1.5)

    async def _until_due(self, told: Offer) -> None:
        """Return when it is time to register again."""
        due = time.monotonic() + self.settings.interval * random.uniform(0.9, 1.1)
        changed: float | None = None
        lost = asyncio.create_task(self._link.wait_lost())
        try:
            while (now := time.monotonic()) < due:
                done, _ = await asyncio.wait({lost}, timeout=min(LOOK, due - now))
                if done:
                    log.info("%s has closed the connection: registering again", self.settings.orchestrator)
                    await asyncio.sleep(self._backoff.first * random.uniform(0.5, 1.5))
                    return
                offer = self._offer()
                if offer is not None and not self._drifted(told, offer):
                    changed = None
                    continue
                changed = changed or time.monotonic()
                if time.monotonic() - changed >= (SETTLING if offer is not None else WITHDRAWAL):
                    if offer is None:
                        await self._withdraw("the worker is not ready")
                    return
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    def _drifted(self, told: Offer, offer: Offer) -> bool:
        """Whether the orchestrator's count is off: it knows of its own jobs, of each capability alone."""
        if len(self.capabilities) > 1:
            return offer.free != told.free
        return offer.elsewhere != told.elsewhere

    async def _withdraw(self, reason: str) -> None:
        asked, self._asked, self._offered = self._asked, False, None
        try:
            if asked:
                for capability in self.capabilities:
                    await self._link.unregister(capability.name)
                log.info("unregistered from %s: %s", self.settings.orchestrator, reason)
        except RegistrationError as error:
            log.warning("the registration could not be taken back: %s", error.message)
        finally:
            self.state = RegistrationState.WITHDRAWN

    async def _try_own_urls(self) -> None:
        """Warn of a URL that does not answer even from here. (An orchestrator may see it all the same.)"""
        for url in {capability.url for capability in self.capabilities}:
            endpoint = Endpoint.parse(f"{url}/health")
            try:
                head, _ = await short_request(
                    "GET", endpoint, endpoint.path, verify_tls=False, timeout=self.settings.timeout
                )
                problem = None if head.status == 200 else f"answers {head.status}"
            except OSError as error:
                problem = f"cannot be reached ({error.strerror or error or type(error).__name__})"
            if problem is not None:
                self.warnings.append(f"{url}/health {problem} from here; the orchestrator must reach {url}")
                log.warning(self.warnings[-1])
