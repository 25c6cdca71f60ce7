"""A process and its descendants, out of /proc: what processors and memory they take together."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """Of all processes of a tree at one moment."""

    pss_bytes: int  # a page that n processes map counts 1/n in each: shared pages once
    rss_bytes: int  # a page counts in every process that maps it


def ticks_of_tree(root_pid: int) -> dict[int, int]:
    """pid -> clock ticks of the process and of those it has waited for. Empty when `root_pid` is not there."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = path.read_text().rpartition(")")[2].split()  # the name before it may hold blanks
        except OSError:
            continue  # it has ended meanwhile
        pid = int(path.parent.name)
        children.setdefault(int(values[1]), []).append(pid)
        ticks[pid] = sum(int(value) for value in values[11:15])  # utime, stime, cutime, cstime
    found, waiting = {}, [root_pid] if root_pid in ticks else []
    while waiting:
        pid = waiting.pop()
        found[pid] = ticks[pid]
        waiting.extend(children.get(pid, ()))
    return found


def cpu_of_tree_s(root_pid: int) -> float | None:
    """CPU seconds of a process, its descendants and those it has waited for. None when it is not there."""
    ticks = ticks_of_tree(root_pid)
    return sum(ticks.values()) / os.sysconf("SC_CLK_TCK") if ticks else None


def memory_of_tree(root_pid: int) -> TreeMemory | None:
    """None when it is not there or may not be read. Costs the kernel a walk over every page, some 10 ms per GB."""
    pss_bytes, rss_bytes, is_read = 0, 0, False
    for pid in ticks_of_tree(root_pid):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended meanwhile, or is a kernel's leftover without memory
        is_read = True
        sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines[1:])}
        pss_bytes += sizes["Pss"]
        rss_bytes += sizes["Rss"]
    return TreeMemory(pss_bytes, rss_bytes) if is_read else None
