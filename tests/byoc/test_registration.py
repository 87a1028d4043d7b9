"""What is registered, how, and what is said of it; against the mock orchestrator over real connections."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from byoc.mock.capabilities import CapabilityBook, RegistrationRefused
from byoc.mock.jobs import Job
from byoc.registration import registrar as registrars
from byoc.registration.capability import MAX_PRICE, Capability
from byoc.registration.environment import registration_from
from byoc.registration.link import OrchestratorLink, RegistrationError, refusal
from byoc.registration.registrar import Offer, Registrar, RegistrationSettings, RegistrationState
from byoc.testing import MockOrchestrator
from byoc.utils.register import RegisterCapability
from headrace.server.tls import self_signed
from stream.errors import InvalidInput

URL = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Moments in place of seconds."""
    for name, seconds in {"LOOK": 0.02, "SETTLING": 0.05, "WITHDRAWAL": 0.1, "FINAL_PAUSE": 0.1}.items():
        monkeypatch.setattr(registrars, name, seconds)


@asynccontextmanager
async def keeping(
    orchestrator: str,
    *,
    secret: str = "secret",
    offer: Callable[[], Offer | None] = lambda: Offer(2),
    names: tuple[str, ...] = ("cap",),
    **settings: Any,
) -> AsyncIterator[Registrar]:
    capabilities = [Capability(name, URL, capacity=2) for name in names]
    registrar = Registrar(
        RegistrationSettings(orchestrator, secret, capabilities, **settings), offer, pauses=(0.02, 0.1)
    )
    registrar.start()
    try:
        yield registrar
    finally:
        await registrar.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


async def test_it_is_registered_and_taken_back():
    async with MockOrchestrator() as orchestrator:
        async with keeping(orchestrator.url) as registrar:
            found = await orchestrator.registered("cap")
            assert (found.url, found.capacity) == (URL, 2)
            await until(lambda: registrar.state is RegistrationState.REGISTERED)
            told = registrar.status()
            assert told["error"] is None
            assert told["capabilities"][0]["offered"] == 2
            assert "secret" not in str(told)
        assert orchestrator.unregistered == ["cap"]
        assert orchestrator.book.find("cap") is None


async def test_an_orchestrator_that_restarts_knows_it_again():
    async with MockOrchestrator() as orchestrator, keeping(orchestrator.url) as registrar:
        await orchestrator.registered("cap")
        await until(lambda: registrar.state is RegistrationState.REGISTERED)
        # Long before the interval: the connection that is kept has ended.
        await orchestrator.restart(down=0.2)
        await orchestrator.registered("cap")
        assert registrar.settings.interval == 60


async def test_a_capability_that_was_dropped_comes_back_with_the_interval():
    async with MockOrchestrator() as orchestrator, keeping(orchestrator.url, interval=0.1):
        await orchestrator.registered("cap")
        orchestrator.book.remove("cap")
        await orchestrator.registered("cap")


async def test_a_wrong_secret_is_called_that_and_tried_again(caplog):
    orchestrator = MockOrchestrator("right")
    async with orchestrator, keeping(orchestrator.url, secret="wrong") as registrar:
        await until(lambda: registrar.failures > 1)
        assert registrar.state is RegistrationState.REFUSED
        assert "ORCH_SECRET" in registrar.status()["error"]["message"]
        orchestrator.secret = "wrong"
        await until(lambda: registrar.state is RegistrationState.REGISTERED)
    # The same words are logged once.
    assert sum("refuses the secret" in record.message for record in caplog.records) == 1
    assert "wrong" not in caplog.text


async def test_what_was_only_refused_is_not_taken_back(caplog):
    async with MockOrchestrator("right") as orchestrator:
        async with keeping(orchestrator.url, secret="wrong") as registrar:
            await until(lambda: registrar.failures > 0)
        assert registrar.state is RegistrationState.WITHDRAWN
        assert orchestrator.unregistered == []
    assert "taken back" not in caplog.text


async def test_an_orchestrator_that_is_not_there_is_waited_for():
    orchestrator = MockOrchestrator()
    async with orchestrator:
        url = orchestrator.url
    async with keeping(url) as registrar:
        await until(lambda: registrar.failures > 1)
        assert registrar.state is RegistrationState.RETRYING
        assert "cannot be reached" in registrar.status()["error"]["message"]
        async with orchestrator:
            await orchestrator.registered("cap")


async def test_free_places_are_what_is_offered():
    now = Offer(2)
    async with MockOrchestrator() as orchestrator, keeping(orchestrator.url, offer=lambda: now):
        await orchestrator.registered("cap")
        # The orchestrator's own stream: it counts by itself.
        orchestrator.book.reserve("cap")
        now = Offer(1)
        await asyncio.sleep(0.2)
        assert [body["capacity"] for body in orchestrator.registrations] == [2]
        # One that it does not know of.
        now = Offer(0, elsewhere=1)
        await until(lambda: len(orchestrator.registrations) == 2)
        found = orchestrator.book.find("cap")
        assert found is not None
        assert found.available == 0
        orchestrator.book.release("cap")
        assert found.available == 1


async def test_of_several_capabilities_each_hears_of_the_others_work():
    now = Offer(2)
    async with MockOrchestrator() as orchestrator:
        async with keeping(orchestrator.url, offer=lambda: now, names=("a", "b")):
            await orchestrator.registered("b")
            now = Offer(1)
            await until(lambda: [body["capacity"] for body in orchestrator.registrations] == [2, 2, 1, 1])
        assert orchestrator.unregistered == ["a", "b"]


async def test_what_cannot_take_work_is_not_registered():
    now: Offer | None = None
    orchestrator = MockOrchestrator()
    async with orchestrator, keeping(orchestrator.url, offer=lambda: now) as registrar:
        await asyncio.sleep(0.1)
        assert not orchestrator.registrations
        assert registrar.state is RegistrationState.WAITING
        now = Offer(2)
        await orchestrator.registered("cap")
        now = None
        await until(lambda: registrar.state is RegistrationState.WITHDRAWN)
        assert orchestrator.book.find("cap") is None
        now = Offer(2)
        await orchestrator.registered("cap")


async def test_a_url_that_does_not_answer_is_warned_about(caplog):
    async with MockOrchestrator() as orchestrator, keeping(orchestrator.url) as registrar:
        await orchestrator.registered("cap")
        assert any(f"{URL}/health cannot be reached" in text for text in registrar.warnings)
    assert "the orchestrator must reach" in caplog.text


async def test_what_is_wrong_with_tls_is_said(tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(self_signed(tmp_path, ["localhost"]))
    got: list[str] = []

    async def register(request: web.Request) -> web.Response:
        got.append(request.headers["Authorization"])
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_post("/capability/register", register)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", 0, ssl_context=context).start()
        place = f"localhost:{runner.addresses[0][1]}"

        async def problem(url: str, *, verify_tls: bool) -> str:
            link = OrchestratorLink(url, "s", verify_tls=verify_tls)
            try:
                await link.register(b"{}")
            except RegistrationError as error:
                return error.message
            finally:
                await link.close()
            return "none"

        assert "HEADRACE_VERIFY_TLS=0" in await problem(f"https://{place}", verify_tls=True)
        assert got == []
        assert await problem(f"https://{place}", verify_tls=False) == "none"
        assert got == ["s"]
    finally:
        await runner.cleanup()
    async with MockOrchestrator() as orchestrator:
        said = await problem(orchestrator.url.replace("http:", "https:"), verify_tls=False)
        assert "does not speak TLS" in said


async def test_a_request_by_hand_reaches_the_worker():
    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"got": await request.json()})

    app = web.Application()
    app.router.add_post("/echo", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with MockOrchestrator() as orchestrator, ClientSession() as http:
            orchestrator.book.register(f'{{"name": "cap", "url": "{url}", "capacity": 1}}')
            headers = {"Livepeer": Job("cap").header()}
            target = f"{orchestrator.url}/process/request/echo"
            async with http.post(target, json=[1], headers=headers) as answer:
                assert await answer.json() == {"got": [1]}
            async with http.post(target, json=[1]) as answer:
                assert answer.status == 400
    finally:
        await runner.cleanup()


# -- pure ------------------------------------------------------------------------------------------------


def test_a_loopback_url_is_warned_about_for_a_remote_orchestrator_alone():
    capability = Capability("cap", "http://localhost:8000/")
    assert capability.url == "http://localhost:8000"
    assert "CAPABILITY_URL" in capability.doubts("https://orch.example:8935")[0]
    assert capability.doubts("https://127.0.0.1:8935") == []
    remote = Capability("cap", "http://worker:8000")
    assert "listens on 127.0.0.1 alone" in remote.doubts("https://orch.example:8935", "127.0.0.1")[0]


@given(
    st.text(min_size=1, max_size=20),
    st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()),
    st.one_of(st.integers(), st.floats(), st.text()),
)
def test_what_is_taken_here_is_taken_there(name, capacity, price):
    """Either the field is named at once, or go-livepeer's decoder takes it."""
    import json

    try:
        made = Capability(name, "http://w:1", capacity=capacity, price_per_unit=price)
    except InvalidInput as error:
        assert error.field in ("name", "capacity", "price_per_unit")
        return
    found = CapabilityBook().register(json.dumps(made.body(1)))
    assert found.name == name
    assert 0 <= found.capacity <= 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"capacity": 1.5}', "cannot unmarshal number 1.5 into Go struct field ExternalCapability.capacity"),
        ('{"capacity": "1"}', "cannot unmarshal string into Go struct field ExternalCapability.capacity"),
        (
            '{"name": 3}',
            "cannot unmarshal number into Go struct field ExternalCapability.name of type string",
        ),
        ("[]", "cannot unmarshal array"),
        ("{", "Error registering capability"),
    ],
)
def test_the_book_refuses_in_gos_words(body, message):
    with pytest.raises(RegistrationRefused, match=message):
        CapabilityBook().register(body)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CAPABILITY_CAPACITY": "two"}, "CAPABILITY_CAPACITY must be a whole number, not 'two'"),
        ({"CAPABILITY_CAPACITY": "-1"}, r"capacity \(CAPABILITY_CAPACITY\) must be a whole number from 0"),
        ({"CAPABILITY_PRICE_PER_UNIT": "0.5"}, "CAPABILITY_PRICE_PER_UNIT"),
        ({"CAPABILITY_PRICE_PER_UNIT": str(MAX_PRICE + 1)}, "CAPABILITY_PRICE_PER_UNIT"),
        ({"CAPABILITY_URL": "localhost:8000"}, "CAPABILITY_URL"),
        ({"CAPABILITY_NAME": "ä"}, "CAPABILITY_NAME"),
        ({"CAPABILITY_NAME": "a, a"}, "named twice"),
    ],
)
def test_a_wrong_variable_is_named(environment, message):
    with pytest.raises(InvalidInput, match=message):
        Registrar(
            registration_from({"ORCH_URL": "https://o", "ORCH_SECRET": "s", **environment}), lambda: None
        )


def test_the_environment_is_read_as_pytrickle_reads_it():
    assert registration_from({"ORCH_URL": "https://o"}) is None
    found = registration_from(
        {
            "ORCH_URL": "https://o",
            "ORCH_SECRET": "s",
            "CAPABILITY_NAME": "a,b",
            "CAPABILITY_PRICE_PER_UNIT": "7",
        }
    )
    assert found is not None
    assert [(one.name, one.url, one.price_per_unit) for one in found.capabilities] == [
        ("a", "http://localhost:8000", 7),
        ("b", "http://localhost:8000", 7),
    ]
    assert "secret" not in repr(found)
    only_model = registration_from({"ORCH_URL": "https://o", "ORCH_SECRET": "s", "MODEL_ID": "m"})
    assert only_model is not None
    assert only_model.capabilities[0].name == "m"


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (400, "invalid authorization", "ORCH_SECRET"),
        (400, "Client sent an HTTP request to an HTTPS server.", "https://"),
        (404, "404 page not found", "not its CLI port"),
        (405, "", "not a gateway"),
        (400, "Error registering capability: json: ...", "Error registering"),
        (502, "", "502"),
    ],
)
def test_each_answer_is_told_in_words(status, text, words):
    error = refusal("https://o", status, text)
    assert error is not None
    assert words in error.message
    assert error.final is (status < 500)


@pytest.mark.parametrize("url", ["orch:8935", "", "ftp://orch"])
def test_an_orchestrators_url_that_is_none_is_named(url):
    with pytest.raises(InvalidInput, match="ORCH_URL"):
        OrchestratorLink(url, "s", verify_tls=True)


# -- PyTrickle's name ------------------------------------------------------------------------------------


async def test_register_capability_answers_as_pytrickles(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    async with MockOrchestrator("s") as orchestrator:
        monkeypatch.setenv("ORCH_URL", orchestrator.url + "/")
        monkeypatch.setenv("ORCH_SECRET", "s")
        monkeypatch.setenv("CAPABILITY_URL", "http://worker:7000")
        monkeypatch.setenv("CAPABILITY_PRICE_PER_UNIT", "5")
        answer = await RegisterCapability.register(capability_name="mine", capability_price_per_unit=0)
        assert answer
        assert (answer.hostname, answer.port) == ("worker", 7000)
        # An explicit 0 counts.
        assert orchestrator.registrations[0]["price_per_unit"] == 0
        assert await RegisterCapability().register_capability(orch_secret="other") is False
        assert "refuses the secret" in caplog.text
        assert (
            await RegisterCapability.register(orch_url="http://127.0.0.1:9", max_retries=2, delay=0) is False
        )
        assert await RegisterCapability.register(capability_capacity="many") is False
    monkeypatch.delenv("ORCH_URL")
    assert await RegisterCapability.register() is False
