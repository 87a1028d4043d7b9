"""The accounting of a device's memory, by property."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.models.errors import ModelTooLarge, NoRoom
from headrace.models.ledger import Entry, Ledger

BUDGET = 100
parts = st.dictionaries(st.sampled_from(["file:a", "file:b", "x", "y", "z"]), st.integers(0, 60), max_size=3)


def bytes_of(entries: list[Entry[int]]) -> int:
    """The definition, written down a second time: every part once, at its greatest size."""
    names = {name for entry in entries for name in entry.parts}
    return sum(max(entry.parts.get(name, 0) for entry in entries) for name in names)


class Machine(RuleBasedStateMachine):
    """Loads, leases, pins and evictions in any order; what leaves is dropped later, as in life."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[int] = Ledger(BUDGET)
        self.order: list[int] = []
        self.next = 0

    def _used(self, key: int) -> None:
        self.order = [k for k in self.order if k != key] + [key]

    @rule(size=st.integers(0, 120))
    def load(self, size: int) -> None:
        self.next += 1
        before = {entry.key: entry for entry in self.ledger.entries}
        evictable = [entry for entry in before.values() if entry.evictable]
        fixed = [entry for entry in before.values() if not entry.evictable]
        new = Entry(self.next, {str(self.next): size})
        try:
            out = self.ledger.admit(self.next, new.parts)
        except ModelTooLarge as error:
            assert size > BUDGET
            assert "100 B" in error.message
            return
        except NoRoom:
            assert bytes_of([*fixed, new]) > BUDGET
            assert size <= BUDGET
            return
        gone = [before[key] for key in out]
        assert all(entry.evictable for entry in gone)
        kept = [entry for entry in before.values() if entry.key not in out]
        assert bytes_of([*kept, new]) <= BUDGET
        for entry in gone:
            # None goes that could have stayed.
            assert bytes_of([*kept, new, entry]) > BUDGET
        assert bytes_of([*fixed, *evictable, new]) > BUDGET or not out
        for key in out:
            assert self.ledger[key].leaving
        self._used(self.next)

    @precondition(lambda self: any(e.state == "loading" for e in self.ledger.entries))
    @rule(data=st.data(), ok=st.booleans(), found=parts)
    def settle(self, data: st.DataObject, ok: bool, found: dict[str, int]) -> None:
        key = data.draw(st.sampled_from([e.key for e in self.ledger.entries if e.state == "loading"]))
        if ok:
            self.ledger.loaded(key, found)
            self._used(key)
        else:
            self.ledger.drop(key)
            assert key not in self.ledger

    @precondition(lambda self: any(not e.leaving for e in self.ledger.entries))
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([e.key for e in self.ledger.entries if not e.leaving]))
        self.ledger.lease(key)
        self._used(key)

    @precondition(lambda self: any(e.leases for e in self.ledger.entries))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([e.key for e in self.ledger.entries if e.leases]))
        self.ledger.release(key)
        self._used(key)

    @precondition(lambda self: self.ledger.entries)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        self.ledger.pin(data.draw(st.sampled_from([e.key for e in self.ledger.entries])), pinned)

    @precondition(lambda self: any(e.leaving for e in self.ledger.entries))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.ledger.drop(data.draw(st.sampled_from([e.key for e in self.ledger.entries if e.leaving])))

    @invariant()
    def figures_are_what_they_say(self) -> None:
        entries = list(self.ledger.entries)
        assert self.ledger.used == bytes_of(entries)
        kept = [entry for entry in entries if not entry.evictable]
        assert self.ledger.reclaimable == bytes_of(entries) - bytes_of(kept)
        idle = list(self.ledger.idle())
        assert idle == [key for key in self.order if key in self.ledger and self.ledger[key].evictable]


TestLedger = Machine.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def filled(*sizes: int) -> Ledger[str]:
    ledger: Ledger[str] = Ledger(BUDGET)
    for number, size in enumerate(sizes):
        key = "abcdef"[number]
        ledger.admit(key, {key: size})
        ledger.loaded(key, {key: size})
    return ledger


def test_the_least_recently_used_goes() -> None:
    ledger = filled(40, 40)
    ledger.lease("a")
    ledger.release("a")
    assert ledger.admit("c", {"c": 40}) == ("b",)


def test_the_leased_the_pinned_and_the_live_stay() -> None:
    ledger = filled(30, 30, 30)
    ledger.lease("a")
    ledger.pin("b")
    ledger["c"].live = True
    with pytest.raises(NoRoom, match="model d needs 20 B; 10 B of 100 B"):
        ledger.admit("d", {"d": 20})
    ledger["c"].live = False
    assert ledger.admit("d", {"d": 20}) == ("c",)


def test_two_loads_do_not_count_on_the_same_room() -> None:
    ledger: Ledger[str] = Ledger(BUDGET)
    ledger.admit("a", {"a": 60})
    with pytest.raises(NoRoom):
        ledger.admit("b", {"b": 60})
    ledger.drop("a")
    assert ledger.admit("b", {"b": 60}) == ()


def test_what_others_hold_counts() -> None:
    ledger = filled(40)
    ledger.held["comfyui"] = 50
    assert ledger.used == 90
    assert ledger.admit("b", {"b": 30}) == ("a",)


def test_a_shared_file_counts_once_and_goes_with_its_last_user() -> None:
    ledger: Ledger[str] = Ledger(BUDGET)
    for key in ("a", "b"):
        ledger.admit(key, {key: 0})
        ledger.loaded(key, {"file:x": 60, key: 5})
    assert ledger.used == 70
    # Evicting one of them frees five bytes: both have to go for forty.
    assert set(ledger.admit("c", {"c": 45})) == {"a", "b"}


def test_a_large_late_one_spares_the_small_early_ones() -> None:
    ledger = filled(10, 10, 70)
    assert ledger.admit("d", {"d": 60}) == ("c",)


@given(size=st.integers(101, 10**12))
def test_what_never_fits_says_so_in_three_figures(size: int) -> None:
    ledger = filled(10)
    with pytest.raises(ModelTooLarge, match=r"model big needs .* budget of the device is 100 B") as error:
        ledger.plan("big", {"big": size})
    assert error.value.status == 400


def test_a_lease_is_given_back_once() -> None:
    ledger = filled(10)
    with pytest.raises(ValueError, match="no lease"):
        ledger.release("a")
