"""`python -m bench.chaos.handoff_damage --faults 10000`: faults in the handoff, each noticed, or harmless, or wrong.

A fault is noticed when the pull raises KVTransferFailed, which sends the request back to prefill. It is harmless when
the pull ends well and the receiver has the very bytes of its request's KV. Anything else is wrong text. After every
fault a handoff without one has to work, so that "noticed" is not merely "broken". Exits with 1 on a wrong or a broken
one.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.chaos.handoff import NUM_BLOCKS, Handoff
from bench.chaos.handoff_faults import Fault, Scene, faults_of
from errors import KVTransferFailed
from kernels import cpu_build
from kernels.block_sums import CpuBlockSums
from kv_transfer.checksum import BlockSummer
from kv_transfer.segment import SHM_DIRECTORY
from kv_transfer.shared_memory import ShmDriver
from settings.kv import TransportKind
from settings.observability import LogSettings
from telemetry import configure_logging


@dataclass(slots=True)
class Counts:
    """Of one fault."""

    injected: int = 0
    noticed: int = 0
    harmless: int = 0  # nothing raised, and the right bytes
    wrong: int = 0  # nothing raised, and other bytes
    broken: int = 0  # the handoff without a fault that followed did not work

    def plus(self, other: "Counts") -> "Counts":
        """The sum."""
        return Counts(
            self.injected + other.injected,
            self.noticed + other.noticed,
            self.harmless + other.harmless,
            self.wrong + other.wrong,
            self.broken + other.broken,
        )


def damage(
    num_faults: int,
    seed: int,
    transport: TransportKind = "shared_memory",
    on_fault: Callable[[], object] = lambda: None,
) -> dict[str, Counts]:
    """`run` on a handoff of its own by `transport`. `on_fault` is called after each."""
    library = cpu_build.load()
    summer = BlockSummer(None if library is None else CpuBlockSums(library))
    # A directory of its own: workers sweep the common one, and the faults leave there what looks like a dead owner's.
    with tempfile.TemporaryDirectory(prefix="pdq-chaos-", dir=SHM_DIRECTORY) as directory:
        handoff = Handoff(transport, ShmDriver(Path(directory)), summer)
        try:
            return run(num_faults, seed, handoff, on_fault)
        finally:
            handoff.close()


def run(
    num_faults: int, seed: int, handoff: Handoff, on_fault: Callable[[], object] = lambda: None
) -> dict[str, Counts]:
    """That many faults, each kind as often, in an order that the seed decides. Counts by the fault's name."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    faults = faults_of(handoff.kind)
    counts = {fault.__name__: Counts() for fault in faults}
    order = [faults[number % len(faults)] for number in range(num_faults)]
    chance.shuffle(order)
    for fault in order:
        _inject(fault, handoff, chance, counts[fault.__name__])
        on_fault()
    return counts


def _inject(fault: Fault, handoff: Handoff, chance: random.Random, counts: Counts) -> None:
    counts.injected += 1
    scene = _scene(handoff, chance)
    num_blocks = len(scene.block_ids)
    targets = chance.sample(range(NUM_BLOCKS), num_blocks)
    fault(scene)
    try:
        pulled = handoff.take(scene.job, targets, scene.export)
    except KVTransferFailed:
        counts.noticed += 1
    else:
        counts.harmless += torch.equal(pulled, scene.kv)
        counts.wrong += not torch.equal(pulled, scene.kv)
    finally:
        handoff.mischief.clear()
        scene.cleanup()
        handoff.withdraw_all()
    sound = _scene(handoff, chance)
    try:
        pulled = handoff.take(sound.job, list(range(len(sound.block_ids))), sound.export)
        counts.broken += not torch.equal(pulled, sound.kv)
    except KVTransferFailed:
        counts.broken += 1
    handoff.withdraw_all()


def _scene(handoff: Handoff, chance: random.Random) -> Scene:
    block_ids = chance.sample(range(NUM_BLOCKS), chance.randint(2, 7))
    handoff.owner.fill(block_ids)
    return Scene(handoff, chance, handoff.offer(block_ids), handoff.export, handoff.owner.blocks[block_ids].clone())


def print_table(counts: dict[str, Counts]) -> None:
    """A line per fault, and their sum."""
    total = Counts()
    print(f"{'fault':<24}{'injected':>10}{'noticed':>10}{'harmless':>10}{'wrong':>10}{'broken':>10}")
    for name, some in counts.items():
        total = total.plus(some)
        _print_line(name, some)
    _print_line("all", total)


def _print_line(name: str, some: Counts) -> None:
    figures = some.injected, some.noticed, some.harmless, some.wrong, some.broken
    print(f"{name:<24}" + "".join(f"{figure:>10}" for figure in figures))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", choices=["shared_memory", "nixl", "gloo"], default="shared_memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    configure_logging(LogSettings(level="error"))
    began = time.monotonic()
    counts = damage(arguments.faults, arguments.seed, arguments.transport)
    print(f"{arguments.transport}, seed {arguments.seed}, {time.monotonic() - began:.1f} s")
    print_table(dict(sorted(counts.items())))
    sys.exit(any(some.wrong or some.broken for some in counts.values()))


if __name__ == "__main__":
    main()
