"""Leases between true processes: a GPU has one holder, a killed holder has none, several GPUs come together."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.gpu_inventory import Gpu
from cli.gpu_lease import NoFreeGpu, choose, lease_gpus
from errors import ConfigError, DeviceError

HOLDER = """
import sys
from pathlib import Path
from cli.gpu_inventory import Gpu
from cli.gpu_lease import lease_gpus
gpus = [Gpu(f"GPU-{index}", "") for index in range(int(sys.argv[2]))]
print(lease_gpus(gpus, int(sys.argv[3]), 1, Path(sys.argv[1]), sys.argv[4]).uuids, flush=True)
sys.stdin.read()
"""


def node(count: int) -> list[Gpu]:
    return [Gpu(f"GPU-{index}", "") for index in range(count)]


def holder(directory: Path, num_gpus: int, count: int, owner: str) -> subprocess.Popen[str]:
    """A process that holds a lease until it is killed or its stdin ends."""
    command = [sys.executable, "-c", HOLDER, str(directory), str(num_gpus), str(count), owner]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().startswith("['GPU-")
    return process


def test_a_lease_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    first = holder(tmp_path, 2, 1, "prefill-a on host-1")
    mine = lease_gpus(node(2), 1, 1, tmp_path, "decode-b on host-2")
    assert mine.uuids == ["GPU-1"]
    with pytest.raises(NoFreeGpu, match=r"^no free GPU \(2/2 leased by prefill-a on host-1, decode-b on host-2\)$"):
        lease_gpus(node(2), 1, 1, tmp_path, "decode-c")
    first.kill()
    first.communicate()
    assert lease_gpus(node(2), 1, 1, tmp_path, "decode-c").uuids == ["GPU-0"]


def test_released_is_free(tmp_path: Path) -> None:
    lease = lease_gpus(node(1), 1, 1, tmp_path, "a")
    lease.release()
    lease.release()
    assert lease_gpus(node(1), 1, 1, tmp_path, "b").uuids == ["GPU-0"]


def test_all_or_nothing(tmp_path: Path) -> None:
    held = lease_gpus(node(4), 3, 1, tmp_path, "three")
    with pytest.raises(NoFreeGpu, match=r"no 2 free GPUs \(3/4 leased by three, three, three\)"):
        lease_gpus(node(4), 2, 1, tmp_path, "two")
    # What was tried in vain was let go.
    one = lease_gpus(node(4), 1, 1, tmp_path, "one")
    assert {*held.uuids, *one.uuids} == {gpu.uuid for gpu in node(4)}


def test_sharers(tmp_path: Path) -> None:
    leases = [lease_gpus(node(1), 1, 2, tmp_path, name) for name in ("a", "b")]
    assert [lease.uuids for lease in leases] == [["GPU-0"], ["GPU-0"]]
    with pytest.raises(NoFreeGpu, match=r"2/2 leased by a, b"):
        lease_gpus(node(1), 1, 2, tmp_path, "c")


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="wants 4 GPUs, and there are 2"):
        lease_gpus(node(2), 4, 1, tmp_path, "a")


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"PDQ_GPU__LEASE_DIR = .*: (Not a directory|File exists)"):
        lease_gpus(node(1), 1, 1, tmp_path / "file", "a")


@given(st.sets(st.integers(0, 7)), st.integers(1, 4))
def test_the_best_connected_group(free: set[int], count: int) -> None:
    halves = [{f"GPU-{index}" for index in range(first, first + 4)} for first in (0, 4)]
    gpus = [Gpu(f"GPU-{i}", "", frozenset(halves[i // 4] - {f"GPU-{i}"})) for i in sorted(free)]
    chosen = {gpu.uuid for gpu in choose(gpus, count)}
    assert len(chosen) == (count if len(gpus) >= count else 0)
    if any(sum(gpu.uuid in half for gpu in gpus) >= count for half in halves):
        assert any(chosen <= half for half in halves)
