from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import feed, notes
from benchmarks.report import Spread, slope
from byoc.mock import clip
from byoc.mock.outputs import Arrival, outputs
from stream.trickle.server import TrickleServer, TrickleServerSettings


async def test_what_is_fed_into_a_channel_is_recorded_from_it_with_times(tmp_path: Path) -> None:
    recipe = clip.Recipe(128, 128, seconds=1.5, key_every=0.5, bitrate=200_000)
    arguments = argparse.Namespace(
        clip=clip.cached(recipe, tmp_path), fed=tmp_path / "fed", out=tmp_path / "out", limit=20.0
    )
    async with TrickleServer(TrickleServerSettings(port=0)) as server:
        server.create_channel("loop", "video/mp2t")
        arguments.into = arguments.watch = server.channel_url("loop")
        await feed.run(arguments)
    fed = notes.first(arguments.fed)
    found = outputs(feed.load(arguments.out))
    assert [output.number for output in found] == list(range(45)) == sorted(fed)
    assert all(abs(output.at - fed[output.number or 0]) < 1e9 for output in found)
    gaps = [fed[n + 1] - fed[n] for n in range(44)]
    assert 40e6 > sum(gaps) / 44 > 25e6


def test_records_read_back_in_the_order_of_segments(tmp_path: Path) -> None:
    segments = {1: [Arrival(5, b"later")], 0: [Arrival(1, b"a"), Arrival(2, b"")]}
    feed.save(segments, tmp_path / "out")
    assert feed.load(tmp_path / "out") == [segments[0], segments[1]]


def test_notes_survive_a_writer_that_was_killed_in_the_middle(tmp_path: Path) -> None:
    written = notes.Notes(tmp_path / "notes")
    written.note(7, 100)
    written.note(7, 200)
    written.close()
    with (tmp_path / "notes").open("ab") as file:
        file.write(b"half")
    assert list(notes.read(tmp_path / "notes")) == [(7, 100), (7, 200)]
    assert notes.first(tmp_path / "notes") == {7: 100}


def test_percentiles_are_by_nearest_rank() -> None:
    spread = Spread.of(list(range(1, 101)))
    assert (spread.p50, spread.p95, spread.p99, spread.most) == (50, 95, 99, 100)
    assert Spread.of([3.0]).p99 == 3.0
    assert Spread.of([]).count == 0


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == 2.0
    assert slope([1], [1]) == 0.0
