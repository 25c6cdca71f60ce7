"""Clients on raw sockets that send too much head, or send too slowly: they are bounded, and nobody else notices."""

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run
from tests.api.keys import KeyFile
from tests.api.test_connections import Gate, asking, closed, head

TIMEOUT_S = 0.4


@pytest.fixture
def quick(settings: Settings) -> Settings:
    api = settings.api.model_copy(update={"arrival_timeout_s": TIMEOUT_S, "max_header_bytes": 8192})
    return settings.model_copy(update={"api": api})


async def trickle(port: int, start: bytes, drop: bytes = b"x", deadline_s: float = 5.0) -> tuple[bytes, float]:
    """Sends `start`, then `drop` again and again: what was answered, and after how long the server hung up."""
    began = time.monotonic()  # before the server can know of the connection, from when on it counts
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)

    async def feed() -> None:
        while True:
            await asyncio.sleep(0.02)
            writer.write(drop)

    feeding = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(deadline_s):
            answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await closed(writer)
    return answer, time.monotonic() - began


@pytest.mark.parametrize(
    ("size", "code"), [(7000, b"200"), (9000, b"431"), (30_000, b"431")], ids=["fits", "just above", "far above"]
)
@pytest.mark.parametrize("where", ["one header", "many headers", "target"])
def test_a_large_head_that_comes_in_one_read_is_refused(quick: Settings, size: int, code: bytes, where: str) -> None:
    target, headers = "/health", f"X-Large: {'x' * size}\r\n"
    if where == "many headers":
        headers = "".join(f"X-{number:04}: y\r\n" for number in range(size // 11))
    elif where == "target":
        target, headers = f"/health?{'x' * size}", ""

    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n".encode())
            answer = await reader.read()
            assert answer.split()[1] == code
            if code == b"431":
                assert b"at most 8192 are allowed" in answer
            await closed(writer)

    run(main())


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nX-Slow: ", head("/generate", b" " * 50)[:-9]])
def test_half_a_request_is_answered_with_408(quick: Settings, start: bytes) -> None:
    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            answer, _ = await trickle(port, start, b"")
            assert answer.split()[1] == b"408"
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"message": "the request did not come in time"}

    run(main())


def is_cut_off(answer: bytes) -> bool:
    """Who is still sending when the server hangs up may lose its last answer on the way."""
    return answer == b"" or answer.split()[1] == b"408"


def test_a_head_that_trickles_is_cut_off(quick: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            answer, took_s = await trickle(port, b"GET /health HTTP/1.1\r\nX-Slow: ")
            assert is_cut_off(answer)
            assert TIMEOUT_S <= took_s < TIMEOUT_S + 1

    run(main())


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/tokens"])
def test_a_body_that_trickles_is_cut_off(quick: Settings, path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with fake_cluster(quick) as cluster, cluster.serving() as port:
            start = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n{{".encode()
            answer, took_s = await trickle(port, start, b" ")
            assert is_cut_off(answer)
            assert TIMEOUT_S <= took_s < TIMEOUT_S + 1
            assert cluster.requests == []

    run(main())
    assert "Exception in ASGI application" not in caplog.text


def test_who_says_nothing_is_hung_up_on(quick: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            answer, took_s = await trickle(port, b"", b"")
            assert answer == b"" and took_s < TIMEOUT_S + 1

    run(main())


def test_a_body_that_nobody_reads_does_not_trickle_for_ever(quick: Settings, tmp_path: Path) -> None:
    """The gate has answered long before the body is whole."""
    keys = KeyFile(tmp_path)
    keys.add("alice")

    async def main() -> None:
        async with fake_cluster(keys.settings(quick), takes_jobs=False) as cluster, cluster.serving() as port:
            start = b"POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n"
            _, took_s = await trickle(port, start, b" ")
            assert took_s < TIMEOUT_S + 1

    run(main())


def test_a_second_request_on_a_connection_is_bounded_too(quick: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            answer, took_s = await trickle(port, b"GET /health HTTP/1.1\r\nHost: test\r\n\r\nGET /hea", b"")
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"408"]
            assert took_s < TIMEOUT_S + 1

    run(main())


async def answer_after_the_bound(cluster: FakeCluster, port: int) -> bytes:
    gate = Gate(cluster)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("/generate_stream", asking(), "Connection: close"))
    await reader.readuntil(b"data:")
    await asyncio.sleep(TIMEOUT_S + 0.2)
    gate.opened.set()
    answer = await reader.read()
    await closed(writer)
    return answer


def test_an_answer_may_take_as_long_as_it_takes(quick: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(quick) as cluster, cluster.serving() as port:
            assert b'"finished":true' in await answer_after_the_bound(cluster, port)

    run(main())


def test_requests_in_a_row_each_have_their_time(quick: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(quick, takes_jobs=False) as cluster, cluster.serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(5):
                await asyncio.sleep(TIMEOUT_S / 2)
                writer.write(b"GET /liveness HTTP/1.1\r\nHost: test\r\n\r\n")
                assert b"200" in await reader.readline()
                await reader.readuntil(b'{"status":"ok"}')
            await closed(writer)

    run(main())
