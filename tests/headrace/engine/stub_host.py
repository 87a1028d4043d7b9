"""An engine without torch for tests of its guardian: `STUB` in the environment says how it behaves."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from headrace.engine.link import Link, LinkClosed

READY: dict[str, Any] = {
    "op": "ready",
    "pid": os.getpid(),
    "python": "3",
    "torch": "none",
    "device": "cpu",
    "device_name": "CPU",
    "pixel_format": "rgb24",
    "import_seconds": 0.0,
}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait(link: Link) -> Any:
    while True:
        message = link.receive()
        if message is not None:
            return message
        time.sleep(0.002)


def serve(link: Link, ignored: tuple[str, ...] = ()) -> None:
    """Answer calls and pings until the end; ops in ``ignored`` get no answer."""
    while True:
        try:
            message = wait(link)
        except LinkClosed:
            return
        message.close()
        if message.op in ignored:
            continue
        if message.op == "stop":
            return
        if message.op == "late":
            time.sleep(message.body["x"])
        if message.op == "ping":
            link.send({"op": "pong"})
        elif message.op == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif message.op == "fail":
            error = {"code": "invalid_input", "message": "no", "field": "x", "details": [{"a": 1}]}
            link.send({"op": "answer", "call": message.body["call"], "error": error})
        else:
            link.send({"op": "answer", "call": message.body["call"], "echo": message.body.get("x")})


def main() -> int:
    fd = int(next(part for part in sys.argv if part.startswith("--fd=")).partition("=")[2])
    behaviour, _, argument = os.environ["STUB"].partition(" ")
    link = Link.from_fd(fd)
    say(f"stub: {behaviour}")
    if behaviour == "flaky":
        counter = Path(argument)
        starts = len(counter.read_text()) if counter.exists() else 0
        counter.write_text("x" * (starts + 1))
        if starts < 2:
            say("no luck")
            return 5
        behaviour = "serve"
    if behaviour == "die":
        say("no luck")
        return 5
    if behaviour == "silent":
        time.sleep(600)
    if behaviour == "refused":
        link.send({"op": "failed", "error": {"code": argument, "message": "there is no torch here"}})
        return 3
    if behaviour == "garbage":
        os.write(fd, b"garbage")
        time.sleep(600)
    link.send(READY | ({"pid": "many"} if behaviour == "badready" else {}))
    if behaviour == "fatal":
        link.send({"op": "fatal", "message": "CUDA error: misaligned address"})
        time.sleep(0.1)
        return 4
    if behaviour == "unknown":
        link.send({"op": "surprise"})
        time.sleep(600)
    if behaviour == "mute":
        link.close()
        time.sleep(600)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if behaviour == "pongs":
        serve(link, ("open", "call", "stop"))
    if behaviour == "chatty":
        sys.stdout.write("".join(f"line {number}\n" for number in range(20_000)) + "x" * 20_000)
        sys.stdout.write("\n" + "".join(f"\rstep {number} of 2000" for number in range(2001)) + "\nend")
        sys.stdout.flush()
    serve(link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
