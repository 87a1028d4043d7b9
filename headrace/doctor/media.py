"""Checks of codecs, GPU, torch and ComfyUI."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from headrace.doctor.findings import Finding, ok, problem, warning
from stream.errors import HeadraceError

TORCH_TIMEOUT: Final = 90.0
OURS: Final = "HEADRACE_COMFYUI"
COMFYUI_VARIABLES: Final = (OURS, "COMFYUI", "COMFYUI_PATH", "COMFYUI_WORKSPACE")
COMFYUI_PLACES: Final = ("~/ComfyUI", "~/comfy/ComfyUI", "/workspace/ComfyUI", "/opt/ComfyUI", "ComfyUI")
CODECS: Final[Mapping[str, Literal["r", "w"]]] = {
    "libx264": "w",
    "libopus": "w",
    "h264": "r",
    "hevc": "r",
    "aac": "r",
    "opus": "r",
}
"""Without these nothing goes in or out; ``w`` encodes."""

TORCH_PROBE: Final = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "built_for": torch.version.cuda,
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "threads": torch.get_num_threads(),
}))
if cuda:
    torch.ones(8, device="cuda").sum().item()
"""


def codecs() -> list[Finding]:
    """PyAV and what its FFmpeg was built with, and the GPU's codecs tried out."""
    import av
    from av.codec import Codec

    versions = ", ".join(
        f"{name} {'.'.join(map(str, version))}" for name, version in sorted(av.library_versions.items())
    )
    findings = [ok(f"PyAV {av.__version__} ({versions})")]
    lacking = []
    for name, mode in CODECS.items():
        try:
            Codec(name, mode)
        except ValueError:
            lacking.append(name)
    if lacking:
        text = f"FFmpeg lacks {', '.join(lacking)}"
        findings.append(problem(text, "install PyAV's own wheel: pip install --force-reinstall av"))
    else:
        findings.append(ok("x264, Opus, H.264, HEVC and AAC are there"))
    return [*findings, *_hardware_codecs()]


def _hardware_codecs() -> list[Finding]:
    from stream.codecs.hardware import report

    findings = []
    has_gpu = bool(_gpus())
    for about in report().values():
        name = str(about["name"]).upper()
        if about["available"]:
            findings.append(ok(f"{name} works"))
        elif has_gpu:
            advice = (
                "the CPU does it: GPUs such as A100 and H100 have no encoder; where there is one, "
                "a container needs NVIDIA_DRIVER_CAPABILITIES=all"
            )
            findings.append(warning(f"{name} does not work: {about['reason']}", advice))
        else:
            findings.append(ok(f"no {name} without a GPU: the CPU does it"))
    return findings


def gpus() -> list[Finding]:
    """NVIDIA devices and their driver."""
    found = _gpus()
    if found:
        return [
            ok(
                f"{gpu.name}, {gpu.memory_free / 2**30:.0f} of {gpu.memory_total / 2**30:.0f} GiB free, "
                f"compute capability {gpu.major}.{gpu.minor}, driver {gpu.driver}"
            )
            for gpu in found
        ]
    if Path("/proc/driver/nvidia/version").exists():
        text = "the NVIDIA driver is loaded, but nvidia-smi tells of no device"
        return [warning(text, "run nvidia-smi; a container needs --gpus all")]
    return [ok("no NVIDIA device: models run on the CPU")]


def _gpus() -> Sequence[Any]:
    from stream.gpus import read_gpus

    return asyncio.run(read_gpus())


def torch() -> list[Finding]:
    """What torch the engine's interpreter has, in a process of its own."""
    from headrace.settings import load_settings

    try:
        python = load_settings({}).engine_python or sys.executable
    except HeadraceError:
        python = sys.executable
    where = "" if python == sys.executable else f" in {python}"
    try:
        done = subprocess.run(
            [python, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=TORCH_TIMEOUT, cwd="/"
        )
    except OSError as error:
        text = f"the engine's interpreter {python} cannot be run: {error.strerror}"
        return [problem(text, "HEADRACE_ENGINE_PYTHON names another")]
    except subprocess.TimeoutExpired:
        return [
            problem(f"torch{where} does not answer within {TORCH_TIMEOUT:g} s", "look for a hanging driver")
        ]
    words = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    if "No module named 'torch'" in words:
        return [problem(f"torch is not installed{where}", "pip install 'headrace[engine]'")]
    facts = json.loads(done.stdout) if done.stdout.startswith("{") else None
    if facts is None:
        return [problem(f"torch{where} cannot be imported: {words}", "pip install --force-reinstall torch")]
    name = f"torch {facts['version']}{where}"
    if done.returncode:
        advice = "the driver may be too old for this torch, or the GPU too old or too new: see pytorch.org"
        return [problem(f"{name} cannot compute on the GPU: {words}", advice)]
    if facts["devices"]:
        return [ok(f"{name} for CUDA {facts['built_for']}, on {', '.join(facts['devices'])}")]
    if _gpus():
        built = f"built for CUDA {facts['built_for']}" if facts["built_for"] else "built for the CPU"
        advice = "install torch for CUDA: https://pytorch.org/get-started"
        return [warning(f"{name}, {built}, does not see the GPU", advice)]
    return [ok(f"{name} on the CPU")]


def comfyui(places: Sequence[str] = COMFYUI_PLACES) -> list[Finding]:
    """An existing ComfyUI, by variable or in the usual places."""
    findings = []
    for variable in COMFYUI_VARIABLES:
        named = os.environ.get(variable)
        if named and not _is_comfyui(Path(named).expanduser()):
            findings.append(warning(f"{variable}={named} holds no ComfyUI", f"set {variable} to its folder"))
        elif named:
            found = [*findings, ok(f"ComfyUI in {named} ({variable})")]
            return found + (_of_setting() if variable == OURS else [])
    for place in places:
        folder = Path(place).expanduser()
        if _is_comfyui(folder):
            return [*findings, ok(f"ComfyUI in {folder.resolve()}")]
    if findings:
        return findings
    return [ok(f"none found: workflows run on the built-in nodes ({COMFYUI_VARIABLES[0]} names its folder)")]


def _of_setting() -> list[Finding]:
    """What a worker would start there, and what it could not load of it the last time."""
    from headrace.comfyui.service import last_facts
    from headrace.comfyui.setup import comfy_settings
    from headrace.settings import load_settings

    try:
        settings = comfy_settings(load_settings({}))
    except HeadraceError as error:
        return [problem(error.message, "HEADRACE_COMFYUI_PYTHON names the interpreter of that ComfyUI")]
    found = [ok(f"version {settings.installation.version}, interpreter {settings.installation.python}")]
    facts = last_facts(settings)
    if facts is None:
        return [*found, ok("it has not been started as it is now; `headrace check --comfyui` does it")]
    for pack in facts.get("packs", ()):
        if not pack.get("loaded") and not pack.get("skipped"):
            text = f"{pack.get('name')} is not loaded: {str(pack.get('reason')).splitlines()[0]}"
            found.append(warning(text, "its nodes cannot be used; see what the pack needs"))
    return found


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()
