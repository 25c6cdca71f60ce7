"""NIXL between real processes: right bytes or a refusal, whatever the owner does, and nothing written late."""

import os
from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch

from errors import KVTransferFailed
from kv_transfer.copy_runs import whole_blocks
from kv_transfer.host_copy import copy_on_host
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.nixl_transport import NixlAddress, NixlPuller
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from kv_transfer.shared_memory import ShmDriver
from tests.kv_transfer.conftest import OwnerProcess

SHAPE = (64, 5003)
SOURCES, TARGETS = [3, 4, 5, 0, 63, 7], [9, 10, 11, 2, 1, 0]
ELSEWHERE = "another host"

StartOwner = Callable[..., OwnerProcess]


@pytest.fixture(scope="module")
def agent() -> Iterator[NixlAgent]:
    """Over TCP, as between hosts without RDMA: UCX would take a way that two hosts do not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCX_TLS", "tcp")
        yield NixlAgent(f"receiver-{os.getpid()}")


@pytest.fixture
def puller(agent: NixlAgent) -> Iterator[NixlPuller]:
    # Two blocks per staging buffer, so that every pull takes several reads.
    puller = NixlPuller(
        agent, "layout", whole_blocks(SHAPE[1]), copy_on_host, staging_bytes=2 * SHAPE[1], timeout_s=1.0
    )
    yield puller
    puller.close()


def empty_pool() -> torch.Tensor:
    return torch.zeros(SHAPE, dtype=torch.uint8)


def test_blocks_of_another_host(start_owner: StartOwner, puller: NixlPuller) -> None:
    """Through the receiver, which takes the only way there is to another host."""
    owner = start_owner(shape=SHAPE)
    export = owner.export(ELSEWHERE)
    assert len(export.addresses["nixl"]) < 4096
    receiver = KVReceiver("layout", SHAPE[1], network=[puller], place=Place("here"))
    pool = empty_pool()
    for turn in range(2):
        receiver.pull(owner.offer(f"t{turn}", SOURCES, 90), pool, TARGETS, export)
        assert torch.equal(pool[TARGETS], owner.contents[SOURCES])
        assert not pool[[3, 4, 5, 6, 7, 8, *range(12, 64)]].any()
        pool.zero_()
    count = receiver.counts["nixl"]
    assert (count.pulls, count.num_bytes, count.failures) == (2, 2 * len(SOURCES) * SHAPE[1], 0)
    assert receiver.counts["shared_memory"].pulls == 0


def test_what_is_not_offered_is_refused(start_owner: StartOwner, puller: NixlPuller) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)
    for forged in (
        msgspec.structs.replace(handle, block_ids=SOURCES[::-1]),
        msgspec.structs.replace(handle, generation=handle.generation + 2),
        msgspec.structs.replace(handle, block_ids=[*SOURCES[:-1], 64]),
        *(msgspec.structs.replace(handle, slot=slot) for slot in (8, -1, 1 << 40, (1 << 64) - 1)),
    ):
        with pytest.raises(KVTransferFailed):
            puller.pull(export, forged, empty_pool(), TARGETS)
    owner.withdraw("t")
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        puller.pull(export, handle, empty_pool(), TARGETS)


def test_an_offer_withdrawn_while_it_is_pulled(start_owner: StartOwner, agent: NixlAgent) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)

    def withdrawing(source: torch.Tensor, target: torch.Tensor, runs: object) -> None:
        owner.withdraw("t")

    puller = NixlPuller(agent, "layout", whole_blocks(SHAPE[1]), withdrawing)
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        puller.pull(export, handle, empty_pool(), TARGETS)
    puller.close()


def test_a_bad_address(start_owner: StartOwner, agent: NixlAgent, puller: NixlPuller) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)
    address = msgspec.msgpack.decode(export.addresses["nixl"], type=NixlAddress)
    changed = [
        msgspec.structs.replace(address, agent=address.agent[:40]),
        msgspec.structs.replace(address, head_address=address.head_address + 64),
        msgspec.structs.replace(address, data_bytes=address.data_bytes + 1),
        msgspec.structs.replace(address, version=2),
        msgspec.structs.replace(address, head_address=-1),
        msgspec.structs.replace(address, data_address=1 << 63),
        msgspec.structs.replace(address, device_id=-1),
        msgspec.structs.replace(address, memory="?"),
    ]
    for addresses in ({}, {"nixl": b"?"}, *({"nixl": msgspec.msgpack.encode(one)} for one in changed)):
        with pytest.raises(KVTransferFailed):
            puller.pull(msgspec.structs.replace(export, addresses=addresses), handle, empty_pool(), TARGETS)
    other_layout = NixlPuller(agent, "another", whole_blocks(SHAPE[1]), copy_on_host)
    with pytest.raises(KVTransferFailed, match="another KV layout"):
        other_layout.pull(export, handle, empty_pool(), TARGETS)
    pool = empty_pool()
    puller.pull(export, handle, pool, TARGETS)
    assert torch.equal(pool[TARGETS], owner.contents[SOURCES])


def test_a_killed_owner(start_owner: StartOwner, puller: NixlPuller, driver: ShmDriver) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)
    puller.pull(export, handle, empty_pool(), TARGETS)
    owner.kill()
    driver.sweep()
    with pytest.raises(KVTransferFailed):
        puller.pull(export, handle, empty_pool(), TARGETS)
    # Nobody else is harmed.
    other = start_owner(worker_id="prefill-2", shape=SHAPE)
    pool = empty_pool()
    puller.pull(other.export(ELSEWHERE), other.offer("t", SOURCES, 90), pool, TARGETS)
    assert torch.equal(pool[TARGETS], other.contents[SOURCES])


def test_a_silent_owner_costs_its_time_and_writes_nothing_late(start_owner: StartOwner, agent: NixlAgent) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)
    puller = NixlPuller(
        agent, "layout", whole_blocks(SHAPE[1]), copy_on_host, staging_bytes=2 * SHAPE[1], timeout_s=0.5
    )
    puller.pull(export, handle, empty_pool(), TARGETS)
    owner.stop()
    pool = empty_pool()
    try:
        with pytest.raises(KVTransferFailed, match="did not deliver within 0.5 s"):
            puller.pull(export, handle, pool, TARGETS)
    finally:
        owner.go_on()
    assert owner.withdraw("t")  # it runs again, and what it owed may arrive
    puller.prune()
    assert not pool.any()
    fresh = owner.offer("again", SOURCES, 90)
    puller.pull(export, fresh, pool, TARGETS)
    assert torch.equal(pool[TARGETS], owner.contents[SOURCES])
    puller.close()


def test_a_connection_that_was_lost_is_made_again(
    start_owner: StartOwner, agent: NixlAgent, puller: NixlPuller
) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE), owner.offer("t", SOURCES, 90)
    puller.pull(export, handle, empty_pool(), TARGETS)
    # An export that is wrong does not cut off the owner that it names.
    with pytest.raises(KVTransferFailed, match="epoch"):
        wrong = msgspec.structs.replace(export, pool_epoch=export.pool_epoch + 1)
        puller.pull(wrong, handle, empty_pool(), TARGETS)
    puller.pull(export, handle, empty_pool(), TARGETS)
    agent.disconnect(puller._owners[export.pool, export.pool_epoch].peer)
    with pytest.raises(KVTransferFailed, match="NIXL"):
        puller.pull(export, handle, empty_pool(), TARGETS)
    pool = empty_pool()
    puller.pull(export, handle, pool, TARGETS)
    assert torch.equal(pool[TARGETS], owner.contents[SOURCES])
