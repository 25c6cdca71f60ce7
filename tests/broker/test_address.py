"""Reading PDQ_REDIS__URL."""

import pytest

from broker.address import MasterAddress, parse_address
from broker.client import display_url
from errors import BrokerError


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://host", "unix:///run/redis.sock"])
def test_what_redis_py_reads_is_left_to_it(url: str) -> None:
    assert parse_address(url) is None


def test_sentinels_a_service_and_a_database() -> None:
    url = "redis+sentinel://user:p%40ss@one:26380,[::1],two/main/3?sentinel_password=s3cret"
    assert parse_address(url) == MasterAddress(
        nodes=(("one", 26380), ("::1", 26379), ("two", 26379)),
        service="main",
        db=3,
        credentials={"username": "user", "password": "p@ss"},
        sentinel_credentials={"password": "s3cret"},
    )
    assert display_url(url) == "redis+sentinel://user:***@one:26380,[::1],two/main/3?sentinel_password=***"


def test_cluster_nodes_take_the_masters_password() -> None:
    assert parse_address("redis+cluster://:p@a:7000,b") == MasterAddress(
        nodes=(("a", 7000), ("b", 6379)), credentials={"password": "p"}
    )


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis+sentinel://one:26379", "names no service"),
        ("redis+sentinel://one:26379/main/x", "'x'"),
        ("redis+sentinel://one:26379/main?pasword=secret", "pasword"),
        ("redis+cluster://u:secret@one:7000/1", "'1'"),
        ("redis+cluster://u:secret@one:port", "'one:port' is no host:port"),
        ("redis+cluster://", "no host:port"),
    ],
)
def test_what_is_wrong_is_named_without_the_password(url: str, word: str) -> None:
    with pytest.raises(BrokerError, match=word) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
