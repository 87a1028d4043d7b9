from __future__ import annotations

from pathlib import Path

from byoc.mock import clip
from byoc.mock.outputs import Arrival, longest_gap, outputs


def test_each_frame_arrives_with_the_read_that_completes_it(tmp_path: Path) -> None:
    recipe = clip.Recipe(256, 256, seconds=2, key_every=1, bitrate=500_000)
    segments = clip.cut(clip.cached(recipe, tmp_path))
    arrivals = []
    for segment in segments:
        reads = []
        for chunk in segment:
            half = len(chunk.data) // 2
            at = round(chunk.due * 1e9) + 1000
            reads += [Arrival(at - 500, chunk.data[:half]), Arrival(at, chunk.data[half:])]
        arrivals.append(reads)
    found = outputs(arrivals)
    assert [output.number for output in found] == list(range(60))
    assert [output.at for output in found] == [
        round(chunk.due * 1e9) + 1000 for segment in segments for chunk in segment if chunk.number is not None
    ]
    assert not any(output.inverted for output in found)


def test_the_longest_gap_is_between_neighbours() -> None:
    assert longest_gap([0, 10**9, 4 * 10**9, 5 * 10**9]) == 3.0
    assert longest_gap([7]) == 0.0
