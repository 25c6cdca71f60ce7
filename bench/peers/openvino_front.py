"""A thin /v1/completions in front of OpenVINO's continuous batching. Runs in OpenVINO's environment, without pdq.

Takes token ids, streams a chunk per step with text and the count of tokens, and detokenizes as it goes, as a server
does. The engine is a process of its own (`openvino_engine.py`), so parsing and writing never hold up its step.
"""

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

ENGINE = Path(__file__).with_name("openvino_engine.py")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
MAX_LINE_BYTES = 1 << 24


class Front:
    """Requests to the engine, its tokens to the requests."""

    def __init__(self, model: str) -> None:
        self._tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self._numbers = itertools.count()
        self._queues: dict[int, asyncio.Queue[tuple[list[int], bool]]] = {}

    async def run(self, arguments: list[str], port: int) -> None:
        """Until the engine ends."""
        self._engine = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(ENGINE), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        assert self._engine.stdout is not None
        print("ready", (await self._engine.stdout.readline()).decode().strip(), flush=True)
        await asyncio.start_server(self._answer, "127.0.0.1", port, limit=MAX_LINE_BYTES)
        while line := await self._engine.stdout.readline():
            for number, token_ids, is_finished in json.loads(line):
                self._queues[number].put_nowait((token_ids, is_finished))
        raise SystemExit("the engine has ended")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            lengths = [line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:")]
            body = json.loads(await reader.readexactly(int(lengths[0])))
            await self._stream(number, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left; the engine goes on to the end of its answer
        finally:
            writer.close()

    async def _stream(self, number: int, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        queue = self._queues[number] = asyncio.Queue()
        request = {"id": number, "prompt": body["prompt"], "max_tokens": body["max_tokens"]}
        assert self._engine.stdin is not None
        self._engine.stdin.write(json.dumps(request).encode() + b"\n")
        writer.write(HEAD)
        text_of, num_tokens, is_finished = DecodeStream(skip_special_tokens=False), 0, False
        while not is_finished:
            token_ids, is_finished = await queue.get()
            num_tokens += len(token_ids)
            text = "".join(text_of.step(self._tokenizer, token_id) or "" for token_id in token_ids)
            chunk = {
                "object": "text_completion",
                "model": body.get("model"),
                "choices": [{"index": 0, "text": text, "finish_reason": "length" if is_finished else None}],
                "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": num_tokens},
            }
            _write(writer, json.dumps(chunk).encode())
            await writer.drain()
        _write(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        del self._queues[number]


def _write(writer: asyncio.StreamWriter, payload: bytes) -> None:
    data = b"data: " + payload + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


if __name__ == "__main__":
    model, port, *rest = sys.argv[1:]
    asyncio.run(Front(model).run([model, *rest], int(port)))
