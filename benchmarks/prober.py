"""Asks a worker for `/health` every 20 ms over one connection and notes how long each answer took.

    python -m benchmarks.prober PORT NOTES

A process of its own, so that nothing else in it delays an answer. It ends when the worker is gone.
"""

from __future__ import annotations

import argparse
import http.client
import time
from pathlib import Path

from benchmarks.notes import Notes

EVERY_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("notes", type=Path)
    arguments = parser.parse_args()
    notes = Notes(arguments.notes)
    connection = http.client.HTTPConnection("127.0.0.1", arguments.port, timeout=10)
    try:
        while True:
            begun = time.monotonic_ns()
            connection.request("GET", "/health")
            connection.getresponse().read()
            notes.note(time.monotonic_ns() - begun, begun)
            time.sleep(EVERY_S)
    except (OSError, http.client.HTTPException) as error:
        print(f"the worker is gone: {error}")


if __name__ == "__main__":
    main()
