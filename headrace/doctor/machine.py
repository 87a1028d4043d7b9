"""Checks of the machine, of the installed packages and of what a worker would start with."""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
from importlib import metadata
from pathlib import Path
from typing import Final

from byoc.packages import ROOMS, hidden
from headrace.doctor.findings import Finding, ok, problem, warning
from stream.errors import HeadraceError

DESCRIPTORS: Final = 1024
"""Open files that a worker with a few sessions may need."""
MEMORY: Final = 2 << 30
"""Bytes below which an engine with a small model does not fit."""
BLOCK: Final = 16 << 20


def system() -> list[Finding]:
    """Kernel, cores, memory and open files."""
    cores, free = len(os.sched_getaffinity(0)), available_memory()
    findings = [ok(f"Linux {platform.release()} ({platform.machine()}), Python {platform.python_version()}")]
    text = f"{cores} CPU cores, {free / 2**30:.1f} GiB of memory available"
    if free < MEMORY:
        findings.append(warning(text, "an engine with a model may not fit: free memory, or raise the limit"))
    else:
        findings.append(ok(text))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        findings.append(warning(f"only {soft} files may be open", f"ulimit -n {min(max(hard, soft), 65536)}"))
    return findings


def available_memory() -> int:
    """Bytes that can still be had, under the limit of a container too."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def packages() -> list[Finding]:
    """Whether what Headrace needs is there, and whether something hides its own packages."""
    findings = [problem(text, advice) for text, _, advice in (p.rpartition("; ") for p in hidden(ROOMS))]
    found, missing = [], []
    for name, least in requirements():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(problem(f"{name} is not installed", f"pip install '{name}>={least}'"))
            continue
        if _numbers(version) < _numbers(least):
            text = f"{name} {version} is too old; {least} is needed"
            missing.append(problem(text, f"pip install -U '{name}>={least}'"))
        found.append(f"{name} {version}")
    return [*findings, *missing, ok(", ".join(found))]


def requirements() -> list[tuple[str, str]]:
    """Names and least versions of the packages without which nothing runs."""
    try:
        lines = metadata.requires("headrace") or []
    except metadata.PackageNotFoundError:
        return []
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in lines if "extra ==" not in line)
    return [(match[1], match[2]) for match in found if match]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def settings() -> list[Finding]:
    """Whether flags apart, a worker would start with what the environment and the file say."""
    from headrace.server.tls import server_context
    from headrace.settings import Settings, load_settings
    from headrace.settings_sources import notes_on_environment
    from stream.access import check_exposure
    from stream.hosts import HostRules

    advice = "docs/running.md lists all settings"
    try:
        chosen = load_settings({})
        token = chosen.token.get_secret_value() if chosen.token is not None else None
        check_exposure(chosen.host, token)
        HostRules(chosen.allowed_hosts)
        if chosen.tls_certificate is not None:
            server_context(chosen)
    except HeadraceError as error:
        return [problem(error.message, advice)]
    given = ", ".join(sorted(chosen.model_fields_set)) or "none"
    notes = [warning(note, advice) for note in notes_on_environment(os.environ, Settings.model_fields)]
    return [ok(f"given: {given}"), *notes]


def port() -> list[Finding]:
    """Whether the worker's port is free."""
    from headrace.settings import load_settings

    try:
        chosen = load_settings({})
    except HeadraceError:
        return []
    family = socket.AF_INET6 if ":" in chosen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((chosen.host, chosen.port))
        except OSError as error:
            text = f"port {chosen.port} on {chosen.host} cannot be had: {error.strerror}"
            return [warning(text, "a worker may be running; else HEADRACE_PORT chooses another")]
    return [ok(f"port {chosen.port} on {chosen.host} is free")]


def memory_files() -> list[Finding]:
    """Whether frames can be shared with an engine: memory files with seals, two mappings of one."""
    from headrace.engine.memory import SharedBlock

    try:
        block = SharedBlock.create(BLOCK)
        try:
            other = SharedBlock.attach(os.dup(block.fd), BLOCK)
            block.buffer[BLOCK - 4 :] = b"same"
            same = other.buffer[BLOCK - 4 :] == b"same"
            other.close()
        finally:
            block.close()
    except HeadraceError as error:
        return [
            problem(error.message, "the kernel must allow memfd_create and seals (seccomp, vm.memfd_noexec)")
        ]
    if not same:
        return [problem("two mappings of a memory file differ", "the kernel's memfd does not work here")]
    return [ok("memory files can be sealed and shared")]
