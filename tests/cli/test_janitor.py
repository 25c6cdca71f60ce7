"""The janitor removes what dead owners left, and only once they are dead."""

import subprocess
import sys
from pathlib import Path

from cli.child import ROOT
from cli.janitor import Janitor, is_alive
from kv_transfer.segment import SHM_DIRECTORY, create_segment

OWNER = """
import sys
from kv_transfer.segment import create_segment
segment = create_segment("janitor-test", 4096)
print(segment.name, flush=True)
sys.stdin.read()
"""


def test_segments_of_dead_children_and_the_state_directory_go(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    (state_dir / "redis.log").write_text("a log")
    ours = create_segment("janitor-test-alive", 4096)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as owner:
            assert owner.stdout is not None
            left = SHM_DIRECTORY / owner.stdout.readline().strip()
            janitor = Janitor(state_dir)
            janitor.note(owner.pid)
            assert left.exists() and is_alive(owner.pid)
            owner.kill()
        # From here on any worker on this machine may sweep it, too: other tests run some.
        assert janitor.finish(timeout_s=20)
        assert not left.exists()
        assert not state_dir.exists()
        assert ours.path.exists()  # its owner, this process, lives
    finally:
        ours.remove()
