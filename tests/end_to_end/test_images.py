"""Prompts with images through real processes: the text is transformers' own, whatever dies and whoever asked before."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from tokenizers import Tokenizer

from broker.keys import Keys
from messages import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until
from tests.vision_models import picture, transformers_answer, vision_model

MODEL = "smolvlm"
NUM_TOKENS = 40
WIDE, TALL, SMALL = picture(1, 50, 30), picture(2, 20, 45, "RGBA"), picture(3, 9, 9, kind="JPEG")
QUESTION = "User:<image>what is it?<end_of_utterance>\nAssistant:"
TWO = "User:<image> and <image> differ?<end_of_utterance>\nAssistant:"


class Pictures(http.server.BaseHTTPRequestHandler):
    """A web server of one picture."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(TALL)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def picture_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/tall.png"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str, picture_url: str) -> Iterator[Cluster]:
    """1 prefill + 2 decode workers, which would prefill text themselves."""
    env = {
        "PDQ_QUEUE__LEASE_S": "1.0",
        "PDQ_DECODE__LOCAL_PREFILL": "always",
        "PDQ_IMAGES__URL_ALLOW": picture_url,
        "PDQ_PREFILL__TOKEN_BUDGET": "50",  # so that images are cut between steps
    }
    with running_cluster(tmp_path_factory.mktemp("images"), redis_url, vision_model(MODEL), env, decode=2) as running:
        wait_until(lambda: running.num_ready() == 3, 60, "three workers are ready")
        yield running


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def body(text: str, *images: bytes | str, num_tokens: int = NUM_TOKENS) -> dict[str, Any]:
    """LightLLM's, of pictures and URLs of such."""
    given = [
        {"type": "url", "data": image} if isinstance(image, str) else {"type": "base64", "data": encoded(image)}
        for image in images
    ]
    parameters = {"max_new_tokens": num_tokens, "ignore_eos": True, "do_sample": False, "return_details": True}
    return {"inputs": text, "parameters": parameters, "multimodal_params": {"images": given}}


def answer(cluster: Cluster, asked: dict[str, Any]) -> tuple[int, list[int]]:
    """(tokens of the prompt, generated ids)"""
    got = httpx.post(cluster.url + "/generate", json=asked, timeout=60)
    assert got.status_code == 200, got.text
    told = got.json()
    return told["prompt_tokens"], [token["id"] for token in told["tokens"]]


def streamed(cluster: Cluster, asked: dict[str, Any]) -> Iterator[int]:
    with httpx.stream("POST", cluster.url + "/generate_stream", json=asked, timeout=60) as got:
        assert got.status_code == 200, got.read()
        for line in got.iter_lines():
            if line:
                yield json.loads(line.removeprefix("data:"))["token"]["id"]


def expected(text: str, *images: bytes, num_tokens: int = NUM_TOKENS) -> tuple[int, list[int]]:
    prompt, tokens = transformers_answer(vision_model(MODEL), text, list(images), num_tokens)
    return len(prompt), tokens


def keys_of_images(cluster: Cluster) -> list[bytes]:
    with redis.Redis.from_url(cluster.redis_url) as client:
        pattern = Keys(cluster.prefix).images("?").replace("{?}", "*")
        return list(client.scan_iter(match=pattern, count=1000))


def test_the_same_prompt_with_two_pictures_in_turn(pair: Cluster) -> None:
    """The second and the third time blocks of the first are cached, and only those of the same picture are taken."""
    wanted = [expected(QUESTION, image) for image in (WIDE, picture(7, 50, 30))]
    for _ in range(2):
        for image, (num_prompt, tokens) in zip((WIDE, picture(7, 50, 30)), wanted, strict=True):
            assert answer(pair, body(QUESTION, image)) == (num_prompt, tokens)
    assert wanted[0][0] == wanted[1][0] and wanted[0][1] != wanted[1][1]


def test_two_pictures_one_of_them_fetched_as_a_stream(pair: Cluster, picture_url: str) -> None:
    _, tokens = expected(TWO, SMALL, TALL)
    assert list(streamed(pair, body(TWO, SMALL, picture_url))) == tokens


@pytest.mark.parametrize("is_stream", [False, True])
def test_openais_route(pair: Cluster, picture_url: str, is_stream: bool) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(WIDE)}"}},
        {"type": "text", "text": "and"},
        {"type": "image_url", "image_url": {"url": picture_url}},
    ]
    asked = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "stream": is_stream,
        "stream_options": {"include_usage": True} if is_stream else None,
    }
    got = httpx.post(pair.url + "/v1/chat/completions", json=asked, timeout=60)
    assert got.status_code == 200, got.text
    if is_stream:
        chunks = [json.loads(line[6:]) for line in got.text.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
        usage = chunks[-1]["usage"]
    else:
        text, usage = got.json()["choices"][0]["message"]["content"], got.json()["usage"]
    prompt = "<|im_start|>User:<image>and<image><end_of_utterance>\nAssistant:"
    num_prompt, tokens = expected(prompt, WIDE, TALL)
    tokenizer = Tokenizer.from_file(str(vision_model(MODEL) / "tokenizer.json"))
    assert text == tokenizer.decode(tokens, skip_special_tokens=False)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num_prompt, NUM_TOKENS)


def test_text_beside_images(pair: Cluster) -> None:
    """Prompts without images are prefilled by decode workers here, with images by prefill workers."""
    num_prompt, tokens = expected("User: what is AI?", num_tokens=8)
    assert answer(pair, body("User: what is AI?", num_tokens=8)) == (num_prompt, tokens)
    refused = httpx.post(pair.url + "/generate", json=body("<image><image>", SMALL), timeout=60)
    assert refused.status_code == 417 and "2 <image> placeholders for 1 images" in refused.json()["message"]


def test_a_decode_worker_is_killed_mid_stream_and_nothing_is_left(pair: Cluster) -> None:
    """Who goes on computes the prompt again, images and all; their bytes are there until the end and no longer."""
    many = 300
    _, tokens = expected(TWO, WIDE, SMALL, num_tokens=many)
    got: list[int] = []
    for token in streamed(pair, body(TWO, WIDE, SMALL, num_tokens=many)):
        got.append(token)
        if len(got) == 40:
            assert len(keys_of_images(pair)) == 1
            pair.kill(pair.busy_process(Role.DECODE))
    assert got == tokens
    wait_until(lambda: not keys_of_images(pair), 5, "the bytes of the images are gone")
    wait_until(pair.all_blocks_are_free, 5, "nobody holds a block")
