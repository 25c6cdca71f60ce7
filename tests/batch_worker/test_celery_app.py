"""Celery's address and settings: nothing of it is outside our prefix, and nothing on its wire is a pickle."""

from pathlib import Path

import pytest

from batch_worker.celery_app import configuration, transport_options
from batch_worker.celery_url import celery_broker
from errors import ConfigError
from settings.broker import RedisSettings
from settings.loading import Settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/3", "redis://127.0.0.1:6379/3"),
        ("rediss://bob:p%40ss@host/1", "rediss://bob:p%40ss@host/1"),
        ("unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2"),
        ("redis+sentinel://:pw@a:1,b/mymaster/4", "sentinel://:pw@a:1/4;sentinel://:pw@b:26379/4"),
    ],
)
def test_the_address_is_written_as_celery_reads_it(url: str, expected: str) -> None:
    written, options = celery_broker(RedisSettings(url=url))
    assert written == expected
    assert options.get("master_name") == ("mymaster" if "sentinel" in url else None)


def test_user_and_password_of_the_settings_win(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p/w\n")
    settings = RedisSettings(url="redis://host/0", username="batch", password_file=tmp_path / "password")
    assert celery_broker(settings)[0] == "redis://batch:p%2Fw@host/0"


def test_a_redis_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match="need one Redis"):
        celery_broker(RedisSettings(url="redis+cluster://a:1,b:2"))


def test_json_and_our_prefix_only() -> None:
    settings = Settings(redis=RedisSettings(key_prefix="blue"))
    said = configuration(settings)
    assert (said["task_serializer"], said["accept_content"], said["result_backend"]) == ("json", ["json"], None)
    assert not said["worker_enable_remote_control"]
    assert transport_options(settings)["global_keyprefix"].startswith("{blue}:batches:celery:")
