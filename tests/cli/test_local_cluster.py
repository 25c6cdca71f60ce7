"""What `pdq serve` makes before anything of it runs."""

from pathlib import Path

import pytest

from cli.local_cluster import LocalCluster
from settings.kv import TransferSettings
from settings.loading import Settings


def cluster_of(state_dir: Path, settings: Settings, is_redis_given: bool = False) -> LocalCluster:
    cluster = LocalCluster(settings, {}, is_redis_given)
    cluster.state_dir = state_dir
    return cluster


def test_each_run_has_a_secret_of_its_own_that_nobody_else_reads(tmp_path: Path) -> None:
    secrets = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = cluster_of(tmp_path / name, Settings()).make_secret()
        assert path is not None and path.stat().st_mode & 0o777 == 0o600
        secrets.append(path.read_bytes())
    assert len(set(secrets)) == 2 and all(len(secret) == 64 for secret in secrets)


def test_none_is_made_where_one_was_named_or_others_could_not_have_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = Settings(kv_transfer=TransferSettings(secret_file=tmp_path / "mine"))
    assert cluster_of(tmp_path, named).make_secret() is None
    assert cluster_of(tmp_path, Settings(), is_redis_given=True).make_secret() is None
    assert list(tmp_path.iterdir()) == []
    said = "".join(capfd.readouterr())
    assert "KV handles are not authenticated: give all workers one PDQ_KV_TRANSFER__SECRET_FILE" in said
