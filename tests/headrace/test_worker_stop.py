"""The end of a worker of which a part fails."""

import pytest

from headrace.server.worker import Worker
from headrace.settings import Settings


@pytest.mark.parametrize("broken", ["webrtc", "table", "recorder", "engine"])
async def test_a_part_that_fails_keeps_no_other_from_being_closed(broken, monkeypatch, caplog):
    worker = Worker(Settings(port=0, batch=False, demo=False))
    closed = []

    def closing(name, real):
        async def close(*arguments):
            closed.append(name)
            if name == broken:
                raise RuntimeError(f"{name} is broken")
            await real(*arguments)

        return close

    for name in ("webrtc", "table", "recorder", "engine"):
        part, method = getattr(worker, name), "stop" if name == "engine" else "close"
        monkeypatch.setattr(part, method, closing(name, getattr(part, method)))
    await worker.stop()
    assert set(closed) == {"webrtc", "table", "recorder", "engine"}
    assert f"{broken} is broken" in caplog.text
