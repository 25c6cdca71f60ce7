"""Which transports are tried for whom, best first."""

import msgspec
import pytest

from kv_transfer.selection import Place, transports
from messages.kv_transfer import PoolExport

ALL = {"cuda_ipc", "shared_memory", "nixl", "nccl", "gloo"}
GPU_A, GPU_B, GPU_C = "GPU-a", "GPU-b", "GPU-c"
ON_CPU = PoolExport("prefill-1", "pdq-x", 1, "host-1", "cpu", 64, 8, {"nixl": b"n", "gloo": b"g"})
ON_GPU = msgspec.structs.replace(ON_CPU, device=GPU_A, addresses={"nccl": b"c", "nixl": b"n"})


@pytest.mark.parametrize(
    ("place", "export", "wanted"),
    [
        (Place("host-1"), ON_CPU, ["shared_memory", "nixl", "gloo"]),
        (Place("host-2"), ON_CPU, ["nixl", "gloo"]),
        (Place("host-1", GPU_A), ON_GPU, ["cuda_ipc", "nixl", "nccl"]),  # the very GPU
        (Place("host-1", GPU_B, frozenset({GPU_A})), ON_GPU, ["cuda_ipc", "nixl", "nccl"]),  # peer access
        (Place("host-1", GPU_B, frozenset({GPU_C})), ON_GPU, ["nixl", "nccl"]),
        (Place("host-2", GPU_B, frozenset({GPU_A})), ON_GPU, ["nixl", "nccl"]),  # a UUID says nothing across hosts
        (Place("host-1", GPU_B), ON_CPU, ["shared_memory", "nixl", "gloo"]),
        (Place("host-2"), msgspec.structs.replace(ON_CPU, addresses={}), []),
    ],
)
def test_the_order(place: Place, export: PoolExport, wanted: list[str]) -> None:
    assert transports(place, export, ALL) == wanted
    assert transports(place, export, ALL - {"nixl"}) == [kind for kind in wanted if kind != "nixl"]
    for kind in ALL:
        assert transports(place, export, ALL, require=kind) == [one for one in wanted if one == kind]
