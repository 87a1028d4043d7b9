"""What nodes write is kept within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.comfyui.scratch import sweep


def write(folder: Path, count: int, size: int = 10) -> list[Path]:
    """Files in folders of their own, each a second younger than the one before."""
    made = []
    for number in range(count):
        path = folder / "comfyui" / ("temp" if number % 2 else "output") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (number, number))
        made.append(path)
    return made


@pytest.mark.parametrize(
    ("max_bytes", "max_files", "left"), [(1000, 100, 8), (35, 100, 3), (1000, 5, 5), (0, 0, 0)]
)
def test_the_oldest_files_go_until_what_is_left_is_within_bounds(
    tmp_path: Path, max_bytes: int, max_files: int, left: int
) -> None:
    made = write(tmp_path, 8)
    assert sweep(tmp_path, max_bytes, max_files) == 8 - left
    assert [path for path in made if path.exists()] == made[8 - left :]


def test_links_and_what_they_lead_to_stay(tmp_path: Path) -> None:
    (outside,) = write(tmp_path / "outside", 1)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    assert sweep(inside, 0, 0) == 0
    assert outside.exists()
    assert sweep(tmp_path / "nothing", 0, 0) == 0
