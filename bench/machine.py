"""On what it was measured: the machine's facts, and who used its processors meanwhile.

On 2 cores another process's work changes every figure, so a run states the client's own CPU, and with the server's
process id also what neither of the two used. Reads /proc; elsewhere those figures are None.
"""

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.process_tree import cpu_of_tree_s

PACKAGES = ("pdq", "torch", "triton", "transformers", "tokenizers", "redis", "uvicorn", "uvloop", "fastapi")
CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
CLEAN_SHARE = 0.04  # of the machine's CPU time; others using more makes a run not clean


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's facts."""

    num_cores: int  # that this process may use
    cpu_model: str
    cpu_features: list[str]  # of those that decide how fast it multiplies
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    load_1min: float  # when the run began
    measured_at: str  # UTC


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds in a phase."""

    wall_s: float
    client_s: float
    server_s: float | None  # the process tree of --server-pid
    machine_s: float | None  # every busy core
    other_s: float | None  # machine - client - server
    is_clean: bool | None  # whether others used at most CLEAN_SHARE; None: not known


def read_machine() -> Machine:
    """The facts, now."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        num_cores=_num_cores(),
        cpu_model=_cpu_fact("model name") or platform.processor(),
        cpu_features=[name for name in CPU_FEATURES if name in _cpu_fact("flags").split()],
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=platform.platform(),
        python=platform.python_version(),
        packages=packages,
        load_1min=round(os.getloadavg()[0], 2),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class CpuClock:
    """Started when made; `read` gives what was used since."""

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._begin = self._now()

    def read(self) -> CpuUse:
        """CPU use since the clock was made."""
        then, now = self._begin, self._now()
        wall_s, client_s = now[0] - then[0], now[1] - then[1]
        server_s = None if now[2] is None or then[2] is None else max(0.0, now[2] - then[2])
        machine_s = None if now[3] is None or then[3] is None else now[3] - then[3]
        if server_s is None or machine_s is None:
            return CpuUse(wall_s, client_s, server_s, machine_s, None, None)
        # The kernel's clocks tick in 10 ms: small differences may come out negative.
        other_s = max(0.0, machine_s - client_s - server_s)
        is_clean = other_s <= CLEAN_SHARE * wall_s * _num_cores()
        return CpuUse(wall_s, client_s, server_s, machine_s, other_s, is_clean)

    def _now(self) -> tuple[float, float, float | None, float | None]:
        server_s = None if self._server_pid is None else cpu_of_tree_s(self._server_pid)
        return time.perf_counter(), time.process_time(), server_s, _machine_busy_s()


def _machine_busy_s() -> float | None:
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _iowait, irq, softirq = (int(value) for value in stat.readline().split()[1:8])
    except OSError:
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_fact(name: str) -> str:
    """What the kernel says of the first core under this name; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
