"""LightLLM's frames as its server writes them."""

import orjson
import pytest

from bench import lightllm_style
from bench.wire_style import BadFrame, Frame


def test_request_asks_for_an_exact_greedy_answer() -> None:
    body = orjson.loads(lightllm_style.build_request([5, 6, 7], 128))
    assert body == {
        "inputs": [5, 6, 7],
        "parameters": {"max_new_tokens": 128, "do_sample": False, "ignore_eos": True},
    }


def test_token_frame() -> None:
    payload = (
        b'{"token":{"id":3555,"text":" What","logprob":-1.8383,"special":false,"count_output_tokens":1,'
        b'"prompt_tokens":4},"generated_text":null,"finished":false,"finish_reason":null,"details":null}'
    )
    assert lightllm_style.parse_frame(payload) == Frame(output_tokens=1, prompt_tokens=4, text=" What", token_id=3555)


def test_last_frame() -> None:
    payload = b'{"token":{"id":2,"text":"","count_output_tokens":9},"finished":true,"finish_reason":"stop"}'
    assert lightllm_style.parse_frame(payload) == Frame(9, None, "stop", is_end=True, token_id=2)


def test_terminal_frame_without_a_token() -> None:
    payload = b'{"token":null,"finished":true,"finish_reason":"abort"}'
    assert lightllm_style.parse_frame(payload) == Frame(finish_reason="abort", is_end=True)


@pytest.mark.parametrize(
    ("payload", "error"), [(b'{"error":{"message":"gone","code":"x"}}', "gone"), (b'{"error":"gone"}', "gone")]
)
def test_error_frame(payload: bytes, error: str) -> None:
    assert lightllm_style.parse_frame(payload) == Frame(error=error)


@pytest.mark.parametrize("payload", [b"", b"[DONE]", b"{", b"{}", b"3", b"[]", b'{"finished":false,"token":{}}'])
def test_other_bytes_are_bad_frames(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        lightllm_style.parse_frame(payload)
