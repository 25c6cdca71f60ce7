"""What goes past the layers arrives as what goes through them: framed for the peer, held back for one that is slow."""

import asyncio
import json
import socket

from api.server import new_server
from broker.choice import Append
from messages.job import Phase
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until

HIGH_WATER_BYTES = 1 << 16  # asyncio's


def request(version: str) -> bytes:
    body = json.dumps({"inputs": "What is AI?", "parameters": {"max_new_tokens": 100}}).encode()
    head = f"POST /generate_stream HTTP/{version}\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def tokens(frames: bytes) -> list[int]:
    events = frames.removesuffix(b"\n\n").split(b"\n\n")
    return [json.loads(event.removeprefix(b"data:"))["token"]["id"] for event in events]


async def publish(cluster: FakeCluster, *steps: list[TokenEvent]) -> None:
    """Take the one job and append each step's events in one call."""
    (entry,) = await cluster.broker.prefill_queue.take("prefill-0", 1, block_ms=5000)
    taken = await cluster.broker.requests.take(entry.job, Phase.PREFILLING)
    assert taken is not None
    index = 0
    for events in steps:
        items = [
            Append(taken.request.request_id, 0, taken.epoch, index + number, event, taken.request.api_id)
            for number, event in enumerate(events)
        ]
        assert all(await cluster.broker.requests.append(items))
        index += len(events)


def test_what_comes_together_goes_in_one_piece_and_the_connection_stays_in_order(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster, cluster.serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("1.1"))
            last = TokenEvent(14, -1.0, FinishReason.LENGTH)
            await publish(cluster, [TokenEvent(10)], [TokenEvent(11), TokenEvent(12), TokenEvent(13)], [last])
            assert b"transfer-encoding: chunked" in (await reader.readuntil(b"\r\n\r\n")).lower()
            chunks = []
            while size := int(await reader.readuntil(b"\r\n"), 16):
                chunks.append(tokens((await reader.readexactly(size + 2)).removesuffix(b"\r\n")))
            assert await reader.readexactly(2) == b"\r\n"
            assert [one for chunk in chunks for one in chunk] == [10, 11, 12, 13, 14]
            # The relay brings the three in one entry; at most what came before or after is with them.
            assert any({11, 12, 13} <= set(chunk) for chunk in chunks), chunks
            writer.write(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n")
            writer.close()

    run(main())


def test_a_client_of_http_1_0_gets_no_chunks(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster, cluster.serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("1.0"))
            last = TokenEvent(12, -1.0, FinishReason.LENGTH)
            await publish(cluster, [TokenEvent(10)], [TokenEvent(11)], [last])
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")  # the end is that of the connection
            assert b"chunked" not in head
            assert tokens(body) == [10, 11, 12]
            writer.close()

    run(main())


def test_a_client_that_does_not_read_is_not_written_to_for_ever(settings: Settings) -> None:
    """What it does not take waits as events, a hundred times smaller than what is made of them."""

    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            server = new_server(cluster.services)
            serving = asyncio.create_task(server.serve())

            async def started() -> bool:
                return server.started

            await until(started)
            listening = server.servers[0].sockets[0]
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # and so each connection's
            port = listening.getsockname()[1]
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=slow, limit=2)
            writer.write(request("1.1"))
            steps = [[TokenEvent(10 + number % 100) for number in range(50)] for _ in range(100)]
            steps[-1][-1] = TokenEvent(10, -1.0, FinishReason.LENGTH)
            publishing = asyncio.create_task(publish(cluster, *steps))

            async def is_paused() -> bool:
                return any(connection.flow.write_paused for connection in server.server_state.connections)  # type: ignore[union-attr]

            await until(is_paused, 20)
            await publishing
            (connection,) = server.server_state.connections
            held_bytes = connection.transport.get_write_buffer_size()
            assert held_bytes < HIGH_WATER_BYTES + 50 * 400
            reader._limit = 1 << 20  # type: ignore[attr-defined]
            received = bytearray()
            while not received.endswith(b"0\r\n\r\n"):
                received += await reader.read(1 << 20)
            assert received.count(b'"count_output_tokens"') == 5000
            assert received.count(b'"finish_reason":"length"') == 1
            writer.close()
            server.should_exit = True
            await serving

    run(main())
