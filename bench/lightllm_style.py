"""LightLLM's /generate_stream as the load generator speaks it: token ids in, one `data:` frame per token out.

This file knows the field names and nothing of HTTP or clocks. It implements `wire_style.WireStyle`.
"""

import orjson

from bench.wire_style import BadFrame, Frame

PATH = "/generate_stream"
ONE_FRAME_PER_TOKEN = True


def build_request(prompt_token_ids: list[int], output_tokens: int) -> bytes:
    """A greedy request for exactly `output_tokens` tokens: the prompt goes as ids, so its length is exact."""
    parameters = {"max_new_tokens": output_tokens, "do_sample": False, "ignore_eos": True}
    return orjson.dumps({"inputs": prompt_token_ids, "parameters": parameters})


def parse_frame(payload: bytes) -> Frame:
    """A token frame, or the error frame {"error": ...} that newer LightLLM and pdq send. Raises BadFrame."""
    try:
        message = orjson.loads(payload)
        if "error" in message:
            error = message["error"]
            return Frame(error=str(error.get("message", error)) if isinstance(error, dict) else str(error))
        is_end = bool(message["finished"])
        finish_reason = str(message["finish_reason"]) if is_end else None
        token = message["token"]
        if token is None:  # a terminal event that carries no token
            return Frame(finish_reason=finish_reason, is_end=is_end)
        count, text = int(token["count_output_tokens"]), str(token.get("text", ""))
        return Frame(count, token.get("prompt_tokens"), finish_reason, is_end, text=text, token_id=token.get("id"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadFrame(f"{type(error).__name__}: {error}") from None
