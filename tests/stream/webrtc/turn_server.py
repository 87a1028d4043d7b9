"""A real coturn for a test, on ports of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECRET = "shared between the two"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def turn_server() -> Iterator[str]:
    """``host:port`` of a server that takes time-limited credentials made of `SECRET`."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("coturn is not installed (apt-get install coturn)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [program, "-n", "--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=test"]
        arguments += ["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}"]
        arguments += ["--min-port=49152", "--max-port=49252", "--allow-loopback-peers", "--no-cli"]
        arguments += ["--no-tls", "--no-dtls", "--log-file=stdout", f"--pidfile={Path(folder) / 'pid'}"]
        arguments += [f"--userdb={Path(folder) / 'db'}"]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait_until_it_answers(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.communicate()


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    binding = bytes.fromhex("000100002112a442") + b"\1" * 12
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        end = time.monotonic() + 15
        while time.monotonic() < end and process.poll() is None:
            try:
                client.sendto(binding, ("127.0.0.1", port))
                client.recv(100)
            except OSError:
                time.sleep(0.05)
            else:
                return
    process.kill()
    output = process.communicate()[0].decode()[-2000:]
    pytest.skip(f"coturn does not run here: {output}")
