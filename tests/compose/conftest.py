"""The Docker engine that the tests need, and one cluster in it. What is started here is gone afterwards."""

import re
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.cluster import ComposeCluster

NO_ENGINE = 3  # start-engine's exit code
BUILD_TIMEOUT_S = 900


@pytest.fixture(scope="session")
def engine() -> Iterator[dict[str, str]]:
    """Environment variables that lead to a Docker engine with Compose v2; stopped if it was started for us."""
    start = Path(__file__).with_name("start-engine")
    done = subprocess.run([start], capture_output=True, text=True, timeout=600)
    if done.returncode == NO_ENGINE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    exported = dict(re.findall(r"(\w+)=(\S+)", done.stdout))
    stop = exported.pop("ENGINE_STOP", "")
    yield exported
    if stop:
        subprocess.run([stop], check=True, timeout=60)


@pytest.fixture(scope="session")
def cluster(engine: dict[str, str]) -> Iterator[ComposeCluster]:
    """1 prefill + 1 decode worker on the demo model, from an image of the working tree."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = ComposeCluster(f"pdq-test-{uuid.uuid4().hex[:8]}", port, engine)
    cluster.compose("build", timeout_s=BUILD_TIMEOUT_S)
    try:
        cluster.up(prefill=1, decode=1)
        yield cluster
    finally:
        cluster.down()
