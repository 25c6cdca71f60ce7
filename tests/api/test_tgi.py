"""TGI's shape on /generate and /generate_stream, by header and by setting."""

import json
from typing import Any

import pytest

from messages.token_event import FinishReason, PromptLogprob, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import LOGPROB, fake_cluster, run

TGI = {"X-API-Style": "tgi"}
TEXT = " AI refers to"


def test_a_whole_answer_is_a_string_and_its_details_are_asked_for(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            first, *others = cluster.events(cluster.ids(TEXT))
            first = TokenEvent(first.token_id, first.logprob, prompt_logprobs=(PromptLogprob(-3.0),))
            cluster.script = cluster.events_script([first, *others])
            plain = await cluster.post("/generate", {"inputs": "What is"}, headers=TGI)
            assert plain.json() == {"generated_text": TEXT}
            parameters = {"details": True, "decoder_input_details": True, "seed": 3, "best_of": 2, "do_sample": True}
            body = {"inputs": "What is", "parameters": parameters}
            details = (await cluster.post("/generate", body, headers=TGI)).json()["details"]
            assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 3, 3)
            assert [token["text"] for token in details["tokens"]] == [" AI", " refers", " to"]
            assert [(one["text"], one["logprob"]) for one in details["prefill"]] == [("What", None), (" is", -3.0)]
            assert [one["generated_text"] for one in details["best_of_sequences"]] == [TEXT]

    run(main())


@pytest.mark.parametrize(("reason", "eos"), [("eos_token", True), ("stop_sequence", False)])
def test_a_streams_last_event_has_all_of_the_text(settings: Settings, reason: str, eos: bool) -> None:
    async def main() -> None:
        styled = settings.model_copy(update={"api": settings.api.model_copy(update={"style": "tgi"})})
        async with fake_cluster(styled) as cluster:
            ids = cluster.ids(TEXT)
            last = TokenEvent(0, -0.25, FinishReason.STOP)
            cluster.script = cluster.events_script(
                [*(TokenEvent(one, LOGPROB) for one in ids), *([last] if eos else [])]
            )
            parameters = {"stop": [" to"], "max_new_tokens": 9} if not eos else {}
            body: dict[str, Any] = {"inputs": "What", "parameters": parameters}
            stream = (await cluster.post("/generate_stream", body)).text
            *frames, end = (json.loads(line.removeprefix("data:")) for line in stream.split("\n\n") if line)
            assert all(frame["generated_text"] is frame["details"] is None for frame in frames)
            assert frames[0]["token"] == {"id": ids[0], "text": " AI", "logprob": LOGPROB, "special": False}
            assert end["generated_text"] == TEXT  # the sequence it stopped at is part of it
            assert (end["details"]["finish_reason"], end["details"]["input_length"]) == (reason, 1)
            body["parameters"] = {"stop_sequences": [" to"]}
            lightllm = await cluster.post("/generate", body, headers={"X-API-Style": "lightllm"})
            assert lightllm.json()["generated_text"] == [" AI refers"]

    run(main())


def test_tgis_words_mean_what_they_mean_there(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            given: dict[str, Any]
            body: dict[str, Any]
            for given in ({}, {"temperature": 0.5}, {"do_sample": True, "top_k": None}):
                body = {"inputs": "What", "parameters": given}
                assert (await cluster.post("/generate", body, headers=TGI)).status_code == 200
            assert [request.sampling.do_sample for request in cluster.requests] == [False, True, True]
            assert cluster.requests[0].sampling.max_new_tokens == 100
            for given in ({"typical_p": 0.5}, {"truncate": 5}, {"return_full_text": True}):
                body = {"inputs": "What", "parameters": given}
                answer = await cluster.post("/generate", body, headers=TGI)
                assert answer.status_code == 417 and next(iter(given)) in answer.json()["message"]
            unknown = await cluster.post("/generate", body, headers={"X-API-Style": "vllm"})
            assert unknown.status_code == 417 and "lightllm, tgi" in unknown.json()["message"]

    run(main())
