"""Clusters for the tests that leave them as they found them; the rest start their own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.model_files import resolve_model
from settings.model import ModelSettings
from tests.end_to_end.cluster import Cluster, running_cluster
from tests.tiny_models import tiny_model


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo model as a Hugging Face directory; fetched and converted the first time."""
    return resolve_model(ModelSettings(), lambda line: None)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32, a few milliseconds a step, that takes long requests."""
    path = tmp_path_factory.mktemp("tiny") / "llama"
    shutil.copytree(tiny_model("llama").path, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, redis_url: str, demo_dir: Path) -> Iterator[Cluster]:
    """1 prefill + 1 decode worker on the demo model. fp32, so that one process computes the very same."""
    folder = tmp_path_factory.mktemp("demo")
    # No early refusal: the rate that prompts of four tokens leave behind says little of what longer ones take.
    env = {"PDQ_MODEL__DTYPE": "float32", "PDQ_QUEUE__TTFT_LIMIT_S": "0"}
    with running_cluster(folder, redis_url, demo_dir, env) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[Cluster]:
    """1 prefill + 1 decode worker on the tiny model."""
    with running_cluster(tmp_path_factory.mktemp("tiny-cluster"), redis_url, tiny_dir, {}) as running:
        yield running
