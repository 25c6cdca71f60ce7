"""The owner in a process of its own, on real shared memory."""

import random
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from errors import KVTransferFailed
from kv_transfer.copy_runs import BlockCopies
from kv_transfer.receiver import KVReceiver
from kv_transfer.segment import Segment, sweep_segments
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver

NUM_BLOCKS = 64
BLOCK_BYTES = 5003
StartOwner = Callable[..., Any]  # -> OwnerProcess of conftest.py


def empty_pool() -> torch.Tensor:
    return torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8)


class RacingDriver(ShmDriver):
    """Does something in the other process, to the end, before the first byte is copied."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.race: Callable[[], object] | None = None

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        if self.race is not None:
            self.race()
        super().copy(pool, head_bytes, into, copies)


def test_blocks_of_another_process(start_owner: StartOwner, shm_directory: Path) -> None:
    owner = start_owner(max_offers=2)
    driver = RacingDriver(shm_directory)
    receiver = KVReceiver("layout", BLOCK_BYTES, driver)

    # random block tables arrive whole
    chance = random.Random(5)
    for index in range(30):
        sources = chance.sample(range(NUM_BLOCKS), chance.randint(1, NUM_BLOCKS))
        targets = chance.sample(range(NUM_BLOCKS), len(sources))
        pool = empty_pool()
        receiver.pull(owner.offer(f"t{index}", sources, 16), pool, targets)
        expected = empty_pool()
        expected[targets] = owner.contents[sources]
        assert torch.equal(pool, expected)
        assert owner.withdraw(f"t{index}")
        assert not owner.withdraw(f"t{index}")

    # a generation that moved on, before the pull
    handle = owner.offer("a", [1, 2], 32)
    owner.withdraw("a")
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        receiver.pull(handle, empty_pool(), [0, 1])

    # the generations of two standing offers swapped
    first, second = owner.offer("b", [1], 16), owner.offer("c", [2], 16)
    assert first.slot != second.slot
    for one, other in ((first, second), (second, first)):
        swapped = msgspec.structs.replace(one, slot=other.slot, generation=other.generation)
        with pytest.raises(KVTransferFailed, match="not what was offered"):
            receiver.pull(swapped, empty_pool(), [0])
    owner.withdraw("c")

    # withdrawn, written over and offered again between the first check and the copy
    def reuse() -> None:
        owner.withdraw("b")
        owner.overwrite(9)
        owner.offer("d", [1], 16)

    driver.race = reuse
    with pytest.raises(KVTransferFailed, match="withdrawn while it was pulled"):
        receiver.pull(first, empty_pool(), [0])
    driver.race = None

    owner.end()
    assert owner.process.returncode == 0
    assert list(shm_directory.iterdir()) == []
    assert receiver.prune() == 1


def test_a_killed_owner(start_owner: StartOwner, shm_directory: Path) -> None:
    owner = start_owner()
    driver = RacingDriver(shm_directory)
    receiver, late = (KVReceiver("layout", BLOCK_BYTES, driver) for _ in range(2))
    handles = [owner.offer(f"t{index}", [index, index + 1], 32) for index in range(3)]
    withdrawn = owner.offer("t3", [5], 16)
    owner.withdraw("t3")
    receiver.pull(handles[0], empty_pool(), [0, 1])
    assert driver.sweep() == [] and receiver.prune() == 0, "it lives"

    # killed in the very middle of a pull: what it offered cannot be reused any more, so the pull holds
    driver.race = owner.kill
    pool = empty_pool()
    receiver.pull(handles[1], pool, [4, 5])
    driver.race = None
    assert owner.process.returncode == -signal.SIGKILL
    assert torch.equal(pool[4:6], owner.contents[1:3])

    # and so does one that begins afterwards, by the name or by a mapping; a withdrawn one does not
    late.pull(handles[2], empty_pool(), [0, 1])
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        receiver.pull(withdrawn, empty_pool(), [0])
    assert [path.name for path in shm_directory.iterdir()] == [owner.pool], "SIGKILL leaves the name"
    assert driver.sweep() == [owner.pool]
    assert driver.sweep() == []
    assert list(shm_directory.iterdir()) == []
    pool = empty_pool()
    receiver.pull(handles[2], pool, [7, 8])
    assert torch.equal(pool[7:9], owner.contents[2:4])

    # no name and no mapping: gone
    assert (receiver.prune(), late.prune()) == (1, 1)
    for one in (receiver, late):
        with pytest.raises(KVTransferFailed, match="gone"):
            one.pull(handles[2], empty_pool(), [0, 1])

    # the same worker id again is another pool, and the old handle does not fit it
    with KVSender.create("prefill-1", NUM_BLOCKS, BLOCK_BYTES, "layout", 8, driver) as again:
        for handle in handles:
            assert again.offer(handle.transfer_id, handle.block_ids, 32).slot == handle.slot
        assert again.pool != owner.pool
        forged = msgspec.structs.replace(handles[2], pool=again.pool)
        with pytest.raises(KVTransferFailed, match="epoch"):
            receiver.pull(forged, empty_pool(), [0, 1])


def test_a_killed_owner_leaves_dev_shm_as_before_once_it_is_swept(start_owner: StartOwner) -> None:
    worker_id = f"test-{secrets.token_hex(4)}"

    def ours() -> list[str]:
        return [path.name for path in Path("/dev/shm").glob(f"pdq-{worker_id}-*")]

    owner = start_owner(worker_id, directory=None)
    receiver = KVReceiver("layout", BLOCK_BYTES)
    receiver.pull(owner.offer("t", [3], 16), empty_pool(), [0])
    assert ours() == [owner.pool]
    assert owner.pool not in sweep_segments()
    owner.kill()
    sweep_segments()  # another test session on this machine may be the one that does it
    assert ours() == []
    receiver.close()
