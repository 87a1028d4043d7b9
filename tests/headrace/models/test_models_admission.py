"""Engines that share a device: who may load, who lets go, by property and by story."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.models.admission import Action, Deny, DeviceBook, Grant, Release
from headrace.models.errors import ModelTooLarge, NoRoom
from headrace.models.refs import ModelKey
from headrace.models.reports import EntryReport

BUDGET = 100
TOTAL = 1000


def key(number: int) -> ModelKey:
    return ModelKey(f"m{number}", "1", "float32", "cpu", "test")


def entry(one: ModelKey, size: int, **more: object) -> EntryReport:
    made = EntryReport(one, "loaded", 1.0, "", {str(one): size}, 0, False, 0.0, "real", 0.0)
    return replace(made, **more)


@dataclass
class Engine:
    """What an engine really holds, and what it was told to do and has not done yet."""

    entries: dict[ModelKey, EntryReport] = field(default_factory=dict)
    granted: dict[int, tuple[ModelKey, int]] = field(default_factory=dict)
    asked: dict[int, tuple[ModelKey, int]] = field(default_factory=dict)
    releases: list[Release] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Two engines and a book. Words arrive in order; actions are carried out at any later moment."""

    def __init__(self) -> None:
        super().__init__()
        self.book = DeviceBook(BUDGET)
        self.engines = {"a": Engine(), "b": Engine()}
        self.now = 0.0
        self.count = 0

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            engine = self.engines[action.engine]
            if isinstance(action, Release):
                for one in action.keys:
                    told = engine.entries.get(one)
                    assert told is None or not told.pinned or told.leases, "a pinned entry was asked for"
                engine.releases.append(action)
                continue
            wanted = engine.asked.pop(action.request)
            if isinstance(action, Grant):
                engine.granted[action.request] = wanted
            else:
                assert isinstance(action.error, (NoRoom, ModelTooLarge))
                engine.entries.pop(wanted[0])
                self.report(action.engine)

    def report(self, name: str) -> None:
        self.act(self.book.report(name, list(self.engines[name].entries.values()), TOTAL, self.now))

    @rule(name=st.sampled_from("ab"), size=st.integers(1, 110))
    def want(self, name: str, size: int) -> None:
        self.count += 1
        engine, one = self.engines[name], key(self.count)
        engine.entries[one] = entry(one, 0, state="loading", parts={})
        engine.asked[self.count] = (one, size)
        self.report(name)
        self.act(self.book.request(name, self.count, one, size, self.now, 10.0))

    @precondition(lambda self: any(e.granted for e in self.engines.values()))
    @rule(data=st.data(), ok=st.booleans())
    def loaded(self, data: st.DataObject, ok: bool) -> None:
        name = data.draw(st.sampled_from([n for n, e in self.engines.items() if e.granted]))
        engine = self.engines[name]
        number = data.draw(st.sampled_from(sorted(engine.granted)))
        one, size = engine.granted.pop(number)
        if ok:
            engine.entries[one] = entry(one, size, last_used=float(self.count))
        else:
            del engine.entries[one]
        self.report(name)

    @precondition(lambda self: any(e.releases for e in self.engines.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n, e in self.engines.items() if e.releases]))
        engine = self.engines[name]
        wish = engine.releases.pop(0)
        gone = [
            one
            for one in wish.keys
            if one not in engine.entries or not (engine.entries[one].leases or engine.entries[one].pinned)
        ]
        for one in gone:
            engine.entries.pop(one, None)
        self.report(name)
        self.act(self.book.released(name, wish.keys, gone, self.now))

    @precondition(lambda self: any(self.held(e) for e in self.engines.values()))
    @rule(data=st.data(), leases=st.integers(0, 2))
    def use(self, data: st.DataObject, leases: int) -> None:
        name = data.draw(st.sampled_from([n for n, e in self.engines.items() if self.held(e)]))
        engine = self.engines[name]
        one = data.draw(st.sampled_from(sorted(self.held(engine), key=str)))
        engine.entries[one] = replace(engine.entries[one], leases=leases, last_used=float(self.count))
        self.report(name)

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.book.tick(self.now))

    @rule(name=st.sampled_from("ab"))
    def die(self, name: str) -> None:
        self.engines[name] = Engine()
        self.act(self.book.lost(name, self.now))

    def held(self, engine: Engine) -> list[ModelKey]:
        return [one for one, told in engine.entries.items() if told.state == "loaded"]

    @invariant()
    def memory_is_never_promised_twice(self) -> None:
        real = sum(
            sum(told.parts.values())
            for engine in self.engines.values()
            for told in engine.entries.values()
            if told.state == "loaded"
        )
        promised = sum(size for engine in self.engines.values() for _, size in engine.granted.values())
        assert real + promised <= BUDGET

    def teardown(self) -> None:
        """Everyone is answered in the end."""
        for _ in range(50):
            for name, engine in self.engines.items():
                while engine.releases:
                    wish = engine.releases.pop(0)
                    self.act(self.book.released(name, wish.keys, [], self.now))
            self.now += 1.0
            self.act(self.book.tick(self.now))
        assert not any(engine.asked for engine in self.engines.values())
        assert self.book.waiting == 0


TestDeviceBook = Machine.TestCase
TestDeviceBook.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_another_engines_idle_model_makes_room() -> None:
    book = DeviceBook(BUDGET)
    book.report("live", [entry(key(1), 60)], TOTAL, 0.0)
    assert book.request("batch", 1, key(2), 60, 0.0, 10.0) == [Release("live", (key(1),))]
    assert book.waiting == 1
    assert book.released("live", [key(1)], [key(1)], 1.0) == [Grant("batch", 1)]
    assert book.used == 60


def test_a_model_in_use_elsewhere_is_waited_for_and_then_given_up() -> None:
    book = DeviceBook(BUDGET)
    book.report("live", [entry(key(1), 60, leases=1)], TOTAL, 0.0)
    assert book.request("batch", 1, key(2), 60, 0.0, 10.0) == []
    assert book.tick(9.0) == []
    (denied,) = book.tick(10.0)
    assert isinstance(denied, Deny)
    assert isinstance(denied.error, NoRoom)
    book.request("batch", 2, key(3), 60, 11.0, 10.0)
    assert book.report("live", [entry(key(1), 60)], TOTAL, 12.0) == [Release("live", (key(1),))]


def test_an_engine_that_dies_frees_what_it_had_and_what_it_was_asked_for() -> None:
    book = DeviceBook(BUDGET)
    book.report("live", [entry(key(1), 60)], TOTAL, 0.0)
    book.request("batch", 1, key(2), 60, 0.0, 10.0)
    assert book.lost("live", 1.0) == [Grant("batch", 1)]


def test_without_a_budget_most_of_the_device_is_one() -> None:
    book = DeviceBook()
    assert book.budget is None
    book.report("a", [], TOTAL, 0.0)
    assert book.budget == 800


def test_one_model_in_two_engines_counts_twice_but_for_its_file() -> None:
    book = DeviceBook(BUDGET)
    for engine in ("a", "b"):
        book.report(engine, [entry(key(1), 0, parts={"file:x": 30, "m1": 10})], TOTAL, 0.0)
    assert book.used == 50


def test_memory_of_other_programs_counts() -> None:
    book = DeviceBook(BUDGET)
    book.hold("comfyui", 50, 0.0)
    assert book.request("a", 1, key(1), 60, 0.0, 5.0) == []
    assert book.hold("comfyui", 10, 1.0) == [Grant("a", 1)]


def test_what_live_streams_may_need_stays_and_they_are_served_first() -> None:
    book = DeviceBook(BUDGET)
    book.report("live", [entry(key(1), 60)], TOTAL, 0.0, live=True)
    assert book.reclaimable == 0
    assert book.request("batch", 1, key(2), 60, 0.0, 10.0) == []
    # Its own next load is before those that wait, and may take the place of what it has idle.
    assert book.request("live", 1, key(3), 50, 1.0, 10.0, live=True) == [Release("live", (key(1),))]
    assert book.released("live", [key(1)], [key(1)], 2.0) == [Grant("live", 1)]
    done = book.report("live", [entry(key(3), 50)], TOTAL, 3.0, live=False)
    assert done == [Release("live", (key(3),))]
    assert book.released("live", [key(3)], [key(3)], 4.0) == [Grant("batch", 1)]


@given(
    taken=st.integers(0, 200),
    own=st.integers(0, 60),
    shared=st.integers(0, 60),
    beside=st.integers(0, 60),
    load=st.integers(1, 30),
    data=st.data(),
)
def test_what_an_engine_has_taken_counts_once(
    taken: int, own: int, shared: int, beside: int, load: int, data: st.DataObject
) -> None:
    book = DeviceBook(10_000)
    parts = {"file:a": shared, "m1": own}
    has = entry(key(1), 0, parts=parts)
    book.report("live", [has], TOTAL, 0.0, taken=own + beside)
    assert (book.used, book.held["live"]) == (own + beside + shared, beside)
    # While it loads, what it has taken grows with the load, of which the room is reserved: no more than both.
    assert book.request("live", 1, key(2), load, 1.0, 10.0) == [Grant("live", 1)]
    loading = entry(key(2), 0, state="loading", parts={})
    for so_far in data.draw(st.lists(st.integers(0, load))):
        book.hold("live", own + beside + so_far, 2.0)
        book.report("live", [has, loading], TOTAL, 2.0)
        assert book.held["live"] == beside
    book.report("live", [has, entry(key(2), load)], TOTAL, 3.0, taken=own + beside + load)
    assert (book.used, book.held["live"]) == (own + beside + shared + load, beside)
    # It never takes less than its entries say, whatever it says itself.
    book.hold("live", taken, 4.0)
    assert book.used == max(taken, own + load) + shared
    book.lost("live", 5.0)
    assert book.used == 0


def test_entries_cross_as_data() -> None:
    one = entry(key(1), 5, leases=2, pinned=True, last_used=1.5, weights="substitute:x")
    assert EntryReport.from_dict(one.as_dict()) == one
