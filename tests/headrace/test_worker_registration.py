"""What the worker registers, and what it offers."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from byoc.registration.registrar import Offer
from headrace.server import registration
from headrace.server.registration import Places, make_registrar
from headrace.settings import Settings


class Table(list):
    capacity = 3
    closed = False


@dataclass
class Host:
    settings: Settings = field(default_factory=Settings)
    table: Table = field(default_factory=Table)
    is_ready: bool = True

    def ready(self):
        return self.is_ready


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://localhost:8123"),
        ({"self_signed": True}, "https://localhost:8123"),
        ({"self_signed": True, "capability_url": "http://worker:1"}, "http://worker:1"),
    ],
)
def test_the_url_is_where_the_worker_listens_unless_one_is_set(settings, url):
    made = Settings(
        port=8123,
        orchestrator="https://orchestrator:8935",
        orchestrator_secret="s",
        capabilities=["a", "b"],
        **settings,
    )
    registrar = make_registrar(Host(made))
    assert [(one.name, one.url) for one in registrar.capabilities] == [("a", url), ("b", url)]


def test_without_an_orchestrator_there_is_no_registrar():
    assert make_registrar(Host(Settings(orchestrator=None))) is None


def test_free_sessions_are_offered_and_an_engine_may_restart_meanwhile(monkeypatch):
    now = 100.0
    monkeypatch.setattr(registration, "time", SimpleNamespace(monotonic=lambda: now))
    host = Host(is_ready=False)
    places = Places(host)
    assert places() is None
    host.is_ready = True
    assert places() == Offer(3, 0)
    host.table += [SimpleNamespace(urls={"subscribe": "http://o/a"}), SimpleNamespace(urls={})]
    assert places() == Offer(1, elsewhere=1)
    host.is_ready = False
    now += registration.RESTARTING
    assert places() == Offer(1, elsewhere=1)
    now += 0.1
    assert places() is None
    host.is_ready = True
    host.table.closed = True
    assert places() is None
