import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import Conflict
from stream.ingest import BYE, Grace, Ingest
from stream.mpegts import AccessUnit


def unit(pts: int = 0, kind: str = "video", key: bool = True) -> AccessUnit:
    return AccessUnit(1, "h264" if kind == "video" else "opus", kind, b"data", pts, pts, 0, key)


events = st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["came", "left", "bye"])), max_size=30)


@given(events, st.floats(0.1, 10), st.booleans())
def test_a_stream_outlives_its_publisher_by_its_grace_and_no_longer(plan, seconds, end_on_bye):
    grace, now, gone_since, over = Grace(seconds, 0.0, end_on_bye), 0.0, 0.0, False
    for passed, event in plan:
        now += passed
        if event == "came":
            grace.came()
            gone_since = None
        else:
            grace.left(now, BYE if event == "bye" else "lost")
            gone_since = now
            over = over or (event == "bye" and end_on_bye)
        remaining = grace.remaining(now)
        if over:
            assert remaining == 0
        elif gone_since is None:
            assert remaining is None
        else:
            assert remaining == pytest.approx(seconds)
            assert grace.remaining(now + seconds) == 0


@given(st.floats(0, 60), st.floats(0, 60))
def test_the_first_publisher_is_given_the_time_that_a_connection_takes(seconds, first):
    grace = Grace(seconds, 0.0, first=first)
    assert grace.remaining(0.0) == max(seconds, first)
    grace.came()
    grace.left(1.0, "lost")
    assert grace.remaining(1.0) == pytest.approx(seconds)


class Taker:
    """Runs an ingest and keeps what comes of it."""

    def __init__(self, ingest: Ingest) -> None:
        self.units: list[AccessUnit] = []
        self.tracks: list[tuple[bool, bool]] = []
        run = ingest.run(self.units.append, lambda video, audio: self.tracks.append((video, audio)))
        self.task = asyncio.create_task(run)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_without_a_publisher_it_ends_after_the_grace():
    ingest = Ingest(grace=0.01, first=0.05)
    taker = Taker(ingest)
    await asyncio.wait_for(taker.task, 5)
    assert ingest.end_reason == "nobody published for 0.05 s"
    with pytest.raises(Conflict):
        ingest.publish("late", on_replaced=lambda: None)


async def test_a_publisher_may_leave_and_come_back_and_its_units_are_told_apart():
    ingest = Ingest(grace=30)
    taker = Taker(ingest)
    await asyncio.sleep(0)
    first = ingest.publish("obs", on_replaced=lambda: None)
    first.tracks(video=True, audio=True)
    first.put(unit(10))
    first.put(unit(20, key=False))
    first.close("lost")
    assert ingest.publisher is None
    first.put(unit(30))
    again = ingest.publish("obs", on_replaced=lambda: None)
    again.put(unit(5))
    again.put(unit(5, "audio"))
    again.put(unit(6))
    await taker.stop()
    assert [u.pts for u in taker.units] == [10, 20, 5, 5, 6]
    assert [u.epoch for u in taker.units] == [1, 1, 2, 2, 2]
    assert [u.discontinuity for u in taker.units] == [True, False, True, True, False]
    assert taker.tracks == [(True, True)]
    assert ingest.bytes_received == 20


async def test_a_new_publisher_takes_over_and_the_old_one_is_told():
    ingest, told = Ingest(grace=30), []
    taker = Taker(ingest)
    await asyncio.sleep(0)
    old = ingest.publish("old", on_replaced=lambda: told.append("old"))
    new = ingest.publish("new", on_replaced=lambda: told.append("new"))
    assert (told, ingest.publisher) == (["old"], "new")
    old.put(unit(1))
    old.tracks(video=False, audio=False)
    # The one that was replaced cannot end what is not its own.
    old.close(BYE)
    new.put(unit(2))
    assert [u.pts for u in taker.units] == [2]
    assert ingest.publisher == "new"
    await taker.stop()
    assert told == ["old", "new"]


@pytest.mark.parametrize(("end_on_bye", "ends"), [(True, True), (False, False)])
async def test_a_good_bye_ends_the_stream_where_that_is_wanted(end_on_bye, ends):
    ingest = Ingest(grace=30, end_on_bye=end_on_bye)
    taker = Taker(ingest)
    await asyncio.sleep(0)
    ingest.publish("obs", on_replaced=lambda: None).close(BYE)
    done, _ = await asyncio.wait({taker.task}, timeout=5 if ends else 0.1)
    assert bool(done) is ends
    await taker.stop()


async def test_tracks_that_are_named_before_the_session_runs_are_known_when_it_does():
    ingest = Ingest(grace=30)
    feed = ingest.publish("early", on_replaced=lambda: None)
    wishes = []
    feed.wants_key = lambda: wishes.append(1)
    feed.tracks(video=True, audio=False)
    feed.put(unit(1))
    taker = Taker(ingest)
    await asyncio.sleep(0)
    assert taker.tracks == [(True, False)]
    assert taker.units == []
    # The key picture that came too early is asked for again.
    assert wishes == [1]
    await taker.stop()


async def test_key_pictures_are_asked_for_at_most_twice_a_second_and_only_of_who_publishes():
    ingest, wishes = Ingest(grace=30), []
    ingest.request_key()
    feed = ingest.publish("obs", on_replaced=lambda: None)
    feed.wants_key = lambda: wishes.append(feed.name)
    for _ in range(50):
        ingest.request_key()
    assert wishes == ["obs"]


async def test_taps_see_what_comes_in_whether_or_not_it_is_decoded():
    ingest, seen = Ingest(grace=30), []
    ingest.taps.append(lambda u: seen.append(u.pts))
    ingest.publish("obs", on_replaced=lambda: None).put(unit(1))
    assert seen == [1]
