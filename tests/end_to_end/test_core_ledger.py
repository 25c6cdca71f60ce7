"""What real workers write into the ledger of cores."""

import fcntl
import os
import struct
from pathlib import Path

import pytest

from kernels import cpu_build
from kernels.cores import NUM_SLOTS, SHM_DIRECTORY, SLOT_BYTES
from tests.end_to_end.cluster import running_cluster, wait_until

FLOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length, pid


def computed_ns(pid: int) -> int | None:
    """When this process last computed, as its slot says; None: it has none."""
    for path in SHM_DIRECTORY.glob(f"pdq-cores.{os.getuid()}.*"):
        with path.open("r+b") as ledger:
            for slot in range(NUM_SLOTS):
                asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, slot * SLOT_BYTES, SLOT_BYTES, 0)
                holder = struct.unpack(FLOCK, fcntl.fcntl(ledger, fcntl.F_GETLK, asked))
                if holder[0] != fcntl.F_UNLCK and holder[-1] == pid:
                    (stamp,) = struct.unpack_from("q", path.read_bytes(), slot * SLOT_BYTES)
                    return int(stamp)
    return None


def test_a_prefill_worker_without_prompts_leaves_the_cores_and_a_decode_worker_stamped_its_steps(
    tmp_path: Path, redis_url: str, tiny_dir: Path
) -> None:
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2: nobody keeps a ledger")
    with running_cluster(tmp_path, redis_url, tiny_dir, {}) as running:
        prefill, decode = running.processes["prefill-0"].pid, running.processes["decode-0"].pid
        assert computed_ns(prefill) is not None and computed_ns(decode) is not None
        running.generate([5] * 40, max_new_tokens=8, ignore_eos=True)
        assert computed_ns(decode)
        wait_until(lambda: computed_ns(prefill) == 0, 5, "it has left, and no stamp is waited for to grow old")
