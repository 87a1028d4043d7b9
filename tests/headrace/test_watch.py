"""``headrace sessions`` against a real server."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rich.console import Console

from headrace.watch import Target, fetch, page
from stream.errors import InvalidInput, SourceError, Unauthorized

ROOT = Path(__file__).resolve().parents[2]
SESSION = {
    "id": "3f9c",
    "state": "ONLINE",
    "fps": {"input": 24.04, "processed": 23.96, "output": 24.0},
    "counts": {"dropped_rate": 1, "dropped_busy": 20, "dropped_encoder": 300, "failed": 4, "frames_in": 9},
    "latency": {"received_to_encoded": {"p50_ms": 12.34, "p95_ms": 45.67}},
    "uptime_s": 3725.0,
}
ANSWER = {"status": "OK", "capacity": 4, "sessions": [SESSION]}


@contextmanager
def worker(body=ANSWER, status=200, token=None):
    """Something that answers ``GET /sessions``; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization")
            refused = token is not None and given != f"Bearer {token}"
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(401 if refused else status if self.path == "/sessions" else 404)
            self.end_headers()
            self.wfile.write(b"{}" if refused else text)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def shown(answer, problem=None):
    console = Console(width=140, file=io.StringIO())
    console.print(page(Target("http://w"), answer, problem))
    return console.file.getvalue()


def test_the_page_has_rates_drops_latency_and_age():
    head, names, row = shown(ANSWER).splitlines()
    assert head.rstrip() == "http://w  OK  1 of 4 sessions"
    columns = [
        "session",
        "state",
        "fps in",
        "processed",
        "out",
        "dropped",
        "failed",
        "p50 ms",
        "p95 ms",
        "age",
    ]
    assert names.split() == " ".join(columns).split()
    assert row.split() == ["3f9c", "ONLINE", "24.0", "24.0", "24.0", "321", "4", "12.3", "45.7", "1:02:05"]


def test_an_old_page_says_why_it_is_old():
    assert "as it was before: gone" in shown(ANSWER, "gone")


def test_a_session_without_figures_yet_and_odd_names_are_shown():
    text = shown({"status": "OK", "capacity": 1, "sessions": [{"id": "[bold]x", "state": "LOADING"}]})
    assert "[bold]x" in text
    assert "LOADING" in text


@given(st.text(max_size=40))
@example("http://[")
@example("http://host:99999")
@example("file:///etc/passwd")
def test_what_is_no_url_is_refused(text):
    assume(not text.startswith(("http://", "https://")) or text in ("http://[", "http://host:99999"))
    with pytest.raises(InvalidInput, match="is not an http"):
        fetch(Target(text))


def test_the_token_is_sent():
    with worker(token="s3cret") as url:
        assert fetch(Target(url, "s3cret")) == ANSWER
        assert fetch(Target(url + "/", "s3cret")) == ANSWER
        for token in (None, "wrong"):
            with pytest.raises(Unauthorized, match="HEADRACE_TOKEN"):
                fetch(Target(url, token))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"sessions": 3}', b'{"sessions": [3]}', b"\xff"])
def test_what_is_no_worker_is_named_as_such(body):
    with worker(body) as url, pytest.raises(SourceError, match="worker"):
        fetch(Target(url))


def test_a_worker_that_is_not_there_is_named():
    with worker() as url:
        pass
    with pytest.raises(SourceError, match="no worker answers at http://127"):
        fetch(Target(url))


def command(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-m", "headrace", "sessions", *arguments], environment


def test_the_command_shows_them_once():
    with worker() as url:
        arguments, environment = command("--url", url, "--once")
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "3f9c" in done.stdout
    arguments, environment = command("--url", url, "--once")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no worker answers" in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_command_goes_on_when_the_worker_goes_away_and_ends_with_ctrl_c():
    with worker() as url:
        arguments, environment = command("--url", url)
        pipe = asyncio.subprocess.PIPE
        watching = await asyncio.create_subprocess_exec(
            *arguments, env=environment | {"FORCE_COLOR": "1"}, stdout=pipe, stderr=pipe
        )
        try:
            await asyncio.wait_for(watching.stdout.readuntil(b"3f9c"), 60)
        except BaseException:
            watching.kill()
            raise
    try:
        await asyncio.wait_for(watching.stdout.readuntil(b"as it was before"), 60)
        watching.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(watching.communicate(), 60)
    finally:
        if watching.returncode is None:
            watching.kill()
            await watching.wait()
    assert watching.returncode == 130
    assert b"Traceback" not in errors
