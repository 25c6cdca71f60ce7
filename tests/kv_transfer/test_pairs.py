"""Process groups of two between real processes: right bytes or a refusal in time, whatever the other end does.

Gloo's; NCCL's are built by the same code and need two GPUs.
"""

import hashlib
import os
import random
import secrets
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest
import torch
from torch.distributed.distributed_c10d import ProcessGroupGloo, Store

from errors import DeviceError, KVTransferFailed
from kv_transfer.copy_runs import BlockCopies, whole_blocks
from kv_transfer.host import routable_address
from kv_transfer.host_copy import copy_on_host
from kv_transfer.offer_check import OfferGone
from kv_transfer.pair_channel import Answer, Hello, PairChannel, Request, StoreEntry
from kv_transfer.pair_exporter import PairAddress, PairExporter
from kv_transfer.pair_group import PairStore, _is_gloo_address
from kv_transfer.pair_puller import PairPuller
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import KVHandle, PoolExport
from tests.end_to_end.cluster import wait_until
from tests.kv_transfer.conftest import OwnerProcess, ScriptProcess

NUM_BLOCKS, BLOCK_BYTES = SHAPE = (64, 5003)
SOURCES, TARGETS = [3, 4, 5, 0, 63, 7], [9, 10, 11, 2, 1, 0]
STAGING_BYTES = 2 * BLOCK_BYTES  # two blocks, so that every pull takes several messages
ELSEWHERE = "another host"

StartOwner = Callable[..., OwnerProcess]
StartPuller = Callable[[], ScriptProcess]


@pytest.fixture
def start_puller() -> Iterator[StartPuller]:
    pullers: list[ScriptProcess] = []

    def start() -> ScriptProcess:
        pullers.append(ScriptProcess("puller_process.py", [*SHAPE, STAGING_BYTES]))
        assert pullers[-1].answer() == "ready"
        return pullers[-1]

    yield start
    for puller in pullers:
        puller.kill()


@contextmanager
def open_puller(
    timeout_s: float = 5.0, copy: Any = copy_on_host, block_bytes: int = BLOCK_BYTES
) -> Iterator[PairPuller]:
    puller = PairPuller("gloo", whole_blocks(block_bytes), copy, staging_bytes=STAGING_BYTES, timeout_s=timeout_s)
    try:
        yield puller
    finally:
        puller.close()


def empty_pool() -> torch.Tensor:
    return torch.zeros(SHAPE, dtype=torch.uint8)


def pool_with(contents: torch.Tensor, sources: Sequence[int], targets: Sequence[int]) -> torch.Tensor:
    pool = empty_pool()
    pool[list(targets)] = contents[list(sources)]
    return pool


def num_sockets() -> int:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(link.is_symlink() and os.readlink(link).startswith("socket:") for link in links)


def num_threads() -> int:
    """Gloo's included."""
    return len(os.listdir("/proc/self/task"))


# --- among processes ------------------------------------------------------------------------------------------------


def test_every_byte_among_four_processes(start_owner: StartOwner, start_puller: StartPuller) -> None:
    """Two owners, and two pullers that ask both of them at the same time; one puller is killed and one stopped."""
    owners = [start_owner(worker_id=f"prefill-{number}", shape=SHAPE, max_offers=64) for number in range(2)]
    exports = [owner.export(ELSEWHERE, "gloo", 1.0) for owner in owners]
    remote = start_puller()
    chance = random.Random(7)
    with open_puller() as puller:
        receiver = KVReceiver("layout", BLOCK_BYTES, network=[puller], place=Place("here"))
        for turn in range(12):
            owner, export = owners[turn % 2], exports[turn % 2]
            sources = chance.sample(range(NUM_BLOCKS), chance.randint(1, NUM_BLOCKS))
            targets = chance.sample(range(NUM_BLOCKS), len(sources))
            handle = owner.offer(f"t{turn}", sources, 90)
            remote.tell("pull", msgspec.to_builtins(export), msgspec.to_builtins(handle), targets)
            pool, wanted = empty_pool(), pool_with(owner.contents, sources, targets)
            receiver.pull(handle, pool, targets, export)
            assert torch.equal(pool, wanted)
            assert remote.answer() == hashlib.sha256(wanted.numpy().tobytes()).hexdigest()
            assert owner.withdraw(f"t{turn}")
        assert receiver.counts["gloo"].pulls == 12 and receiver.counts["gloo"].failures == 0
        assert [owner.num_pairs() for owner in owners] == [2, 2]

        # A puller that is stopped in the middle, and then killed, costs its owner the time limit and others nothing.
        handle = owners[0].offer("t", blocks := list(range(32)), 90)
        wanted = pool_with(owners[0].contents, blocks, blocks)
        job = msgspec.to_builtins(exports[0]), msgspec.to_builtins(handle), blocks
        for end in (signal.SIGCONT, signal.SIGKILL):
            assert remote.ask("stop", *job) == "stops"
            pool = empty_pool()
            receiver.pull(handle, pool, blocks, exports[0])
            assert torch.equal(pool, wanted)
            wait_until(lambda: owners[0].num_pairs() == 1, 3, "its pair has ended")
            os.kill(remote.process.pid, end)
            if end == signal.SIGCONT:
                assert remote.answer() == "failed"
                assert remote.ask("pull", *job) == hashlib.sha256(wanted.numpy().tobytes()).hexdigest()
        wait_until(lambda: owners[1].num_pairs() == 1, 3, "the dead one's idle pair has ended")
    wait_until(lambda: [owner.num_pairs() for owner in owners] == [0, 0], 3, "every pair has ended")


def test_an_owner_that_is_stopped_and_then_killed(start_owner: StartOwner, driver: ShmDriver) -> None:
    owner = start_owner(shape=SHAPE)
    export, handle = owner.export(ELSEWHERE, "gloo", 0.5), owner.offer("t", SOURCES, 90)
    before = num_threads(), num_sockets()

    def fails_within_the_limit(puller: PairPuller) -> None:
        start_s = time.monotonic()
        with pytest.raises(KVTransferFailed):
            puller.pull(export, handle, empty_pool(), TARGETS)
        assert time.monotonic() - start_s < 1.5  # 0.5 s, and what a busy machine adds

    at_first_copy: list[Callable[[], object]] = []

    def copy(source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        if at_first_copy:
            at_first_copy.pop()()
        copy_on_host(source, target, copies)

    with open_puller(0.5, copy) as puller:
        puller.pull(export, handle, empty_pool(), TARGETS)
        time.sleep(0.7)  # idle for longer than every time limit of both ends
        pool = empty_pool()
        puller.pull(export, handle, pool, TARGETS)
        assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))

        owner.stop()
        fails_within_the_limit(puller)  # paired already
        fails_within_the_limit(puller)  # pairing again
        owner.go_on()
        assert not pool[12:].any(), "nothing was written late"
        pool.zero_()
        puller.pull(export, handle, pool, TARGETS)
        assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))

        at_first_copy.append(owner.stop)
        fails_within_the_limit(puller)  # between two messages of blocks
        owner.go_on()
        puller.pull(export, handle, empty_pool(), TARGETS)
        wait_until(lambda: owner.num_pairs() == 1, 3, "the owner has ended the pairs that failed")

        at_first_copy.append(owner.kill)
        fails_within_the_limit(puller)
        fails_within_the_limit(puller)
        assert puller.prune() == 0, "what failed is let go of already"
    assert (num_threads(), num_sockets()) == before
    driver.sweep()


# --- in one process -------------------------------------------------------------------------------------------------


class Owner:
    """A sender and its exporter; `copy` may be replaced to do something while blocks are copied."""

    def __init__(self, driver: ShmDriver, host: str = "127.0.0.1") -> None:
        self.copy = copy_on_host
        self.sender = KVSender.create("prefill-1", *SHAPE, "layout", 8, driver)
        self.sender.buffer.random_()
        self.contents = self.sender.buffer.view(SHAPE)
        self.exporter = PairExporter(
            "gloo",
            self.sender.head[0],
            self.sender.buffer,
            lambda *arguments: self.copy(*arguments),
            host=host,
            staging_bytes=STAGING_BYTES,
            timeout_s=1.0,
        )
        self.export = self.sender.export(ELSEWHERE, addresses={"gloo": self.exporter.address})
        self.address = msgspec.msgpack.decode(self.exporter.address, type=PairAddress)

    def close(self) -> None:
        self.exporter.close()
        self.sender.close()


@pytest.fixture
def owner(driver: ShmDriver) -> Iterator[Owner]:
    before = threading.active_count(), num_sockets()
    owner = Owner(driver)
    yield owner
    owner.close()
    assert threading.active_count() == before[0], "every thread has ended"
    assert num_sockets() == before[1], "every socket is closed"


def address_changed(owner: Owner, **fields: Any) -> PoolExport:
    address = msgspec.structs.replace(owner.address, **fields)
    return msgspec.structs.replace(owner.export, addresses={"gloo": msgspec.msgpack.encode(address)})


def test_what_is_not_offered_is_refused(owner: Owner) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    replace = msgspec.structs.replace
    with open_puller() as puller:
        for forged in (
            replace(handle, block_ids=SOURCES[::-1]),
            replace(handle, generation=handle.generation + 2),
            replace(handle, block_ids=[*SOURCES[:-1], 64]),
            replace(handle, block_ids=[*SOURCES[:-1], -1]),
            replace(handle, slot=8),
            replace(handle, slot=-1),
        ):
            with pytest.raises(OfferGone):
                puller.pull(owner.export, forged, empty_pool(), TARGETS)
        assert owner.exporter.num_pairs == 1, "one pair, which a refusal does not end"
        for forged in (replace(handle, pool_epoch=7), replace(handle, layout_hash="another")):
            with pytest.raises(KVTransferFailed, match="the pool has"):
                puller.pull(owner.export, forged, empty_pool(), TARGETS)
        pool = empty_pool()
        puller.pull(owner.export, handle, pool, TARGETS)
        assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))
        owner.sender.withdraw("t")
        with pytest.raises(OfferGone, match="no longer offered"):
            puller.pull(owner.export, handle, empty_pool(), TARGETS)


@pytest.mark.parametrize("message", [1, 3])
def test_an_offer_withdrawn_while_its_blocks_are_copied(owner: Owner, message: int) -> None:
    """In the first or the last of three messages."""
    handle = owner.sender.offer("t", SOURCES, 90)
    num_copies = 0

    def withdrawing(source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        nonlocal num_copies
        num_copies += 1
        copy_on_host(source, target, copies)
        if num_copies == message:
            owner.sender.withdraw("t")

    owner.copy = withdrawing
    with open_puller() as puller:
        with pytest.raises(OfferGone, match="no longer offered"):
            puller.pull(owner.export, handle, empty_pool(), TARGETS)
        again, pool = owner.sender.offer("again", SOURCES, 90), empty_pool()
        puller.pull(owner.export, again, pool, TARGETS)
        assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))
        assert owner.exporter.num_pairs == 1


def test_a_bad_address(owner: Owner) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    with socket.create_server(("127.0.0.1", 0)) as silent, open_puller(0.2) as puller:
        for export, said in (
            (msgspec.structs.replace(owner.export, addresses={}), "no gloo address"),
            (msgspec.structs.replace(owner.export, addresses={"gloo": b"?"}), "no gloo address"),
            (address_changed(owner, version=2), "version 2 of torch"),
            (address_changed(owner, torch_version="1.0.0"), "of torch 1.0.0, ours is"),
            (address_changed(owner, port=0), "cannot be reached"),
            (address_changed(owner, port=1 << 20), "cannot be reached"),
            (address_changed(owner, host="no.such.host.invalid"), "cannot be reached"),
            (address_changed(owner, host="."), "cannot be reached"),
            (address_changed(owner, token=b""), "has left"),
            (address_changed(owner, port=silent.getsockname()[1]), "said nothing for 0.2 s"),
        ):
            with pytest.raises(KVTransferFailed, match=said):
                puller.pull(export, handle, empty_pool(), TARGETS)
        puller.pull(owner.export, handle, empty_pool(), TARGETS)
    with open_puller(block_bytes=16) as puller, pytest.raises(KVTransferFailed, match="another KV layout"):
        puller.pull(owner.export, handle, empty_pool(), TARGETS)


def frame(message: Any) -> bytes:
    data = msgspec.msgpack.encode(message)
    return struct.pack("!I", len(data)) + data


def gloo_address(host: str, port: int = 1) -> bytes:
    """What a Gloo group of two sets in its store."""
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host)
    return struct.pack("<QQ", 0, 136) + address.ljust(136 + 2 * 8, b"\0")


def test_gloo_connects_to_the_peer_alone(driver: ShmDriver) -> None:
    owner = Owner(driver, host="127.0.0.9")  # of two, Gloo has the one of the higher address connect
    with socket.create_server(("127.0.0.5", 0)) as third:
        with socket.create_connection((owner.address.host, owner.address.port)) as connection:
            connection.sendall(frame(Hello(owner.address.token)))
            connection.sendall(frame(StoreEntry("0/1", gloo_address(*third.getsockname()))))
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
        third.settimeout(0)
        with pytest.raises(BlockingIOError):
            third.accept()
    owner.close()


@pytest.mark.parametrize("host", ["127.0.0.9", "::1"])
def test_pairs_over_other_addresses(driver: ShmDriver, host: str) -> None:
    """A connection to 127.0.0.9 comes from 127.0.0.1, so that the two ends have addresses of their own."""
    owner = Owner(driver, host=host)
    with open_puller() as puller:
        for turn in range(2):
            pool = empty_pool()
            puller.pull(owner.export, owner.sender.offer(f"t{turn}", SOURCES, 90), pool, TARGETS)
            assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))
    owner.close()


# What Gloo of torch 2.13 set at the two ends of a pair between network namespaces: beside the address there is whatever
# lay in its memory.
BETWEEN_HOSTS = {
    "10.77.0.1": "0200000000000000766d8800000000000000020087f30a4d000100000000000000002800000000000000"
    "9059f0f9555500002800000000000000e84ef50d727f00004051b7ea717f0000a275ba0d727f00004075ba0d727f0000"
    "601cbbea717f0000f86ef70d727f0000002841eb4e1b54d1000000000000000080ffffffffffffff0000000000000000"
    "62db57ff717f0000ffffffffffffffff00000000000000000100000000000000",
    "10.77.0.2": "0200000000000000766d88000000000000000200b5f90a4d000200000000000000000000000000000000"
    "d00ea666fe7f0000f86e17cd317f0000400fa666fe7f000000000000000000000ad333cd317f0000006b23cd317f0000"
    "00000000000000000500000000000000008b28677f350b08000000000000000080ffffffffffffff0000000000000000"
    "62db77be317f0000ffffffffffffffff00000000000000000100000000000000",
    "fd00:77::1": "0200000000000000766d88000000000000000a008e6b00000000fd000077000000000000000000000001"
    "000000007e5500002800000000000000e84e15993a7f000000d3d6753a7f0000a275da983a7f00004075da983a7f0000"
    "10cdda753a7f0000f86e17993a7f000000eaf243d15a1fdf000000000000000080ffffffffffffff0000000000000000"
    "62db778a3a7f0000ffffffffffffffff00000000000000000100000000000000",
}


@pytest.mark.parametrize("peer", BETWEEN_HOSTS)
def test_what_gloo_asks_of_its_store_between_hosts(peer: str) -> None:
    """It asks for both ranks' addresses, its own included; a peer can neither have another's nor set ours."""
    sent = {host: bytes.fromhex(data) for host, data in BETWEEN_HOSTS.items()}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = PairChannel.connect("127.0.0.1", listener.getsockname()[1], 5.0)
        channel.peer_address = peer
        store = PairStore(channel, lambda data: _is_gloo_address(data, peer))
        with listener.accept()[0] as connection:
            connection.sendall(frame(StoreEntry("0/1", sent["10.77.0.2"])) + frame(StoreEntry("0/0", sent[peer])))
            store.set("0/1", b"our own")
            assert (store.get("0/0"), store.get("0/1")) == (sent[peer], b"our own")
            for others in sent.keys() - {peer}:
                connection.sendall(frame(StoreEntry(others, sent[others])))
                with pytest.raises(KVTransferFailed, match=f"{peer} set 170 bytes that are no address of its own"):
                    store.get(others)
        channel.close()


def test_a_message_too_long_is_neither_sent_nor_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = PairChannel.connect("127.0.0.1", listener.getsockname()[1], 5.0)
        with pytest.raises(KVTransferFailed, match="at most 1048576 can be sent"):
            channel.send(Hello(bytes(1 << 20)))
        with listener.accept()[0] as peer:
            peer.sendall(struct.pack("!I", (1 << 20) + 1))
            with pytest.raises(KVTransferFailed, match="announces a message of 1048577 bytes"):
                channel.receive(Answer)
        channel.close()


def test_what_nobody_should_send_to_an_owner(owner: Owner) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    hello = frame(Hello(owner.address.token))
    garbage = [
        b"",
        secrets.token_bytes(4000),
        struct.pack("!I", 1 << 31),
        struct.pack("!I", 3) + b"\xc1\xc1\xc1",
        struct.pack("!I", 100) + b"too short",
        frame(Hello(b"guessed")),
        frame(Request(handle, 2)),
        frame({"type": "hello"}),
        hello + frame(Request(handle, 2)),
        hello + frame(Answer()),
        hello + frame(StoreEntry("0/1", b"")),  # Gloo's own look at any of these ends the process
        hello + frame(StoreEntry("0/1", b"\xff" * 170)),
        hello + frame(StoreEntry("0/1", gloo_address("127.0.0.1")[:-1])),
        hello + frame(StoreEntry("0/1", gloo_address("127.0.0.1"))),  # nobody listens there
        hello + frame(StoreEntry("0/1", gloo_address("127.0.0.2"))),
    ]
    with open_puller() as puller:
        puller.pull(owner.export, handle, empty_pool(), TARGETS)
        for data in garbage:
            with socket.create_connection((owner.address.host, owner.address.port)) as connection:
                connection.sendall(data)
                pool = empty_pool()
                puller.pull(owner.export, handle, pool, TARGETS)
                assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))
        wait_until(lambda: owner.exporter.num_pairs == 1, 3, "only the pair that behaves is left")


def test_requests_that_make_no_sense(owner: Owner) -> None:
    """From somebody who has the token and a group."""
    handle = owner.sender.offer("t", SOURCES, 90)
    for max_blocks in (0, -5):
        with open_puller() as puller:
            puller._staging.num_blocks = max_blocks
            with pytest.raises(KVTransferFailed, match=f"a request for {max_blocks} blocks at a time"):
                puller.pull(owner.export, handle, empty_pool(), TARGETS)


@pytest.mark.parametrize(
    "answers",
    [
        [Answer("no")],
        [Answer(), Answer()],
        [Request(KVHandle("", "", "", 0, 0, 0, "", 0, []), 1)],
        [Answer(), StoreEntry("0/0", b""), Hello(b"")],
        [{"type": "answer", "refusal": 7}],
    ],
)
def test_an_owner_that_makes_no_sense(owner: Owner, answers: list[Any]) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    with socket.create_server(("127.0.0.1", 0)) as listener, open_puller(1.0) as puller:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.sendall(frame(answer))
                with suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(KVTransferFailed):
            puller.pull(address_changed(owner, port=listener.getsockname()[1]), handle, empty_pool(), TARGETS)
        server.join()


@pytest.mark.parametrize("max_blocks", [0, -1, 3])
def test_an_owner_that_would_send_more_than_there_is_room_for(owner: Owner, max_blocks: int) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    send = PairChannel.send

    def lying(self: PairChannel, message: Any) -> None:
        is_yes = isinstance(message, Answer) and message.max_blocks > 0
        send(self, msgspec.structs.replace(message, max_blocks=max_blocks) if is_yes else message)

    with pytest.MonkeyPatch.context() as patch, open_puller() as puller:
        patch.setattr(PairChannel, "send", lying)
        with pytest.raises(KVTransferFailed, match=f"its owner sends {max_blocks} blocks at a time"):
            puller.pull(owner.export, handle, empty_pool(), TARGETS)


def test_more_pullers_than_an_owner_takes(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.pair_exporter._MAX_PAIRS", 1)
    handle = owner.sender.offer("t", SOURCES, 90)
    with open_puller() as second:
        with open_puller() as first:
            first.pull(owner.export, handle, empty_pool(), TARGETS)
            with pytest.raises(KVTransferFailed):
                second.pull(owner.export, handle, empty_pool(), TARGETS)
        wait_until(lambda: owner.exporter.num_pairs == 0, 3, "the first has left")
        second.pull(owner.export, handle, empty_pool(), TARGETS)


def test_an_owner_that_closes_and_pullers_that_close(driver: ShmDriver, owner: Owner) -> None:
    other = Owner(driver)
    handle = other.sender.offer("t", SOURCES, 90)
    with open_puller() as puller:
        puller.pull(other.export, handle, empty_pool(), TARGETS)
        puller.pull(owner.export, owner.sender.offer("t", SOURCES, 90), empty_pool(), TARGETS)
        assert puller.prune() == 0
        other.close()
        assert puller.prune() == 1
        with pytest.raises(KVTransferFailed, match="cannot be reached"):
            puller.pull(other.export, handle, empty_pool(), TARGETS)
    with pytest.raises(KVTransferFailed, match="is closed"):
        puller.pull(owner.export, handle, empty_pool(), TARGETS)


def test_a_pair_that_its_owner_has_ended_is_made_again(owner: Owner) -> None:
    handle = owner.sender.offer("t", SOURCES, 90)
    with open_puller() as puller:
        puller.pull(owner.export, handle, empty_pool(), TARGETS)
        for channel in owner.exporter._pairs.values():
            channel.interrupt()
        wait_until(lambda: owner.exporter.num_pairs == 0, 3, "the pair has ended")
        pool = empty_pool()
        puller.pull(owner.export, handle, pool, TARGETS)
        assert torch.equal(pool, pool_with(owner.contents, SOURCES, TARGETS))


def test_pulls_of_several_threads(owner: Owner) -> None:
    handles = [owner.sender.offer(f"t{index}", [index, index + 9], 16) for index in range(6)]
    pools = [empty_pool() for _ in handles]
    with open_puller() as puller:
        threads = [
            threading.Thread(target=puller.pull, args=(owner.export, handle, pool, [0, 1]))
            for handle, pool in zip(handles, pools, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, pool in enumerate(pools):
        assert torch.equal(pool[:2], owner.contents[[index, index + 9]])


def test_an_address_that_is_not_ours_stops_the_start(driver: ShmDriver) -> None:
    with KVSender.create("p", *SHAPE, "layout", 1, driver) as sender:
        for host in ("203.0.113.7", "no.such.host.invalid"):
            with pytest.raises(DeviceError, match=f"cannot listen on PDQ_KV_TRANSFER__ADDRESS, '{host}'"):
                PairExporter("gloo", sender.head[0], sender.buffer, copy_on_host, host=host)


class GlooAsNccl:
    """What we use of torch 2.13's ProcessGroupNCCL, carried out by Gloo."""

    opened: ClassVar[list["GlooAsNccl"]] = []

    class Options:
        def __init__(self) -> None:
            self._timeout = timedelta()
            self.config = SimpleNamespace(blocking=1)
            self.global_ranks_in_group: list[int] = []
            self.group_name = ""

    def __init__(self, store: Store, rank: int, size: int, options: Options) -> None:
        assert options.config.blocking == 0 and options.global_ranks_in_group == [0, 1] and options.group_name
        self.gloo: Any = ProcessGroupGloo(store, rank, size, options._timeout)
        self.is_aborted = False
        self.opened.append(self)

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
        return self.gloo.send(tensors, peer, tag)

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
        return self.gloo.recv(tensors, peer, tag)

    def abort(self) -> None:
        self.is_aborted = True


def test_nccl_by_the_same_code(driver: ShmDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the device: the names are those of torch's stub, which mypy compares."""
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.distributed.ProcessGroupNCCL", GlooAsNccl, raising=False)
    for name in ("ASYNC_ERROR_HANDLING", "ENABLE_MONITORING", "NONBLOCKING_TIMEOUT"):
        monkeypatch.setenv(f"TORCH_NCCL_{name}", "")  # so that what is set below is taken back
        monkeypatch.delenv(f"TORCH_NCCL_{name}")
    with KVSender.create("p", *SHAPE, "layout", 1, driver) as sender:
        sender.buffer.random_()
        exporter = PairExporter("nccl", sender.head[0], sender.buffer, copy_on_host, host="127.0.0.1", timeout_s=3.0)
        puller = PairPuller("nccl", whole_blocks(BLOCK_BYTES), copy_on_host, timeout_s=3.0)
        export = sender.export(ELSEWHERE, addresses={exporter.kind: exporter.address})
        pool = empty_pool()
        puller.pull(export, sender.offer("t", SOURCES, 90), pool, TARGETS)
        assert torch.equal(pool, pool_with(sender.buffer.view(SHAPE), SOURCES, TARGETS))
        # By default a time-out of NCCL's takes the process down, and a peer that stops while connecting is waited for.
        assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
        assert os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] == "3"
        puller.close()
        exporter.close()
    assert [group.is_aborted for group in GlooAsNccl.opened] == [True, True]
    GlooAsNccl.opened.clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has NCCL")
def test_nccl_where_there_is_none_stops_the_start() -> None:
    with pytest.raises(DeviceError, match="has no nccl"):
        PairPuller("nccl", whole_blocks(BLOCK_BYTES), copy_on_host)


def test_the_address_others_reach_us_by_is_one_of_ours() -> None:
    with socket.create_server((routable_address(), 0)):
        pass
