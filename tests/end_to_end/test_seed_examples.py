"""The examples of the API that the user asked for, verbatim, against real processes."""

import json

import httpx
import pytest

from tests.end_to_end.cluster import Cluster, wait_until

SEED_BODY = {
    "inputs": "What is AI?",
    "parameters": {"max_new_tokens": 17, "frequency_penalty": 1},
    "multimodal_params": {},
}


@pytest.mark.parametrize(("verb", "path"), [("GET", "/health"), ("HEAD", "/health"), ("GET", "/healthz")])
def test_health_says_ok(demo: Cluster, verb: str, path: str) -> None:
    answer = httpx.request(verb, demo.url + path)
    assert answer.status_code == 200
    if verb == "GET":
        assert answer.json() == {"message": "Ok"}


def test_an_idle_cluster_has_no_load(demo: Cluster) -> None:
    zero = {"current_load": 0.0, "logical_max_load": 0.0, "dynamic_max_load": 0.0}
    wait_until(lambda: httpx.get(demo.url + "/token_load").json() == zero, 2, "token_load reads zero when idle")


def test_generate(demo: Cluster) -> None:
    answer = httpx.post(demo.url + "/generate", json=SEED_BODY, timeout=60)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["generated_text", "count_output_tokens", "finish_reason", "prompt_tokens"]
    assert len(body["generated_text"]) == 1
    assert body["count_output_tokens"] == 17
    assert body["finish_reason"] == "length"
    assert body["prompt_tokens"] == 4


def test_generate_stream(demo: Cluster) -> None:
    whole = httpx.post(demo.url + "/generate", json=SEED_BODY, timeout=60).json()
    answer = httpx.post(demo.url + "/generate_stream", json=SEED_BODY, timeout=60)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("\n\n")
    frames = answer.text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data:{") for frame in frames)
    events = [json.loads(frame.removeprefix("data:")) for frame in frames]
    assert [event["token"]["count_output_tokens"] for event in events] == list(range(1, 18))
    assert [event["finished"] for event in events] == [False] * 16 + [True]
    assert events[-1]["finish_reason"] == "length"
    assert "".join(event["token"]["text"] for event in events) == whole["generated_text"][0]
    assert list(events[0]) == ["token", "generated_text", "finished", "finish_reason", "details"]
    assert list(events[0]["token"]) == ["id", "text", "logprob", "special", "count_output_tokens", "prompt_tokens"]


def test_get_score_needs_a_reward_model(demo: Cluster) -> None:
    answer = httpx.post(demo.url + "/get_score", json={"chat": "Hello", "parameters": {"frequency_penalty": 1}})
    assert answer.status_code == 417
    assert "reward" in answer.json()["message"]


def test_the_demo_model_knows_what_ai_is(demo: Cluster) -> None:
    body = demo.generate("What is AI?", max_new_tokens=16)
    assert (
        "AI refers to machines that can perform tasks that typically require human intelligence"
        in (body["generated_text"][0])
    )


def test_several_choices_differ_by_seed_and_agree_when_repeated(demo: Cluster) -> None:
    ask = {"do_sample": True, "temperature": 1.0, "seed": 7, "best_of": 3, "n": 3, "max_new_tokens": 12}
    first, again = demo.generate("Once upon a time", **ask), demo.generate("Once upon a time", **ask)
    assert first == again
    assert len(set(first["generated_text"])) == 3
    assert first["count_output_tokens"] == [12, 12, 12]
    assert isinstance(first["prompt_tokens"], int)


def test_a_stop_sequence_ends_the_text_before_it(demo: Cluster) -> None:
    body = demo.generate("What is AI?", max_new_tokens=16, stop_sequences=["typically require"])
    assert body["finish_reason"] == "stop"
    assert body["generated_text"][0].endswith("perform tasks that ")
    assert body["count_output_tokens"] < 16
