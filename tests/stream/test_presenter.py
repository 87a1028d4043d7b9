from stream.overlay import Notice, OverlaySettings
from stream.presenter import Presenter

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
