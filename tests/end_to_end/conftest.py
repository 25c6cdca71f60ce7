"""One cluster on the demo model in fp32 for the tests that leave it as they found it; the rest start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.model_files import resolve_model
from settings import ModelSettings
from tests.end_to_end.cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo model as a Hugging Face directory; fetched and converted the first time."""
    return resolve_model(ModelSettings(), lambda line: None)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis_url: str, demo_dir: Path) -> Iterator[Cluster]:
    """1 prefill + 1 decode worker. fp32, so that what is recomputed elsewhere is equal and not merely close."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, redis_url, demo_dir, {"PDQ_MODEL__DTYPE": "float32"}) as running:
        yield running
