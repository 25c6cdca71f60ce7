"""GPU placement between real containers: each worker has a GPU of its own, one too many waits and says for whom."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import build_fake_nvml
from tests.compose.cluster import ComposeCluster, wait_until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]


@pytest.fixture
def two_gpus(cluster: ComposeCluster, tmp_path: Path) -> Iterator[ComposeCluster]:
    """The cluster with two GPUs that are not there; afterwards it is as before."""
    tmp_path.chmod(0o755)
    build_fake_nvml(tmp_path)
    with cluster.extended("tests/compose/fake-gpus.yaml", FAKE_NVML=str(tmp_path)):
        cluster.up(prefill=1, decode=1)
        yield cluster
    cluster.up(prefill=1, decode=1)


def leased(cluster: ComposeCluster, container: str) -> list[str]:
    """The GPUs that the container's log says it has leased."""
    said = [line for line in cluster.log_of(container).splitlines() if "gpu_leased" in line]
    return re.findall(r"GPU-[0-9-]+", " ".join(said))


def test_a_gpu_each_and_one_too_many_waits(two_gpus: ComposeCluster) -> None:
    cluster = two_gpus
    (prefill,), (first,) = cluster.containers("prefill"), cluster.containers("decode")
    gpus = {prefill: leased(cluster, prefill), first: leased(cluster, first)}
    assert sorted(sum(gpus.values(), [])) == [f"GPU-00000000-0000-0000-0000-{index:012d}" for index in range(2)]

    cluster.compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "prefill=1", "--scale", "decode=2")
    (second,) = set(cluster.containers("decode")) - {first}

    def waiting() -> list[str]:
        return [one["detail"] for one in cluster.workers() if second.startswith(one["host"])]

    wait_until(lambda: any("no free GPU" in detail for detail in waiting()), 60, "the third worker says why it waits")
    (detail,) = waiting()
    assert re.fullmatch(
        r"waiting: no free GPU \(2/2 leased by (prefill|decode)-\w+ on \w+, (prefill|decode)-\w+ on \w+\)", detail
    )
    assert cluster.is_unhealthy(second)

    cluster.docker("kill", first)
    wait_until(lambda: leased(cluster, second) == gpus[first], 60, "the killed worker's GPU goes to the one that waits")
    wait_until(lambda: cluster.num_ready("decode") == 1, 120, "it serves")
    assert cluster.generate("What is AI?", max_new_tokens=4)
