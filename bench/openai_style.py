"""OpenAI's /v1/completions as the load generator speaks it: token ids (or text) in, chunks out, `[DONE]` at the end.

Where a server says in each chunk how many tokens it has made, tokens are counted by that: vLLM does with
`continuous_usage_stats`, llama.cpp with `timings_per_token`. Others are asked for the usage at the end, which tells
how many had no chunk of their own (`record.py`). Servers ignore fields that they do not know; where one does not,
`extra` takes them out (null). This file knows the field names and nothing of HTTP or clocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.wire_style import BadFrame, Frame

DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class OpenAIStyle:
    """A `wire_style.WireStyle` for one model of a server."""

    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of the body; None removes one
    text_of: Callable[[list[int]], str] | None = None  # for servers that take no token ids
    PATH: str = "/v1/completions"
    ONE_FRAME_PER_TOKEN: bool = False

    def build_request(self, prompt_token_ids: list[int], output_tokens: int) -> bytes:
        """A greedy request for exactly `output_tokens` tokens; llama.cpp's prompt cache is turned off."""
        body = {
            "model": self.model,
            "prompt": prompt_token_ids if self.text_of is None else self.text_of(prompt_token_ids),
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "timings_per_token": True,
            "cache_prompt": False,
            **self.extra,
        }
        return orjson.dumps({name: value for name, value in body.items() if value is not None})

    def parse_frame(self, payload: bytes) -> Frame:
        """A chunk, the usage, `[DONE]`, or an error. Raises BadFrame."""
        if payload == DONE:
            return Frame(is_end=True)
        try:
            message = orjson.loads(payload)
            if message.get("error"):
                error = message["error"]
                return Frame(error=str(error.get("message", error)) if isinstance(error, dict) else str(error))
            usage, timings = message.get("usage") or {}, message.get("timings") or {}
            output_tokens = usage.get("completion_tokens", timings.get("predicted_n"))
            # Text has another length in the server's own tokens than in ours: it is not held against it.
            prompt_tokens = usage.get("prompt_tokens") if self.text_of is None else None
            (choice,) = message["choices"] or [{}]  # the chunk with the usage has none
            finish_reason, text = choice.get("finish_reason"), choice.get("text") or ""
            return Frame(output_tokens, prompt_tokens, finish_reason, text=str(text))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadFrame(f"{type(error).__name__}: {error}") from None
