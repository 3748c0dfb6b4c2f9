"""What ran where, and what it took: the machine, seconds and memory.

Owns the clock and the memory meter of benchmarks. Nothing that is fitted or recommended may depend on it.
"""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STATM = Path("/proc/self/statm")
SAMPLE_SECONDS = 0.01
MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a block took.

    Attributes:
        seconds: wall-clock time.
        peak_mb: highest resident memory in MB (1e6 bytes) of the whole process while the block ran: the interpreter,
            the libraries and everything that was loaded before are in it.
    """

    seconds: float
    peak_mb: float


def metered(work: Callable[[], T]) -> tuple[T, Usage]:
    """Run `work` and measure it.

    On Linux a thread samples the resident set every 10 ms, so a shorter peak may be missed. Elsewhere the peak is
    that of the process's whole life, which is the best the system tells.

    Args:
        work: what to run; what it raises is raised.

    Returns:
        What `work` returned, and what it took.
    """
    read = _resident_mb if STATM.exists() else _lifetime_peak_mb
    samples = [read()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            samples.append(read())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start = time.perf_counter()
    try:
        result = work()
        seconds = time.perf_counter() - start
    finally:
        done.set()
        sampler.join()
    return result, Usage(seconds=seconds, peak_mb=max(*samples, read()))


def machine() -> dict[str, str | int]:
    """Where this runs: `platform` and `cores` (logical ones that this process may use)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"platform": platform.platform(), "cores": cores}


def _resident_mb() -> float:
    pages = int(STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def _lifetime_peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MB if sys.platform == "darwin" else peak * 1024 / MB
