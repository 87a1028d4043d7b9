from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream.clock import TICKS
from stream.overlay import Notice, OverlaySettings
from stream.presenter import AvOrder, Presenter

MS = 1_000_000


def test_the_last_picture_is_repeated_before_half_a_second_without_a_new_one():
    presenter = Presenter(OverlaySettings())
    presenter.result(0, 10 * MS)
    assert presenter.idle(350 * MS) is None
    assert presenter.idle(410 * MS) == "repeat"
    assert presenter.idle(450 * MS) is None
    assert presenter.idle(820 * MS) == "repeat"


def test_nothing_is_repeated_before_there_was_anything():
    assert Presenter(OverlaySettings()).idle(10_000 * MS) is None


def test_a_processor_that_is_away_from_the_start_shows_its_notice_at_once():
    presenter = Presenter(OverlaySettings())
    presenter.away(0, "Loading weights", 0.4)
    assert presenter.arrived(1) == Notice("Loading weights", 0.4)


def test_a_processor_that_goes_away_leaves_the_last_picture_at_the_inputs_cadence_then_a_notice():
    presenter = Presenter(OverlaySettings(after=1.5))
    presenter.result(0, 10 * MS)
    presenter.away(33 * MS, "Restarting", None)
    assert presenter.arrived(66 * MS) == "repeat"
    assert presenter.arrived(1400 * MS) == "repeat"
    assert presenter.arrived(1600 * MS) == Notice("Restarting", None)
    presenter.result(1700 * MS, 10 * MS)
    assert presenter.arrived(1733 * MS) is None


def test_a_call_that_never_returns_gets_a_notice():
    presenter = Presenter(OverlaySettings(after=1.5, message="Loading"))
    presenter.result(0, 10 * MS)
    presenter.began(33 * MS)
    assert presenter.arrived(1000 * MS) is None
    assert presenter.arrived(1600 * MS) == Notice("Loading")


def test_a_slow_model_does_not_blink():
    presenter = Presenter(OverlaySettings(after=1.5))
    for i in range(10):
        presenter.began(i * 2000 * MS)
        for ms in range(0, 2000, 33):
            assert i == 0 or presenter.arrived((i * 2000 + ms) * MS) is None
        presenter.result((i + 1) * 2000 * MS, 2000 * MS)


def test_without_an_overlay_the_last_picture_stays():
    presenter = Presenter(OverlaySettings(enabled=False))
    presenter.away(0, "Loading", None)
    assert presenter.arrived(1) is None
    presenter.result(2, 1)
    presenter.away(3, "Restarting", None)
    assert presenter.arrived(10_000 * MS) == "repeat"


@dataclass
class Picture:
    pts: int


@dataclass
class Sound:
    pts: int
    length: int


def test_sound_leaves_once_the_picture_of_its_time_has_left():
    order: AvOrder[Picture, Sound] = AvOrder()
    order.put_sound(Sound(0, 1800))
    order.put_sound(Sound(1800, 1800))
    assert order.next() is None
    order.put_pictures([Picture(1000)])
    assert order.next() == Picture(1000)
    assert order.next() == Sound(0, 1800)
    assert order.next() is None
    assert order.next(ending=True) == Sound(1800, 1800)


def test_without_pictures_sound_waits_for_nothing():
    order: AvOrder[Picture, Sound] = AvOrder()
    order.expects_video = False
    order.put_sound(Sound(0, 1800))
    assert order.next() == Sound(0, 1800)


steps = st.lists(st.sampled_from("vast"), max_size=300)


@given(steps, st.sampled_from([None, True]))
def test_sound_is_bounded_in_order_and_accounted_for(plan, expects):
    order: AvOrder[Picture, Sound] = AvOrder(max_sound=1.0)
    order.expects_video = expects
    sounds, out, video = 0, [], 0
    for step in plan:
        if step == "a":
            order.put_sound(Sound(sounds * 1800, 1800))
            sounds += 1
        elif step == "v":
            order.put_pictures([Picture(video * 3000)])
            video += 1
        elif (item := order.next()) is not None:
            out.append(item)
    while (item := order.next(ending=True)) is not None:
        out.append(item)
    heard = [item.pts for item in out if isinstance(item, Sound)]
    assert heard == sorted(heard)
    assert len(heard) + order.dropped_audio == sounds
    seen = [item.pts for item in out if isinstance(item, Picture)]
    assert seen == sorted(seen)
    assert len(seen) + order.dropped_video == video
    assert TICKS // 1800 == 50


def test_sound_is_not_starved_by_an_encoder_that_is_slower_than_the_pictures():
    order: AvOrder[Picture, Sound] = AvOrder()
    heard = []
    for i in range(600):
        order.put_pictures([Picture(i * 3000)])
        order.put_sound(Sound(i * 3000, 3000))
        item = order.next()
        if isinstance(item, Sound):
            heard.append(item)
    assert len(heard) > 250
    assert len(heard) + order.dropped_audio > 500


def test_sound_that_nobody_takes_is_bounded():
    order: AvOrder[Picture, Sound] = AvOrder(max_sound=1.0)
    order.put_pictures([Picture(0)])
    order.next()
    for i in range(500):
        order.put_sound(Sound(90_000 + i * 1800, 1800))
    assert order.dropped_audio == 400


def test_lossless_nothing_is_dropped_and_full_sound_leaves_before_the_first_picture():
    order: AvOrder[Picture, Sound] = AvOrder(max_sound=1.0, lossless=True)
    for i in range(60):
        order.put_sound(Sound(i * 1800, 1800))
    assert order.sound_is_full
    assert order.next() == Sound(0, 1800)
    assert order.dropped_audio == 0
