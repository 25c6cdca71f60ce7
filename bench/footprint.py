"""What a cluster of `pdq serve` takes: memory by process and by kind, and when each part of its start was done.

    python -m bench.footprint [--load w2] [--kills 3] [-- OPTIONS OF PDQ SERVE]

Memory is PSS: a page that n processes map counts 1/n in each, so the sum counts every page once. Knows /proc and the
lines that `pdq serve` writes; knows nothing of what runs in it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from bench.markdown import markdown_table

ROOT = Path(__file__).parents[1]
KINDS = ("packed weights", "KV pools", "code", "own")
LONGEST_START_S = 300.0
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")


@dataclass(frozen=True, slots=True)
class Footprint:
    """One process at one moment."""

    pid: int
    name: str
    pss_bytes: dict[str, int]  # by kind
    cpu_s: float

    @property
    def all_bytes(self) -> int:
        return sum(self.pss_bytes.values())


@dataclass(slots=True)
class Start:
    """What was seen of a start: the event and when, in seconds since `pdq serve` was run."""

    events: list[tuple[str, float]] = field(default_factory=list)
    url: str = ""

    def see(self, line: str, at_s: float) -> bool:
        """Whether this line is the last of the start."""
        ready = re.match(r"(\w+ \d+): .*worker_ready", line)
        if ready:
            self.events.append((f"{ready[1]} ready", at_s))
        elif line.startswith("started "):
            self.events.append(("Redis answers", at_s))
        elif line.startswith("starting "):
            self.events.append(("workers and API ordered", at_s))
        elif line.startswith("pdq is ready"):
            self.events.append(("cluster ready, /health says so", at_s))
        elif line.lstrip().startswith("URL"):
            self.url = line.split()[-1]
            return True
        return False


def kind_of(path: str) -> str:
    """What a mapping of this file is for."""
    if path.endswith(".weights"):
        return "packed weights"
    if path.startswith("/dev/shm/pdq-"):
        return "KV pools"
    return "code" if path.startswith("/") else "own"


def pss_by_kind(smaps: Iterable[str]) -> dict[str, int]:
    """From the lines of /proc/PID/smaps. What a process wrote to of a file's mapping is its own."""
    sizes = dict.fromkeys(KINDS, 0)
    kind = "own"
    for line in smaps:
        mapping = _MAPPING.fullmatch(line.rstrip())
        if mapping:
            kind = kind_of(mapping[1])
        elif line.startswith("Pss:"):
            sizes[kind] += int(line.split()[1]) << 10
        elif line.startswith("Anonymous:") and kind == "code":
            written = int(line.split()[1]) << 10
            sizes["code"] -= min(written, sizes["code"])
            sizes["own"] += written
    return sizes


def footprints(root_pid: int) -> list[Footprint]:
    """The processes of a tree, the root first."""
    children: dict[int, list[int]] = {}
    cpu_s: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        pid = int(path.parent.name)
        children.setdefault(int(values[1]), []).append(pid)
        cpu_s[pid] = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
    found, waiting = [], [root_pid]
    while waiting:
        pid = waiting.pop(0)
        waiting += children.get(pid, [])
        try:
            smaps = Path(f"/proc/{pid}/smaps").read_text().splitlines()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
        except OSError:
            continue
        found.append(Footprint(pid, name_of(command), pss_by_kind(smaps), cpu_s[pid]))
    return found


def name_of(command: list[str]) -> str:
    """How people call the process that runs this."""
    if "-m" in command:
        module, *arguments = command[command.index("-m") + 1 :]
        return arguments[0] if module == "cli" and arguments else module.rpartition(".")[2]
    return Path(command[0].split()[0]).name if command and command[0] else "?"


def memory_table(processes: list[Footprint]) -> str:
    """In MB, a line per process and the sum."""

    def row(name: str, sizes: dict[str, int], cpu_s: float) -> list[str]:
        return [
            name,
            *(f"{sizes[kind] / 1e6:.0f}" for kind in KINDS),
            f"{sum(sizes.values()) / 1e6:.0f}",
            f"{cpu_s:.1f}",
        ]

    whole = {kind: sum(process.pss_bytes[kind] for process in processes) for kind in KINDS}
    rows = [row(process.name, process.pss_bytes, process.cpu_s) for process in processes]
    rows.append(row("all", whole, sum(process.cpu_s for process in processes)))
    return markdown_table(["process", *(f"{kind}, MB" for kind in KINDS), "PSS, MB", "CPU, s"], rows)


def start_table(events: list[tuple[str, float]]) -> str:
    """When what was done."""
    return markdown_table(["seconds since the command", "done"], [[f"{at_s:.2f}", event] for event, at_s in events])


def run_serve(options: list[str]) -> tuple["subprocess.Popen[str]", Start]:
    """`pdq serve` with these options, ready; its further lines are read and dropped."""
    command = [sys.executable, "-P", "-m", "cli", "serve", "--port", "0", "--log-level", "info", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began, start = time.monotonic(), Start()
    serve = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert serve.stdout is not None
    said: list[str] = []
    for line in serve.stdout:
        said.append(line)
        if start.see(line.rstrip(), time.monotonic() - began):
            break
        if time.monotonic() - began > LONGEST_START_S:
            serve.kill()
    if not start.url:
        raise SystemExit("".join(said[-20:]) + "\npdq serve did not start")
    Thread(target=_follow, args=(serve.stdout, start, began), daemon=True).start()
    return serve, start


def _follow(lines: Iterator[str], start: Start, began: float) -> None:
    for line in lines:
        start.see(line.rstrip(), time.monotonic() - began)


def restart_s(root_pid: int, start: Start) -> float:
    """Seconds from the SIGKILL of a decode worker until it is ready again."""

    def times_ready() -> int:
        return sum(event == "decode 0 ready" for event, _ in start.events)

    (decode,) = (one for one in footprints(root_pid) if one.name == "decode")
    before, began = times_ready(), time.monotonic()
    os.kill(decode.pid, signal.SIGKILL)
    while times_ready() == before:
        if time.monotonic() - began > LONGEST_START_S:
            raise SystemExit("the killed worker did not come back")
        time.sleep(0.005)
    return time.monotonic() - began


def main() -> None:
    """Start, look, load, look again, stop."""
    parser = argparse.ArgumentParser(prog="python -m bench.footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--load", default="", help="A workload of `pdq bench` to run before the second look, or more.")
    parser.add_argument("--kills", type=int, default=0, help="How often to kill the decode worker.")
    parser.add_argument("--json", type=Path, help="Where to keep the figures.")
    parser.add_argument("options", nargs="*", help="Options of `pdq serve`, behind --.")
    arguments = parser.parse_args()
    serve, start = run_serve(arguments.options)
    num_events = len(start.events)
    try:
        looks = {"after the start": footprints(serve.pid)}
        if arguments.load:
            workload, *more = arguments.load.split()
            bench = [sys.executable, "-P", "-m", "cli", "bench", "--url", start.url, "--workload", workload, *more]
            subprocess.run(bench, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
            looks[f"after {arguments.load}"] = footprints(serve.pid)
        restarts_s = [restart_s(serve.pid, start) for _ in range(arguments.kills)]
    finally:
        serve.send_signal(signal.SIGTERM)
        serve.wait()
    write = sys.stdout.write
    write(start_table(start.events[:num_events]) + "\n")
    if restarts_s:
        said = ", ".join(f"{one:.2f}" for one in restarts_s)
        write(f"\nA killed decode worker was ready again after {said} s.\n")
    for title, processes in looks.items():
        write(f"\nMemory {title}\n\n{memory_table(processes)}\n")
    if arguments.json:
        kept = {
            "start_s": dict(start.events[:num_events]),
            "restarts_s": restarts_s,
            "memory": {
                title: [{"process": one.name, "cpu_s": one.cpu_s, **one.pss_bytes} for one in processes]
                for title, processes in looks.items()
            },
        }
        arguments.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
