"""What `pdq doctor` looks at in the machine itself: processor, huge pages, disk, open files.

Reads /proc and /sys; where they say nothing, nothing is wrong.
"""

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.doctor.check import Finding, Verdict
from bench.machine import read_machine
from settings.loading import Settings

GIB = 1 << 30
LEAST_FREE_BYTES = 2 * GIB  # a converted demo model, its packed weights, kernels, and room to breathe
FILES_BESIDE_STREAMS = 200  # connections to Redis, logs, segments, libraries
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def processor() -> Iterator[Finding]:
    """Which instructions the kernels can use, and how many cores."""
    machine = read_machine()
    features = ", ".join(machine.cpu_features) or "none of those that the kernels use"
    said = f"{machine.cpu_model or platform.machine()}, {machine.num_cores} cores; {features}"
    figures = {"num_cores": float(machine.num_cores)}
    quota = cpu_quota()
    if quota is not None and quota < machine.num_cores:
        whole = max(1, int(quota))
        remedy = (
            f"threads that the quota stops are waited for at every step: set PDQ_DECODE__NUM_THREADS={whole} and "
            f"PDQ_PREFILL__NUM_THREADS={whole}, or give the container more (`--cpus`)"
        )
        yield Finding("processor", Verdict.WARN, f"{said}; a quota of {quota:g} cores", remedy, figures)
    elif platform.machine().lower() in ("x86_64", "amd64") and "avx2" not in machine.cpu_features:
        remedy = "without AVX2 torch's own kernels compute, several times slower: use another machine, or a GPU"
        yield Finding("processor", Verdict.WARN, said, remedy, figures)
    else:
        yield Finding("processor", Verdict.OK, said, figures=figures)


def cpu_quota() -> float | None:
    """Cores that this container may use at once; None where there is no quota."""
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def huge_pages() -> Iterator[Finding]:
    """Whether weights may lie in huge pages."""
    try:
        said = HUGE_PAGES.read_text().strip()
    except OSError:
        yield Finding("huge pages", Verdict.OK, "the system says nothing of them")
        return
    if "[never]" in said:
        remedy = (
            "weights are read page by page of 4 KB, which is slower on a CPU: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
        yield Finding("huge pages", Verdict.WARN, f"transparent huge pages are off: {said}", remedy)
    else:
        yield Finding("huge pages", Verdict.OK, f"transparent huge pages: {said}")


def disk(settings: Settings) -> Iterator[Finding]:
    """Room for models and for what Redis appends."""
    cache_dir = settings.model.cache_dir.expanduser()
    places = {
        str(cache_dir): ("models and packed weights", "set PDQ_MODEL__CACHE_DIR to a larger disk"),
        tempfile.gettempdir(): ("the files of `pdq serve`'s Redis", "set TMPDIR to a larger disk"),
    }
    for place, (content, remedy) in places.items():
        path = Path(place)
        while not path.exists():  # the first start makes it
            path = path.parent
        free = shutil.disk_usage(path).free
        said = f"{place} has {free / GIB:.1f} GiB free for {content}"
        figures = {"free_bytes": float(free)}
        if not os.access(path, os.W_OK):
            yield Finding("disk", Verdict.FAIL, f"{place} cannot be written to, and is for {content}", remedy, figures)
        elif free < LEAST_FREE_BYTES:
            more = f"{LEAST_FREE_BYTES / GIB:.0f} GiB or more are wanted: {remedy}, or make room"
            yield Finding("disk", Verdict.WARN, said, more, figures)
        else:
            yield Finding("disk", Verdict.OK, said, figures=figures)


def open_files(settings: Settings) -> Iterator[Finding]:
    """Whether the API may hold as many connections as requests are let in."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    streams = settings.queue.max_waiting + settings.decode.max_running
    wanted = streams + FILES_BESIDE_STREAMS
    said = f"a process may open {limit:,} files"
    figures = {"open_files": float(limit)}
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        yield Finding("open files", Verdict.OK, f"{said}, for {streams:,} streams at once {wanted:,}", figures=figures)
        return
    raised = f"`ulimit -n {wanted}`" if most in (resource.RLIM_INFINITY,) or most >= wanted else "raise LimitNOFILE"
    remedy = (
        f"{streams:,} streams at once take {wanted:,}, and above the limit clients are not let in: {raised} (in a "
        f"container `--ulimit nofile={wanted}`), or lower PDQ_QUEUE__MAX_WAITING to "
        f"{max(1, limit - FILES_BESIDE_STREAMS - settings.decode.max_running)}"
    )
    yield Finding("open files", Verdict.WARN, said, remedy, figures)
