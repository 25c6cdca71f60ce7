"""Every parameter of LightLLM's table: default, value, coercion, range and the exact words of a refusal."""

from typing import Any

import pytest

from api.model_facts import GenerationDefaults
from api.parameters import Parameters, parse_parameters
from errors import InvalidRequest
from messages.request import Grammar, OutputParams, SamplingParams
from settings.api import ApiSettings

VOCAB_SIZE = 1000
SEED = 4711


def parse(defaults: GenerationDefaults | None = None, /, **raw: Any) -> Parameters:
    return parse_parameters(raw, defaults or GenerationDefaults(), ApiSettings(), VOCAB_SIZE, lambda: SEED)


def refusal(**raw: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**raw)
    assert caught.value.status == 417
    return str(caught.value)


def test_defaults_are_lightllms() -> None:
    parsed = parse()
    assert parsed.sampling == SamplingParams(seed=SEED, top_k=1)
    assert parsed.sampling.max_new_tokens == 16
    assert parsed.output == OutputParams()
    assert (parsed.n, parsed.add_special_tokens, parsed.return_details) == (1, True, False)


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        ({"presence_penalty": 1}, "presence_penalty", 1.0),
        ({"frequency_penalty": 0.5}, "frequency_penalty", 0.5),
        ({"repetition_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"exponential_decay_length_penalty": [3, 1.2]}, "exponential_decay_length_penalty", (3, 1.2)),
        ({"exponential_decay_length_penalty": [0, 1]}, "exponential_decay_length_penalty", (0, 1.0)),
        ({"input_penalty": True}, "input_penalty", True),
        ({"ignore_eos": 1}, "ignore_eos", True),
        ({"ignore_eos": "false"}, "ignore_eos", True),  # LightLLM's: any truthy value
        ({"ignore_eos": 0}, "ignore_eos", False),
        ({"max_new_tokens": 7}, "max_new_tokens", 7),
        ({"max_new_tokens": True}, "max_new_tokens", 1),
        ({"min_new_tokens": 16}, "min_new_tokens", 16),
        ({"seed": 5}, "seed", 5),
        ({"seed": 0}, "seed", 0),
        ({"seed": 2**63 - 1}, "seed", 2**63 - 1),
        ({"seed": -1}, "seed", SEED),
        ({"logit_bias": {"3": -100, "4": 1.5}}, "logit_bias", {3: -100.0, 4: 1.5}),
        ({"logit_bias": [[3, 2], [999, 0.5]]}, "logit_bias", {3: 2.0, 999: 0.5}),
        ({"allowed_token_ids": [1, 2, 3]}, "allowed_token_ids", (1, 2, 3)),
        ({"allowed_token_ids": [1, VOCAB_SIZE, -1]}, "allowed_token_ids", (1,)),  # unknown ids are dropped
    ],
)
def test_sampling_field(raw: dict[str, Any], field: str, value: object) -> None:
    parsed = parse(**raw).sampling
    assert getattr(parsed, field) == value
    assert type(getattr(parsed, field)) is type(value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"do_sample": True}, (True, 1.0, 1.0, -1, 0.0)),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40}, (True, 0.7, 0.9, 40, 0.0)),
        ({"do_sample": True, "min_p": 0.05}, (True, 1.0, 1.0, -1, 0.05)),
        ({"do_sample": True, "min_p": 1}, (True, 1.0, 1.0, -1, 1.0)),
        ({"do_sample": True, "temperature": 0, "min_p": 0.5}, (False, 1.0, 1.0, 1, 0.0)),
        ({"do_sample": True, "temperature": 9e-6, "top_k": 0}, (False, 1.0, 1.0, 1, 0.0)),
        ({"do_sample": False, "temperature": -5, "top_p": 7, "top_k": -3, "min_p": 9}, (False, 1.0, 1.0, 1, 0.0)),
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.5}, (False, 1.0, 1.0, 1, 0.0)),
    ],
)
def test_do_sample_rules_over_the_rest(raw: dict[str, Any], expected: tuple[object, ...]) -> None:
    sampling = parse(**raw).sampling
    chosen = sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
    assert chosen == expected


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        ({"stop_sequences": "###"}, "stop_strings", ("###",)),
        ({"stop_sequences": ["a", "", "b"]}, "stop_strings", ("a", "b")),
        ({"stop_sequences": ["a", [1, 2], [], None, 5, ["x"]]}, "stop_token_ids", ((1, 2),)),
        ({"include_stop_str_in_output": True}, "include_stop", True),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"add_spaces_between_special_tokens": False}, "add_spaces_between_special_tokens", False),
        ({"print_eos_token": True}, "print_eos_token", True),
    ],
)
def test_output_field(raw: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse(**raw).output, field) == value


def test_n_is_best_of() -> None:
    assert parse(best_of=3).n == 3
    assert parse(best_of=8, n=8).n == 8
    assert not parse(add_special_tokens=False).add_special_tokens
    assert parse(return_details=True).return_details


def test_null_means_the_default() -> None:
    names = (
        "do_sample temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty ignore_eos "
        "exponential_decay_length_penalty input_penalty max_new_tokens min_new_tokens stop_sequences seed logit_bias "
        "skip_special_tokens add_special_tokens add_spaces_between_special_tokens print_eos_token best_of n "
        "regular_constraint guided_grammar guided_json allowed_token_ids include_stop_str_in_output return_details"
    ).split()
    assert parse(**dict.fromkeys(names)) == parse()


@pytest.mark.parametrize(
    ("raw", "grammar"),
    [
        ({"regular_constraint": "a+"}, Grammar("regex", "a+")),
        ({"guided_grammar": 'root ::= "a"'}, Grammar("ebnf", 'root ::= "a"')),
        ({"guided_json": '{"type": "object"}'}, Grammar("json_schema", '{"type":"object"}')),
        ({"guided_json": {"type": "object"}}, Grammar("json_schema", '{"type":"object"}')),
        ({"regular_constraint": "", "guided_json": None}, None),
    ],
)
def test_grammar(raw: dict[str, Any], grammar: Grammar | None) -> None:
    assert parse(**raw).sampling.grammar == grammar


def test_unknown_names_and_empty_constraints_are_ignored() -> None:
    assert parse(no_such_parameter=1, guided_json="", regular_constraint="", move_kv_to_decode_node=None) == parse()


def test_generation_config_fills_what_is_not_given() -> None:
    defaults = GenerationDefaults(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1
    )
    sampling = parse(defaults).sampling
    assert (sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (True, 0.6, 0.9, 20)
    assert sampling.repetition_penalty == 1.1 and sampling.min_p == 0.1
    assert parse(defaults, temperature=0.3, repetition_penalty=1).sampling.temperature == 0.3
    assert not parse(defaults, do_sample=False).sampling.do_sample


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"best_of": 0}, "need 0 < best_of <= 8, but got 0"),
        ({"best_of": 9}, "need 0 < best_of <= 8, but got 9"),
        ({"n": 2}, "current only supported n == best_of"),
        ({"n": 2, "best_of": 3}, "current only supported n == best_of"),
        ({"presence_penalty": -1}, "presence_penalty must >= 0.0, got -1.0"),
        ({"frequency_penalty": -0.5}, "frequency_penalty must >= 0.0, got -0.5"),
        ({"repetition_penalty": 0.5}, "repetition_penalty must >= 1.0, got 0.5"),
        ({"do_sample": True, "temperature": -1}, "temperature must > 0.0, got -1.0"),
        ({"do_sample": True, "top_p": 0}, "top_p must be in (0.0, 1.0], got 0.0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p must be in (0.0, 1.0], got 1.5"),
        ({"do_sample": True, "min_p": -0.1}, "min_p must be in [0.0, 1.0], got -0.1"),
        ({"do_sample": True, "min_p": 1.5}, "min_p must be in [0.0, 1.0], got 1.5"),
        ({"do_sample": True, "top_k": 0}, "top_k must be -1 (disable), or at least 1, got 0."),
        ({"do_sample": True, "top_k": -2}, "top_k must be -1 (disable), or at least 1, got -2."),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0."),
        ({"min_new_tokens": 0}, "min_new_tokens must be at least 1, got 0."),
        ({"min_new_tokens": 17}, "min_new_tokens must <= max_new_tokens, but got min 17, max 16."),
        ({"stop_sequences": [str(i) for i in range(11)]}, "Too many stop sequence groups."),
        ({"stop_sequences": ["x" * 257]}, "stop token length too long."),
        ({"stop_sequences": [[1] * 257]}, "stop token length too long."),
        (
            {"exponential_decay_length_penalty": [1]},
            "ExponentialDecayLengthPenalty must be Tuple[int, float]",
        ),
        (
            {"exponential_decay_length_penalty": [-1, 1.0]},
            "ExponentialDecayLengthPenalty item0 must be int >= 0",
        ),
        (
            {"exponential_decay_length_penalty": [1, 0.5]},
            "ExponentialDecayLengthPenalty item1 must be a float >= 1.0",
        ),
        ({"allowed_token_ids": [1] * 257}, "Too many allowed token IDs."),
        # Types, in ctypes' words.
        ({"max_new_tokens": 1.5}, "'float' object cannot be interpreted as an integer"),
        ({"max_new_tokens": "3"}, "'str' object cannot be interpreted as an integer"),
        ({"top_k": [1]}, "'list' object cannot be interpreted as an integer"),
        ({"best_of": "1"}, "'str' object cannot be interpreted as an integer"),
        ({"seed": 1.0}, "'float' object cannot be interpreted as an integer"),
        ({"temperature": "0.5"}, "must be real number, not str"),
        ({"top_p": [0.5]}, "must be real number, not list"),
        ({"min_p": "0.5"}, "must be real number, not str"),
        ({"image_max_patch_num": "1"}, "'str' object cannot be interpreted as an integer"),
        ({"exponential_decay_length_penalty": ["1", 1.0]}, "'str' object cannot be interpreted as an integer"),
    ],
)
def test_refusal_text(raw: dict[str, Any], message: str) -> None:
    assert refusal(**raw) == message


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"max_new_tokens": 2**40}, "max_new_tokens"),  # LightLLM wraps it to 0
        ({"top_k": 2**31}, "top_k"),
        ({"min_new_tokens": -(2**40)}, "min_new_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -2}, "seed"),
        ({"temperature": 1e400}, "temperature"),
        # The sampler computes in 32 bits, where these would be infinite.
        ({"do_sample": True, "temperature": 1e39}, "temperature"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"presence_penalty": 10**400}, "presence_penalty"),
        ({"frequency_penalty": 1e300}, "frequency_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"exponential_decay_length_penalty": [1, 1e39]}, "exponential_decay_length_penalty"),
        ({"logit_bias": {"1": -1e39}}, "logit_bias"),
        ({"logit_bias": {"1": float("nan")}}, "logit_bias"),
        ({"stop_sequences": ["x", [1], *("y" * 9)]}, "Too many stop sequence groups."),
        ({"max_new_tokens": 10**400}, "max_new_tokens"),
        ({"best_of": 2**62}, "best_of"),
        ({"exponential_decay_length_penalty": [2**62, 1.0]}, "exponential_decay_length_penalty"),
        ({"logit_bias": {"1000": 1}}, "1000"),
        ({"logit_bias": {"-1": 1}}, "-1"),
        ({"logit_bias": {"x": 1}}, "'x'"),
        ({"logit_bias": {"1": "2"}}, "real number"),
        ({"logit_bias": [[1]]}, "logit_bias"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"logit_bias": {str(i): 0 for i in range(301)}}, "300"),
        ({"allowed_token_ids": [1000]}, "allowed_token_ids"),
        ({"allowed_token_ids": ["1"]}, "allowed_token_ids"),
        ({"allowed_token_ids": [True]}, "allowed_token_ids"),
        ({"allowed_token_ids": 1}, "allowed_token_ids"),
        ({"stop_sequences": 5}, "stop_sequences"),
        ({"exponential_decay_length_penalty": 5}, "ExponentialDecayLengthPenalty"),
        ({"guided_json": "{"}, "guided_json must be a JSON schema"),
        ({"guided_json": "[]"}, "guided_json must be a JSON schema, an object, got list"),
        ({"guided_json": 5}, "guided_json must be a JSON schema, an object, got int"),
        ({"guided_grammar": {}, "regular_constraint": 5}, "regular_constraint must be a string, got int"),
        ({"regular_constraint": "a" * 32769}, "regular_constraint has 32769 bytes, at most 32768 are allowed"),
        ({"regular_constraint": "a", "guided_json": "{}"}, "regular_constraint and guided_json can not be used"),
        ({"regular_constraint": "a", "allowed_token_ids": [1]}, "allowed_token_ids and regular_constraint can not be"),
    ],
)
def test_refused_with_the_name_of_the_culprit(raw: dict[str, Any], word: str) -> None:
    assert word in refusal(**raw)
