"""A check in a process of its own: one that kills its process, hangs, or leaves a device unusable harms no other.

The child is `python -m bench.doctor TITLE --device DEVICE`; it writes its findings to stdout, a JSON line each.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.doctor.check import Finding, Verdict

_ROOT = Path(__file__).parents[2]
_LOG_LINES = 30  # of what the child wrote to stderr, in the report


def run_in_child(title: str, device: str, time_limit_s: float) -> Iterator[Finding]:
    """The findings of the GPU check `title`."""
    return findings_of([sys.executable, "-m", "bench.doctor", title, "--device", device], title, time_limit_s)


def findings_of(command: Sequence[str], title: str, time_limit_s: float) -> Iterator[Finding]:
    """What the command's process finds, and a FAIL when it does not end by itself, in time and with code 0."""
    # Tests have it set; kernels are to be compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        too_late = threading.Event()

        def end() -> None:
            too_late.set()
            _kill(process)

        timer = threading.Timer(time_limit_s, end)
        timer.start()
        try:
            for line in process.stdout:
                yield msgspec.json.decode(line, type=Finding)
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
        if too_late.is_set():
            said = f"did not end within {time_limit_s:g} s"
        elif code:
            said = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        else:
            return
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        yield Finding(title, Verdict.FAIL, said, detail="\n".join(lines))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group: a check may have children of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
