"""A tiny HTTP server that answers /generate_stream as its script says: the load generator's opposite in tests.

It knows sockets and frames, nothing of bench/.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Script:
    """How one request is answered."""

    status: int = 200
    num_tokens: int | None = None  # None: as many as asked for
    counts: list[int] | None = None  # the count of each frame; None: 1, 2, 3, ...
    finish_reason: str = "length"
    prompt_tokens: int | None = None  # None: as many as were sent
    error_after: int | None = None  # an error frame in place of token number `error_after` + 1
    cut_after: int | None = None  # the connection is cut after so many tokens
    hang_after: int | None = None  # nothing more comes after so many tokens, until the client goes away
    has_end_chunk: bool = True
    raw: bytes | None = None  # sent in place of everything


@dataclass
class Server:
    """What the server saw."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0


@asynccontextmanager
async def scripted_server(script: Callable[[int], Script] = lambda index: Script()) -> AsyncIterator[Server]:
    """Serves on a free port; `script(i)` says how the i-th request is answered."""
    seen = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.num_open += 1
        seen.most_open = max(seen.most_open, seen.num_open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(next(line for line in head.split("\r\n") if line.lower().startswith("content-length"))[15:])
            body = json.loads(await reader.readexactly(length))
            seen.heads.append(head)
            seen.bodies.append(body)
            await answer(script(len(seen.bodies) - 1), body, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            seen.num_open -= 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        server.close()
        await server.wait_closed()


async def answer(
    script: Script, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Writes the scripted response."""
    if script.raw is not None:
        writer.write(script.raw)
        await writer.drain()
        return
    if script.status != 200:
        text = json.dumps({"message": "Server is busy"}).encode()
        writer.write(f"HTTP/1.1 {script.status} No\r\ncontent-length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()
        return
    writer.write(HEAD)
    asked = body["parameters"]["max_new_tokens"]
    num_tokens = asked if script.num_tokens is None else script.num_tokens
    counts = script.counts or list(range(1, num_tokens + 1))
    for position, count in enumerate(counts):
        if script.cut_after == position:
            await writer.drain()
            return
        if script.hang_after == position:
            await writer.drain()
            await reader.read()  # until the client closes
            return
        if script.error_after == position:
            write_chunk(writer, b'data:{"error":{"message":"worker failed","code":"stream_error"}}\n\n')
            break
        is_last = position == len(counts) - 1
        frame = {
            "token": {
                "id": 7,
                "text": "x",
                "logprob": -1.0,
                "special": False,
                "count_output_tokens": count,
                "prompt_tokens": script.prompt_tokens or len(body["inputs"]),
            },
            "generated_text": None,
            "finished": is_last,
            "finish_reason": script.finish_reason if is_last else None,
            "details": None,
        }
        write_chunk(writer, b"data:" + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(0)  # so that the client sees several pieces
    if script.has_end_chunk:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """One chunk of the chunked coding."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
