"""`python -m bench.kv_transfer`: how fast offered blocks get from one process to another, by each transport in turn.

The owner is a process of its own. One figure is one pull, checks included; the transports take turns, each with and
without the checksum, so that a drift of the machine meets all of them. What the owner's half of the checksum takes is a
line of its own: a worker takes it while the first token is on its way, and no handoff waits for it.
"""

import argparse
import statistics
import subprocess
import sys
import time

import msgspec
import torch

from kernels import cpu_build
from kernels.block_sums import CpuBlockSums
from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import whole_blocks
from kv_transfer.host import host_id
from kv_transfer.host_copy import copy_on_host
from kv_transfer.mapped_puller import MappedPuller
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.nixl_transport import NixlExporter, NixlPuller
from kv_transfer.pair_exporter import PairExporter
from kv_transfer.pair_puller import PairPuller
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from kv_transfer.transport import Exporter, Puller
from messages.kv_transfer import KVHandle, PoolExport

_LAYOUT = "bench"


class Offer(msgspec.Struct):
    """What the owner process says, as JSON."""

    export: PoolExport
    handle: KVHandle
    sum_s: list[float]  # how long the owner took to sum its blocks, some times


def summer() -> BlockSummer:
    """As a worker's, on by all means."""
    library = cpu_build.load()
    return BlockSummer(None if library is None else CpuBlockSums(library))


def own(num_blocks: int, block_bytes: int) -> None:
    """Be the owner: offer every block, in scattered order, until stdin ends."""
    with KVSender.create("bench-owner", num_blocks, block_bytes, _LAYOUT, 1, summer=summer()) as sender:
        sender.buffer.random_()
        exporters: list[Exporter] = [
            NixlExporter(NixlAgent("bench-owner"), *sender.head, sender.buffer, lambda: True),
            PairExporter("gloo", sender.head[0], sender.buffer, copy_on_host, host="127.0.0.1"),
        ]
        export = sender.export(host_id(), addresses={exporter.kind: exporter.address for exporter in exporters})
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
        sum_s = []
        for _ in range(15):
            start_s = time.perf_counter()
            sender.checksums(order)
            sum_s.append(time.perf_counter() - start_s)
        offer = Offer(export, sender.offer("bench", order, 1), sum_s)
        sys.stdout.write(msgspec.json.encode(offer).decode() + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        for exporter in exporters:
            exporter.close()


def measure(num_blocks: int, block_bytes: int, num_pulls: int) -> None:
    """Print a line per transport: median, least and largest time of a pull, and GB/s at the median."""
    command = [sys.executable, "-m", "bench.kv_transfer", "--own", "--blocks", str(num_blocks)]
    command += ["--block-bytes", str(block_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdin is not None and owner.stdout is not None
        offer = msgspec.json.decode(owner.stdout.readline(), type=Offer)
        cut = whole_blocks(block_bytes)
        agent = NixlAgent("bench-receiver")
        pullers: list[tuple[str, Puller]] = []
        for how, sums in (("", None), (" + checksum", summer())):
            some: list[Puller] = [
                MappedPuller(ShmDriver(), _LAYOUT, cut, summer=sums),
                NixlPuller(agent, _LAYOUT, cut, copy_on_host, summer=sums),
                PairPuller("gloo", cut, copy_on_host, summer=sums),
            ]
            pullers += [(puller.kind + how, puller) for puller in some]
        pullers.sort(key=lambda named: named[0])
        into = torch.zeros(num_blocks, block_bytes, dtype=torch.uint8)
        targets = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(2)).tolist()
        times_s: dict[str, list[float]] = {name: [] for name, _ in pullers}
        for turn in range(num_pulls + 2):
            for name, puller in pullers:
                start_s = time.perf_counter()
                puller.pull(offer.export, offer.handle, into, targets)
                if turn >= 2:  # connecting and first touches are no transfer
                    times_s[name].append(time.perf_counter() - start_s)
        for _, puller in pullers:
            puller.close()
        owner.stdin.close()
    megabytes = num_blocks * block_bytes / 1e6
    print(f"{megabytes:.1f} MB in {num_blocks} blocks, {num_pulls} pulls each")
    for name, times in [*times_s.items(), ("owner's checksum", offer.sum_s)]:
        median = statistics.median(times)
        spread = f"{min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}"
        print(f"{name:<26} {median * 1e3:7.1f} ms ({spread})   {megabytes / median / 1e3:5.2f} GB/s")


def main() -> None:
    """Both shapes unless one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help="blocks per pull; default: 91 of 360 KiB, then 2048 of 16 KiB")
    parser.add_argument("--block-bytes", type=int, default=360 << 10)
    parser.add_argument("--pulls", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.own:
        own(arguments.blocks, arguments.block_bytes)
    elif arguments.blocks:
        measure(arguments.blocks, arguments.block_bytes, arguments.pulls)
    else:
        measure(91, 360 << 10, arguments.pulls)
        measure(2048, 16 << 10, arguments.pulls)


if __name__ == "__main__":
    main()
