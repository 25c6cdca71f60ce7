"""What is counted as what, and that a real cluster's footprint holds together."""

import os
import subprocess
import sys

from bench.footprint import KINDS, Start, footprints, memory_table, name_of, pss_by_kind
from tests.end_to_end.cluster import ROOT
from tests.tiny_models import tiny_model

SMAPS = """\
7f0000000000-7f0000100000 r--s 00200000 fe:00 16187397                   /home/a b/.cache/pdq/weights/12ab.weights
Rss:                1024 kB
Pss:                 512 kB
Anonymous:             0 kB
7f0000200000-7f0000300000 rw-s 00000000 00:1a 7                          /dev/shm/pdq-prefill-1-2
Pss:                 100 kB
Anonymous:             0 kB
7f0000400000-7f0000500000 rw-p 00000000 fe:00 9                          /usr/lib/libtorch_cpu.so
Pss:                  40 kB
Anonymous:            30 kB
7f0000600000-7f0000700000 rw-p 00000000 00:00 0                          [heap]
Pss:                   8 kB
Anonymous:             8 kB
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
Pss:                   4 kB
Anonymous:             4 kB
""".splitlines()


def test_pages_by_what_they_are_for() -> None:
    in_kb = {kind: size >> 10 for kind, size in pss_by_kind(SMAPS).items()}
    assert in_kb == {"packed weights": 512, "KV pools": 100, "code": 10, "own": 42}


def test_names_are_those_of_the_roles() -> None:
    assert name_of(["/v/bin/python", "-P", "-m", "cli", "decode"]) == "decode"
    assert name_of(["/v/bin/python", "-P", "-m", "cli.nursery", "/tmp/x/nursery.sock"]) == "nursery"
    assert name_of(["/usr/bin/redis-server *:0"]) == "redis-server"


def test_our_own_processes_are_found_whole() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = footprints(os.getpid())
        child.communicate(b"\n")
    assert len(found) >= 2
    # The kernel's own sum, rounded to pages per mapping there and here.
    assert all(0 < one.all_bytes < 4 << 30 for one in found)
    table = memory_table(found)
    assert all(kind in table for kind in KINDS) and table.splitlines()[-1].startswith("| all")


def test_a_start_is_followed_to_its_end() -> None:
    start = Start()
    lines = [
        "model demo",
        "started /usr/bin/redis-server at unix:///x",
        'prefill 0: {"event": "worker_ready"}',
        "pdq is ready after 3.0 s",
        "  URL       http://127.0.0.1:8080",
    ]
    assert [start.see(line, float(at)) for at, line in enumerate(lines)] == [False] * 4 + [True]
    assert start.url == "http://127.0.0.1:8080"
    assert start.events == [("Redis answers", 1), ("prefill 0 ready", 2), ("cluster ready, /health says so", 3)]


def test_it_measures_a_cluster() -> None:
    command = [sys.executable, "-m", "bench.footprint", "--kills", "1", "--", "--model", str(tiny_model("llama").path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    processes = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {"serve", "janitor", "nursery", "api", "prefill", "decode", "all"} <= set(processes)
    assert "ready again after" in done.stdout
    assert "prefill 0 ready" in done.stdout and "/health says so" in done.stdout
