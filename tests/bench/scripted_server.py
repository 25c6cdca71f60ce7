"""A tiny HTTP server that answers as its script says: the load generator's opposite in tests.

It speaks LightLLM's frames, and OpenAI's chunks to who sends a `prompt`. It knows sockets and nothing of bench/.
`python -m tests.bench.scripted_server PORT` serves the plain script.
"""

import asyncio
import json
import sys
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
    counts_by: str = (
        "usage"  # OpenAI: "usage" or "timings" in each chunk, "end": usage in the last one alone, "nothing"
    )
    tokens_per_chunk: int = 1  # OpenAI


@dataclass
class Server:
    """What the server saw."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0


@asynccontextmanager
async def scripted_server(
    script: Callable[[int], Script] = lambda index: Script(), port: int = 0
) -> AsyncIterator[Server]:
    """Serves, on a free port unless one is named; `script(i)` says how the i-th request is answered."""
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

    server = await asyncio.start_server(serve, "127.0.0.1", port)
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
    if "prompt" in body:
        await answer_in_chunks(script, body, writer)
        return
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


async def answer_in_chunks(script: Script, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """OpenAI's way: chunks with text, the reason in the last of them, perhaps the usage, then [DONE]."""
    asked = body["max_tokens"] if script.num_tokens is None else script.num_tokens
    usage = {"prompt_tokens": script.prompt_tokens or len(body["prompt"]), "completion_tokens": 0}
    for first in range(0, asked, script.tokens_per_chunk):
        number = min(first + script.tokens_per_chunk, asked)
        choice = {"index": 0, "text": "x", "finish_reason": script.finish_reason if number == asked else None}
        chunk: dict[str, Any] = {"choices": [choice]}
        if script.counts_by == "usage":
            chunk["usage"] = usage | {"completion_tokens": number}
        elif script.counts_by == "timings":
            chunk["timings"] = {"predicted_n": number}
        write_chunk(writer, b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(0)
    if script.counts_by != "nothing":
        last = {"choices": [], "usage": usage | {"completion_tokens": asked}}
        write_chunk(writer, b"data: " + json.dumps(last).encode() + b"\n\n")
    write_chunk(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """One chunk of the chunked coding."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def main(port: int) -> None:
    """Until it is killed."""
    async with scripted_server(port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
