"""Real-time diffusion under measurement, beside the package that brought it.

    python -m benchmarks.diffusion [--tiny] [--size 512] [--frames 200] [--compile yes|no] [--json FILE]

Networks of SD-Turbo's full size with random weights (how fast they are does not depend on the weights);
`--tiny` takes miniature ones, for a machine without a GPU: their figures say what the code around them
costs, nothing more. All run in the same process, in turns, frame by frame; the package runs eagerly, ours
compiled where there is CUDA (or with ``--compile yes``), beside our own eager way.

steps: 1, 2 and 4 rows, ours and the package's   sessions: four streams in one call and one after another
adapters: a stream with a LoRA, compiled and eager
changes: the longest frame while parameters change   stages: where the time of a frame goes
floor: what its arithmetic takes at the speed of a large product
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.command import tell
from benchmarks.diffusion_models import full_size, lora, tiny
from benchmarks.report import Report, Spread
from headrace.diffusion.adapters import Kit
from headrace.diffusion.asked import Guidance, Settings
from headrace.diffusion.compiler import accelerate
from headrace.diffusion.frame import run
from headrace.diffusion.networks import Networks
from headrace.diffusion.place import Guest
from headrace.diffusion.schedule import constants
from headrace.diffusion.stream import Stream

INDICES = {1: [32], 2: [20, 32], 4: [5, 16, 32, 45]}
PROMPT = "a red fox in the snow"


class Bench:
    """The networks, and clocks that wait for the device."""

    def __init__(self, pipe: Any, size: int, frames: int, report: Report) -> None:
        self.pipe = pipe
        self.size, self.frames, self.report = size, frames, report
        self.device = torch.device(pipe.device)
        self.networks = Networks(dict(pipe.components), self.device, pipe.unet.dtype)
        self.picture = torch.rand((1, size, size, 3), device=self.device)

    def stream(self, rows: int, prompt: str = PROMPT, seed: int = 2) -> Stream:
        net, indices = self.networks, INDICES[rows]
        shape = (rows, *net.latent_shape(self.size, self.size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        steps = constants(indices, 50, net.alphas_cumprod)
        return Stream(
            Settings(steps, noise, net.encode_prompt(prompt), net.encode_prompt(""), Guidance("self"))
        )

    def compiles(self, streams: list[Stream]) -> bool:
        """Wait until frames of these streams are compiled; False, and a note, where they are not."""
        acceleration = self.networks.acceleration
        if not acceleration.in_use:
            return False
        begun = time.monotonic()
        run(self.networks, streams, [self.picture] * len(streams))
        while acceleration.state[0] == "compiling":
            time.sleep(0.2)
        state, reason = acceleration.state
        seconds = time.monotonic() - begun
        name = f"{len(streams)} stream(s), {sum(stream.row_count for stream in streams)} row(s)"
        self.report.notes.append(f"{name}: {state} {reason} after {seconds:.0f} s")
        return state == "compiled"

    def timed(self, call: Callable[[], object]) -> float:
        """Milliseconds that ``call`` takes, the device's work included."""
        self.settle()
        begun = time.perf_counter()
        call()
        self.settle()
        return 1000 * (time.perf_counter() - begun)

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def in_turns(
        self, calls: dict[str, Callable[[], object]], frames: int | None = None
    ) -> dict[str, Spread]:
        """Every call once for each frame, after three that are not counted."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range((frames or self.frames) + 3):
            for name, call in calls.items():
                taken = self.timed(call)
                if number >= 3:
                    times[name].append(taken)
        return {name: Spread.of(values) for name, values in times.items()}


def steps(bench: Bench) -> None:
    for rows in INDICES:
        ours = bench.stream(rows)
        eager = bench.stream(rows)
        calls: dict[str, Callable[[], object]] = {
            "Headrace": lambda ours=ours: run(bench.networks, [ours], [bench.picture]),  # type: ignore[misc]
        }
        if bench.compiles([ours]):
            agreement(bench, f"{rows} step(s)", lambda rows=rows: bench.stream(rows))  # type: ignore[misc]
            calls["Headrace, eager"] = lambda eager=eager: run(  # type: ignore[misc]
                bench.networks, [eager], [bench.picture], eager=True
            )
        theirs = package(bench, rows)
        if theirs is not None:
            calls["streamdiffusion"] = theirs
        found = bench.in_turns(calls)
        for name, spread in found.items():
            target, met = "", None
            if name == "Headrace" and rows == 1 and bench.size == 512 and bench.device.type == "cuda":
                target, met = "at least 135 fps on an H100", 1000 / spread.p50 >= 135
            value = f"{spread.p50:.2f} / {spread.p95:.2f} ms, {1000 / spread.p50:.1f} fps"
            bench.report.add(f"{rows} step(s), p50 / p95", name, value, target, met)
        if "streamdiffusion" in found:
            ratio = found["streamdiffusion"].p50 / found["Headrace"].p50
            goal = "at least 1.5" if rows == 1 and bench.device.type == "cuda" else ""
            bench.report.add(
                f"{rows} step(s), times as fast",
                "Headrace",
                f"{ratio:.2f}",
                goal,
                ratio >= 1.5 if goal else None,
            )


def agreement(bench: Bench, what: str, made: Callable[[], Stream]) -> None:
    """How far whole compiled frames are from eager ones, as what is shown: bytes."""
    one, other = made(), made()
    worst = different = total = 0
    for _ in range(8):
        picture = torch.rand_like(bench.picture)
        compiled = run(bench.networks, [one], [picture])[0]
        eager = run(bench.networks, [other], [picture], eager=True)[0]
        off = ((compiled * 255).round() - (eager * 255).round()).abs()
        worst, different = max(worst, int(off.max())), different + int((off > 0).sum())
        total += off.numel()
    value = f"{worst} grey level(s) at most, {100 * different / total:.3f} % of values differ"
    bench.report.add(f"{what}, compiled beside eager", "Headrace", value, "at most 1", worst <= 1)


def adapters(bench: Bench) -> None:
    """A LoRA of random weights on every layer, as a branch of the network."""
    kit = Kit(bench.networks, [lora(bench.networks.unet)])

    def made() -> Stream:
        stream = bench.stream(1)
        stream.apply(replace(stream.settings, adapters=kit.adapters([0.8])))
        return stream

    ours, eager = made(), made()
    calls: dict[str, Callable[[], object]] = {
        "Headrace": lambda: run(bench.networks, [ours], [bench.picture])
    }
    if bench.compiles([ours]):
        agreement(bench, "1 step(s) with a LoRA", made)
        calls["Headrace, eager"] = lambda: run(bench.networks, [eager], [bench.picture], eager=True)
    for name, spread in bench.in_turns(calls).items():
        value = f"{spread.p50:.2f} / {spread.p95:.2f} ms, {1000 / spread.p50:.1f} fps"
        bench.report.add("1 step(s) with a LoRA, p50 / p95", name, value)


def package(bench: Bench, rows: int) -> Callable[[], object] | None:
    """A frame through the package; it needs CUDA for its own call, so its parts are called."""
    try:
        from streamdiffusion import StreamDiffusion
    except ImportError as error:
        bench.report.notes.append(
            f"the package streamdiffusion is not there ({error}); ours alone was measured"
        )
        return None
    other = StreamDiffusion(
        bench.pipe, INDICES[rows], bench.pipe.unet.dtype, bench.size, bench.size, cfg_type="self"
    )
    with torch.inference_mode():
        other.prepare(PROMPT, guidance_scale=1.0, generator=torch.Generator())
    image = bench.picture.permute(0, 3, 1, 2) * 2 - 1

    @torch.inference_mode()
    def frame() -> object:
        return other.decode_image(other.predict_x0_batch(other.encode_image(image)))

    return frame


def sessions(bench: Bench) -> None:
    def made() -> list[Stream]:
        return [bench.stream(1, f"{PROMPT} {number}", number) for number in range(4)]

    together, alone = made(), made()
    bench.compiles(together)
    pictures = [bench.picture] * 4
    found = bench.in_turns(
        {
            "one call": lambda: run(bench.networks, together, pictures),
            "four calls": lambda: [run(bench.networks, [stream], [bench.picture]) for stream in alone],
        },
        max(5, bench.frames // 4),
    )
    for name, spread in found.items():
        target, met = "", None
        if name == "one call" and bench.size == 512 and bench.device.type == "cuda":
            target, met = "at least 260 fps in all", 4000 / spread.p50 >= 260
        value = f"{spread.p50:.2f} / {spread.p95:.2f} ms, {4000 / spread.p50:.1f} fps in all"
        bench.report.add("four sessions, p50 / p95", name, value, target, met)


def changes(bench: Bench) -> None:
    stream = bench.stream(2)
    still = bench.in_turns({"still": lambda: run(bench.networks, [stream], [bench.picture])})["still"]
    number = 0

    def changed() -> None:
        nonlocal number
        number += 1
        settings = stream.settings
        noise = settings.noise.roll(1, -1)
        steps_ = constants([10 + number % 8, 32], 50, bench.networks.alphas_cumprod)
        stream.apply(replace(settings, noise=noise, steps=steps_))
        run(bench.networks, [stream], [bench.picture])

    moving = bench.in_turns({"changing": changed})["changing"]
    hitch = moving.p95 - still.p50
    bench.report.add(
        "steps and noise changed every frame, p95 over a still frame's p50",
        "Headrace",
        f"{hitch:+.2f} ms",
        "at most 10 ms" if bench.device.type == "cuda" else "",
        hitch <= 10 if bench.device.type == "cuda" else None,
    )


def stages(bench: Bench) -> None:
    net, stream = bench.networks, bench.stream(1)
    with torch.inference_mode():
        latent = net.encode(bench.picture)
        place, step = net.place(1, 1, stream), net.step_of(stream)
        place.settle([Guest(stream, 0)], 0, net.conditioned)
        rows = place.rows(place.sources(latent))

        def own() -> None:
            place.settle([Guest(stream, 0)], 0, net.conditioned)
            place.rows(place.sources(latent))
            place.take(place.tensors["clean"], place.tensors["residual"])
            place.leaving()

        found = bench.in_turns(
            {
                "encode": lambda: net.encode(bench.picture),
                "network": lambda: step(rows, (), {}),
                "stream batch": own,
                "decode": lambda: net.decode(latent),
            }
        )
    for name, spread in found.items():
        bench.report.add(
            f"stage {name}, eager, p50 / p95", "Headrace", f"{spread.p50:.2f} / {spread.p95:.2f} ms"
        )


def floor(bench: Bench) -> None:
    """What the arithmetic of a frame takes at the speed of one large product on this device."""
    from torch.utils.flop_counter import FlopCounterMode

    stream, dtype = bench.stream(1), bench.networks.dtype
    with FlopCounterMode(display=False) as counter:
        run(bench.networks, [stream], [bench.picture], eager=True)
    side = 8192 if bench.device.type == "cuda" else 1024
    square = torch.rand((side, side), dtype=dtype, device=bench.device)
    spread = bench.in_turns({"product": lambda: square @ square}, 20)["product"]
    speed = 2 * side**3 / spread.p50 * 1000
    work = counter.get_total_flops()
    value = f"{1000 * work / speed:.2f} ms ({work / 1e9:.1f} GFLOP at {speed / 1e12:.2f} TFLOP/s)"
    bench.report.add("1 step, floor by arithmetic", "this device", value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="miniature networks")
    parser.add_argument("--size", type=int, default=512, help="pixels along a side (default 512)")
    parser.add_argument("--frames", type=int, default=200, help="of each measurement (default 200)")
    parser.add_argument("--json", type=Path, help="write every figure here too")
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto", help="default: for CUDA")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(1)
    device = "cuda" if cuda else "cpu"
    report = Report(title=f"Headrace, real-time diffusion, {arguments.size} x {arguments.size}")
    report.notes.append(
        f"on {torch.cuda.get_device_name() if cuda else 'a CPU, one thread'}; "
        f"{'miniature' if arguments.tiny else 'full-size'} networks of random weights"
    )
    pipe = (tiny if arguments.tiny else full_size)(device, torch.float16 if cuda else torch.float32)
    bench = Bench(pipe, arguments.size, arguments.frames, report)
    wanted = {"auto": "auto", "yes": "compile", "no": "none"}[arguments.compile]
    accelerate(bench.networks, wanted)
    for measurement in (steps, sessions, adapters, changes, stages, floor):
        measurement(bench)
    tell(report, Console(width=None if sys.stdout.isatty() else 140), None, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
