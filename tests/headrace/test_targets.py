"""Where a class is said to be, looked at without running it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.server.app import serve
from headrace.server.targets import check_target
from headrace.settings import load_settings
from stream.errors import HeadraceError, InvalidInput

MODULE = """
raise RuntimeError("must not be run")
from elsewhere import Lent as Given

class One: ...

try:
    import fast
except ImportError:
    class Two: ...
finally:
    Three = One if True else None

def makes(): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file, text in {
        "mine.py": MODULE,
        "open_ended.py": "from mine import *",
        "lazy.py": "def __getattr__(name): ...",
        "broken.py": "\ndef f(:",
        "plain/deep/inner.py": "class In: ...",
        "package/__init__.py": "class Top: ...",
    }.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "target",
    [
        *(f"mine:{name}" for name in ("One", "Two", "Three", "Given", "makes")),
        *("open_ended:Any", "lazy:Any", "plain.deep.inner:In", "package:Top", "math:sqrt"),
        "headrace.diffusion.processor:StreamDiffusionProcessor",
    ],
)
def test_what_may_be_there_is_taken_and_nothing_is_imported(folder: Path, target: str) -> None:
    before = set(sys.modules)
    check_target(target)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("none:One", "there is no module none in "),
        ("plain.none:In", r"there is no module plain\.none"),
        ("mine.none:One", r"there is no module mine\.none"),
        ("plain..inner:In", r"there is no module plain\.$|there is no module plain\. "),
        ("mine:Four", r"mine\.py has no Four; its classes are One, Two"),
        ("lazy.more:X", r"there is no module lazy\.more"),
        ("plain.deep.inner:Out", r"inner\.py has no Out; its classes are In"),
        ("broken:f", r"broken\.py, line 2: invalid syntax"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, target: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check_target(target)
    assert caught.value.field == "processor"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"workflow": "nothere"}, "there is no workflow 'nothere'; bundled are"),
        ({"workflow": "./mine.py"}, "is not JSON"),
        ({"workflow": '{"1": {"class_type": "Nope", "inputs": {}}}'}, "Nope"),
        ({"workflow": "nothere", "custom_nodes": "."}, "there is no workflow"),
        ({"processor": "mine:Four"}, "has no Four"),
    ],
)
async def test_a_worker_does_not_start_with_a_default_that_no_stream_could_run(
    folder: Path, flags: dict[str, str], words: str
) -> None:
    def announce(url: str) -> None:
        raise AssertionError(f"it listens on {url}")

    with pytest.raises(HeadraceError, match=words):
        await serve(load_settings({"port": 0, **flags}), announce)
