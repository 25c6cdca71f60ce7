"""Every fault in the handoff is noticed, by each transport that a CPU has; and the bench sees it where one is not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.chaos.handoff import Handoff
from bench.chaos.handoff_damage import Counts, run
from kernels import cpu_build
from kernels.block_sums import CpuBlockSums
from kv_transfer.checksum import BlockSummer
from kv_transfer.seal import Seal
from kv_transfer.shared_memory import ShmDriver
from settings.kv import TransportKind
from tests.kv_transfer.test_cuda_ipc import Process

Start = Callable[..., Handoff]
MAY_BE_HARMLESS = {
    "forged_export": {"shared_memory", "cuda_ipc"},
    "late_write": {"gloo"},
    "withdrawn_after_copy": {"gloo"},
}


@pytest.fixture
def start(shm_directory: Path) -> Iterator[Start]:
    handoffs: list[Handoff] = []

    def start_it(kind: TransportKind, summer: BlockSummer | None, seal: Seal | None = None) -> Handoff:
        if kind == "cuda_ipc":
            owner, puller = Process(shm_directory, gpus=(3,)), Process(shm_directory, gpus=(3,))
            handoff = Handoff(kind, owner.driver, summer, owner.device.uuid, receiver_driver=puller.driver)
        else:
            handoff = Handoff(kind, ShmDriver(shm_directory), summer)
        handoff.seal = seal or handoff.seal
        handoffs.append(handoff)
        return handoff

    yield start_it
    for handoff in handoffs:
        handoff.close()


def summer() -> BlockSummer:
    library = cpu_build.load()
    return BlockSummer(None if library is None else CpuBlockSums(library))


@pytest.mark.parametrize(
    ("kind", "num_faults"), [("shared_memory", 300), ("cuda_ipc", 150), ("nixl", 150), ("gloo", 110)]
)
def test_no_fault_becomes_wrong_text(start: Start, kind: TransportKind, num_faults: int) -> None:
    counts = run(num_faults, 7, start(kind, summer()))
    assert sum(some.injected for some in counts.values()) == num_faults
    for fault, some in counts.items():
        assert (some.wrong, some.broken) == (0, 0), fault
        assert some.injected == some.noticed + some.harmless > 0, fault
        assert some.harmless == 0 or kind in MAY_BE_HARMLESS.get(fault, ()), fault


def wrong_ones(counts: dict[str, Counts]) -> set[str]:
    return {fault for fault, some in counts.items() if some.wrong}


@pytest.mark.parametrize("kind", ["shared_memory", "cuda_ipc", "nixl"])
def test_without_the_checksum_bytes_go_wrong(start: Start, kind: TransportKind) -> None:
    counts = run(120, 7, start(kind, None))
    assert wrong_ones(counts) == {"swapped_blocks", "cut_copy", "flipped_byte", "late_write"}


def test_without_the_seal_another_requests_kv_is_pulled(start: Start) -> None:
    counts = run(120, 7, start("shared_memory", summer(), Seal()))
    assert wrong_ones(counts) == {"replayed_handle", "forged_handle"}
