"""Whether KV gets from every GPU to every GPU, between two processes, by the very code that workers use.

For each GPU an owner process (pool_owner.py) offers a pool on it, and this process pulls it to each GPU: the bytes are
compared, the time taken, and a withdrawn offer must be refused; then half the heads of each block, as a rank of two
pulls them from an owner that has all. By CUDA IPC, or by NCCL where that is asked for; on a
CPU the same goes through shared memory, or Gloo.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import msgspec
import torch

from bench.doctor.check import Finding, Verdict, attempt
from bench.doctor.pool_owner import LAYOUT, Offer, contents, scattered
from errors import KVTransferFailed
from kv_transfer.copy_runs import BlockCut, whole_blocks
from kv_transfer.head_split import HeadSplit
from kv_transfer.local import start_driver
from kv_transfer.network import network_kind, start_pullers
from kv_transfer.receiver import KVReceiver
from kv_transfer.self_test import self_test
from settings.kv import TransferSettings

NUM_BLOCKS = 256
BLOCK_BYTES = 512 << 10  # 16 tokens of 32 KiB, as Llama 3 8B's with 8 heads of 128 in 8 layers
NUM_ROWS, NUM_KV_HEADS = 16, 8  # that a block consists of
NUM_PULLS = 10


def check(
    device: torch.device,
    devices: Sequence[torch.device] | None = None,
    num_blocks: int = NUM_BLOCKS,
    block_bytes: int = BLOCK_BYTES,
    network: Literal["none", "nccl"] = "none",
) -> Iterator[Finding]:
    """The self-test that workers start with on each of `devices` (all GPUs), then a line per ordered pair of them."""
    if devices is None:
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    settings = TransferSettings(network=network)
    if network == "none":
        for one in devices:
            yield from attempt(f"self-test on {one}", partial(_self_test, one))
    for source in devices:
        # NCCL pairs no GPU with itself.
        targets = [one for one in devices if network == "none" or one != source or one.type == "cpu"]
        if targets:
            check_pulls = partial(_pulls_from, source, targets, num_blocks, block_bytes, settings)
            yield from attempt(f"from {source}", check_pulls)
        else:
            yield Finding(f"from {source}", Verdict.WARN, "there is no other GPU to pair with")


def _self_test(device: torch.device) -> Iterator[Finding]:
    driver, place = start_driver(TransferSettings(), device)
    self_test(driver)
    near = f", reads the memory of {len(place.readable)} others" if device.type == "cuda" else ""
    yield Finding(f"self-test on {device}", Verdict.OK, f"{driver.kind} on {place.device}{near}")


def _pulls_from(
    source: torch.device,
    targets: Sequence[torch.device],
    num_blocks: int,
    block_bytes: int,
    settings: TransferSettings,
) -> Iterator[Finding]:
    owner_arguments = [str(source), str(num_blocks), str(block_bytes), settings.network]
    command = [sys.executable, "-m", "bench.doctor.pool_owner", *owner_arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdin is not None and owner.stdout is not None
        said = owner.stdout.readline()
        if not said:
            yield Finding(f"from {source}", Verdict.FAIL, f"the owner process ended with code {owner.wait()}")
            return
        offer = msgspec.json.decode(said, type=Offer)
        receivers = []
        for target in targets:
            subject = f"{source} -> {target}"
            driver, place = start_driver(settings, target)
            if (
                settings.network == "none"
                and target.type == "cuda"
                and offer.export.device not in place.readable | {place.device}
            ):
                remedy = "workers on these two need PDQ_KV_TRANSFER__NETWORK, or other GPUs"
                yield Finding(subject, Verdict.WARN, "no peer access: cuda_ipc cannot carry KV between them", remedy)
                continue
            open_pullers = start_pullers(settings, f"doctor-{target}", driver)
            require = network_kind(settings, target) or driver.kind
            for what, cut in ((subject, whole_blocks(block_bytes)), (f"{subject}, half", _second_half(block_bytes))):
                pullers = open_pullers(LAYOUT, cut)
                receiver = KVReceiver(
                    LAYOUT, block_bytes, driver, network=pullers, place=place, require=require, cut=cut
                )
                receivers.append((what, target, receiver, cut))
                yield from attempt(what, partial(_pull, what, target, receiver, offer, cut))
        owner.stdin.write(b"withdraw\n")
        owner.stdin.flush()
        owner.stdout.readline()
        for what, target, receiver, cut in receivers:
            yield from attempt(what, partial(_pull_withdrawn, what, target, receiver, offer, cut))
            receiver.close()


def _second_half(block_bytes: int) -> BlockCut:
    """What the second of two ranks needs of a block with all heads."""
    split = HeadSplit(NUM_ROWS, NUM_KV_HEADS, block_bytes // (NUM_ROWS * NUM_KV_HEADS))
    ((_, cut),) = split.cuts(source_ranks=1, target_ranks=2, target_rank=1)
    return cut


def _pull(subject: str, target: torch.device, receiver: KVReceiver, offer: Offer, cut: BlockCut) -> Iterator[Finding]:
    num_blocks = len(offer.handle.block_ids)
    into = torch.zeros(num_blocks, cut.target_block_bytes, dtype=torch.uint8, device=target)
    block_ids = scattered(num_blocks, 2)
    _synchronize(target)  # pulls run on a stream of their own
    times_s = []
    for _ in range(NUM_PULLS + 1):
        began_s = time.perf_counter()
        receiver.pull(offer.handle, into, block_ids, offer.export)
        times_s.append(time.perf_counter() - began_s)
    rows = contents(num_blocks, cut.source_block_bytes)[offer.handle.block_ids].view(num_blocks, cut.num_rows, -1)
    expected = rows.narrow(2, cut.source_byte, cut.run_bytes).flatten(1)
    if not torch.equal(into[block_ids].cpu(), expected):
        yield Finding(subject, Verdict.FAIL, "other bytes arrived than were offered")
        return
    median_s = statistics.median(times_s[1:])  # the first maps the pool
    figures = {"gb_s": into.numel() / median_s / 1e9, "median_ms": median_s * 1e3, "first_ms": times_s[0] * 1e3}
    said = (
        f"{into.numel() / 1e6:.0f} MB in {num_blocks} scattered blocks: {figures['gb_s']:.1f} GB/s, "
        f"median {figures['median_ms']:.2f} ms, first {figures['first_ms']:.1f} ms"
    )
    yield Finding(subject, Verdict.OK, said, figures=figures)


def _pull_withdrawn(
    subject: str, target: torch.device, receiver: KVReceiver, offer: Offer, cut: BlockCut
) -> Iterator[Finding]:
    num_blocks = len(offer.handle.block_ids)
    into = torch.zeros(num_blocks, cut.target_block_bytes, dtype=torch.uint8, device=target)
    try:
        receiver.pull(offer.handle, into, range(num_blocks), offer.export)
    except KVTransferFailed:
        return
    yield Finding(subject, Verdict.FAIL, "a withdrawn offer could still be pulled")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
