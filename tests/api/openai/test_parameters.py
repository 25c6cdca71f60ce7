"""OpenAI's fields -> our parameters; and what is refused, by the name of its field."""

from collections.abc import Callable
from typing import Any

import pytest

from api.admission import Wanted
from api.errors import BadField
from api.model_facts import GenerationDefaults
from api.openai.parameters import Reading, chat_wanted, completion_wanted
from api.openai.prompts import read_prompts
from api.openai.unsupported import check_supported
from messages.request import Grammar, OutputParams
from settings.api import ApiSettings

LIMITS = ApiSettings()


def completion(**body: Any) -> Wanted:
    return completion_wanted(body, Reading(GenerationDefaults(), LIMITS, 1000, lambda: 42))


def chat(**body: Any) -> Wanted:
    return chat_wanted(body, Reading(GenerationDefaults(), LIMITS, 1000, lambda: 42))


def test_who_says_nothing_is_sampled() -> None:
    wanted = completion()
    assert (wanted.sampling.do_sample, wanted.sampling.temperature, wanted.sampling.top_k) == (True, 1.0, -1)
    assert (wanted.sampling.seed, wanted.sampling.max_new_tokens, wanted.n) == (42, 16, 1)
    assert wanted.answer.route == "v1/completions" and wanted.output == OutputParams()
    assert wanted.sampling.num_prompt_logprobs is None and wanted.sampling.num_top_logprobs == 0
    assert (wanted.add_special_tokens, wanted.fills_context) == (True, False)
    assert (chat().add_special_tokens, chat().fills_context) == (False, True)  # the template writes them


def test_the_models_own_defaults_come_before_openais() -> None:
    defaults = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)
    reading = Reading(defaults, LIMITS, 1000, lambda: 1)
    sampling = chat_wanted({"top_p": 0.5}, reading).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.5, 20)
    assert sampling.repetition_penalty == 1.1
    greedy = chat_wanted({"temperature": 0}, reading).sampling
    assert (greedy.do_sample, greedy.temperature, greedy.top_k) == (False, 1.0, 1)


def test_every_parameter_gets_through() -> None:
    sampling = completion(
        seed=-1,
        temperature=0.5,
        top_p=0.25,
        top_k=0,
        min_p=0.125,
        presence_penalty=-1,
        frequency_penalty=2,
        repetition_penalty=0.5,
        ignore_eos=True,
        max_tokens=9,
        min_tokens=9,
        logit_bias={"5": -100, "6": 1.5},
        logprobs=3,
        echo=True,
    ).sampling
    assert sampling.seed == 2**63 - 1  # none of ours is negative
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, -1, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (-1.0, 2.0, 0.5)
    assert (sampling.ignore_eos, sampling.max_new_tokens) == (True, 9)
    assert sampling.min_new_tokens == 10  # an EOS may be the tenth at the earliest
    assert sampling.logit_bias == {5: -100.0, 6: 1.5}
    assert (sampling.num_top_logprobs, sampling.num_prompt_logprobs) == (3, 3)
    output = completion(
        stop="x", stop_token_ids=[7, 8], include_stop_str_in_output=True, skip_special_tokens=False
    ).output
    assert (output.stop_strings, output.stop_token_ids) == (("x",), ((7,), (8,)))
    assert (output.include_stop, output.skip_special_tokens) == (True, False)


def test_a_chats_own_fields() -> None:
    wanted = chat(max_tokens=5, max_completion_tokens=7, logprobs=True, top_logprobs=20, n=2)
    assert (wanted.sampling.max_new_tokens, wanted.fills_context, wanted.n) == (7, False, 2)
    assert (wanted.answer.num_logprobs, wanted.sampling.num_top_logprobs) == (20, 20)
    assert chat(logprobs=True).answer.num_logprobs == 0
    assert chat(logprobs=False).answer.num_logprobs is None


def test_only_the_prompt_can_be_asked_for() -> None:
    wanted = completion(echo=True, max_tokens=0, logprobs=0)
    assert wanted.answer.drops_output and wanted.sampling.max_new_tokens == 1
    assert wanted.sampling.num_prompt_logprobs == 0
    assert not completion(echo=True, max_tokens=1).answer.drops_output


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": True}),
        ("temperature", {"temperature": 1e39}),
        ("top_p", {"top_p": 0}),
        ("top_p", {"top_p": 1.1}),
        ("top_k", {"top_k": -2}),
        ("top_k", {"top_k": 1.5}),
        ("min_p", {"min_p": 2}),
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("frequency_penalty", {"frequency_penalty": -3}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("n", {"n": 0}),
        ("n", {"n": LIMITS.max_best_of + 1}),
        ("best_of", {"n": 1, "best_of": 2}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 2**40}),
        ("min_tokens", {"max_tokens": 4, "min_tokens": 5}),
        ("logprobs", {"logprobs": LIMITS.max_top_logprobs + 1}),
        ("logprobs", {"logprobs": True}),
        ("logit_bias", {"logit_bias": {"1000": 1}}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("logit_bias", {"logit_bias": [1]}),
        ("seed", {"seed": 2**63}),
        ("seed", {"seed": 0.5}),
        ("stop", {"stop": ["a", 1]}),
        ("stop", {"stop": [""]}),
        ("stop", {"stop": ["a"] * (LIMITS.max_stop_sequences + 1)}),
        ("stop", {"stop": "a" * (LIMITS.max_stop_tokens + 1)}),
        ("stop_token_ids", {"stop_token_ids": ["a"]}),
        ("stream", {"stream": 1}),
        ("echo", {"echo": "true"}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("include_usage", {"stream": True, "stream_options": {"include_usage": 1}}),
    ],
)
def test_what_is_out_of_bounds_is_named(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(BadField, match=param) as refused:
        completion(**body)
    assert refused.value.param == param


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(BadField, match="logprobs to be true"):
        chat(top_logprobs=2)
    with pytest.raises(BadField, match=r"top_logprobs must be in \[0, 20\]"):
        chat(logprobs=True, top_logprobs=21)


@pytest.mark.parametrize(
    "body",
    [
        {"functions": [{}]},
        {"suffix": "x"},
        {"modalities": ["audio"]},
        {"use_beam_search": True},
        {"chat_template": "{{ x }}"},
    ],
    ids=lambda body: next(iter(body)),
)
def test_what_would_change_the_answer_and_is_not_there_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadField) as refused:
        check_supported(body, is_chat=True)
    assert refused.value.param == next(iter(body))


@pytest.mark.parametrize("body", [{"tools": [{"type": "function"}]}, {"tool_choice": "required"}])
def test_tools_are_for_chats(body: dict[str, Any]) -> None:
    check_supported(body, is_chat=True)
    with pytest.raises(BadField, match="is for /v1/chat/completions"):
        check_supported(body, is_chat=False)


@pytest.mark.parametrize("wanted", [completion, chat])
def test_the_form_of_the_output_is_a_grammar(wanted: Callable[..., Wanted]) -> None:
    assert wanted().sampling.grammar is None
    assert wanted(response_format={"type": "text"}).sampling.grammar is None
    assert wanted(response_format={"type": "json_object"}).sampling.grammar == Grammar("json_object")
    assert wanted(structured_outputs={"regex": "a+"}).sampling.grammar == Grammar("regex", "a+")
    for name, body in (("response_format", {"type": "yaml"}), ("guided_regex", 5)):
        with pytest.raises(BadField, match=name) as refused:
            wanted(**{name: body})
        assert refused.value.param == name


def test_what_changes_nothing_is_ignored() -> None:
    check_supported(
        {
            "user": "u",
            "store": True,
            "metadata": {"a": "b"},
            "service_tier": "auto",
            "parallel_tool_calls": True,
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "suffix": None,
            "whatever": 1,
        },
        is_chat=False,
    )


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], "b", [2, 3]], [[1], "b", [2, 3]])],
)
def test_prompts_come_in_four_shapes(given: object, prompts: list[object]) -> None:
    assert read_prompts({"prompt": given}, 3) == prompts


@pytest.mark.parametrize("given", [None, 5, [], [[]], ["a", 1], [1, "a"], [[1.5]], {"a": 1}, ["a"] * 4])
def test_other_prompts_are_refused(given: object) -> None:
    with pytest.raises(BadField, match="prompt"):
        read_prompts({"prompt": given}, 3)
