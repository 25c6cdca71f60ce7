"""A request's `parameters` object -> SamplingParams and OutputParams, with LightLLM's names, defaults and words.

Pure: the seed is drawn by the caller. Unknown keys are ignored, as LightLLM does; `null` means the default, where
LightLLM fails; an int out of range is refused, where LightLLM wraps it around. `min_p` LightLLM has not: an id may be
drawn while its probability is at least `min_p` of the largest; 0.0, the default, is no limit. `prompt_logprobs` is what
later versions of LightLLM call it: -1, the default, lists none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from api.coercion import MAX_INT32, to_float, to_int, to_token_ids
from api.guided import PARAMETERS, grammar_of_parameters
from api.model_facts import GenerationDefaults
from errors import InvalidRequest
from messages.request import OutputParams, SamplingParams
from settings.api import ApiSettings

GREEDY_TEMPERATURE = 1e-5  # below it sampling is the argmax
IGNORED_INTS = ("image_max_patch_num", "suggested_dp_index")  # checked for their type, as LightLLM does
MAX_SEED = 2**63 - 1

Raw = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Parameters:
    """A request's parameters, checked."""

    sampling: SamplingParams
    output: OutputParams
    n: int
    add_special_tokens: bool
    return_details: bool


def parse_parameters(
    raw: Raw, defaults: GenerationDefaults, limits: ApiSettings, vocab_size: int, draw_seed: Callable[[], int]
) -> Parameters:
    """The checked parameters. Raises InvalidRequest with LightLLM's text. `draw_seed` is asked when none is given."""
    given = {name: value for name, value in raw.items() if value is not None}
    for name in IGNORED_INTS:
        to_int(name, given.get(name, -1))
    stop_strings, stop_token_ids = _stop_sequences(given.get("stop_sequences", []), limits)
    output = OutputParams(
        stop_strings=stop_strings,
        stop_token_ids=stop_token_ids,
        include_stop=bool(given.get("include_stop_str_in_output", False)),
        skip_special_tokens=bool(given.get("skip_special_tokens", True)),
        add_spaces_between_special_tokens=bool(given.get("add_spaces_between_special_tokens", True)),
        print_eos_token=bool(given.get("print_eos_token", False)),
    )
    best_of = to_int("best_of", given.get("best_of", 1))
    n = to_int("n", given.get("n", best_of))
    if not 0 < best_of <= limits.max_best_of:
        raise InvalidRequest(f"need 0 < best_of <= {limits.max_best_of}, but got {best_of}")
    if n != best_of:
        raise InvalidRequest("current only supported n == best_of")
    return Parameters(
        sampling=_sampling(given, defaults, limits, vocab_size, draw_seed),
        output=output,
        n=n,
        add_special_tokens=bool(given.get("add_special_tokens", True)),
        return_details=bool(given.get("return_details", False)),
    )


def _sampling(
    given: Raw, defaults: GenerationDefaults, limits: ApiSettings, vocab_size: int, draw_seed: Callable[[], int]
) -> SamplingParams:
    presence_penalty = to_float("presence_penalty", given.get("presence_penalty", defaults.presence_penalty))
    frequency_penalty = to_float("frequency_penalty", given.get("frequency_penalty", defaults.frequency_penalty))
    repetition_penalty = to_float("repetition_penalty", given.get("repetition_penalty", defaults.repetition_penalty))
    if presence_penalty < 0.0:
        raise InvalidRequest(f"presence_penalty must >= 0.0, got {presence_penalty}")
    if frequency_penalty < 0.0:
        raise InvalidRequest(f"frequency_penalty must >= 0.0, got {frequency_penalty}")
    if repetition_penalty < 1.0:
        raise InvalidRequest(f"repetition_penalty must >= 1.0, got {repetition_penalty}")
    do_sample, temperature, top_p, top_k, min_p = _randomness(given, defaults)
    max_new_tokens = to_int("max_new_tokens", given.get("max_new_tokens", 16))
    min_new_tokens = to_int("min_new_tokens", given.get("min_new_tokens", 1))
    if max_new_tokens < 1:
        raise InvalidRequest(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if min_new_tokens < 1:
        raise InvalidRequest(f"min_new_tokens must be at least 1, got {min_new_tokens}.")
    if min_new_tokens > max_new_tokens:
        raise InvalidRequest(
            f"min_new_tokens must <= max_new_tokens, but got min {min_new_tokens}, max {max_new_tokens}."
        )
    allowed_token_ids = _allowed_token_ids(given.get("allowed_token_ids", []), limits, vocab_size)
    grammar = grammar_of_parameters(given, limits.max_grammar_bytes)
    if allowed_token_ids and grammar is not None:
        name = next(name for name in PARAMETERS if given.get(name))
        raise InvalidRequest(f"allowed_token_ids and {name} can not be used in same time")
    seed = to_int("seed", given.get("seed", -1), -1, MAX_SEED)
    return SamplingParams(
        seed=draw_seed() if seed == -1 else seed,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        exponential_decay_length_penalty=_length_penalty(given.get("exponential_decay_length_penalty", [1, 1.0])),
        input_penalty=bool(given.get("input_penalty", False)),
        ignore_eos=bool(given.get("ignore_eos", False)),
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        logit_bias=to_logit_bias(given.get("logit_bias", {}), limits, vocab_size),
        allowed_token_ids=allowed_token_ids,
        min_p=min_p,
        grammar=grammar,
        num_prompt_logprobs=_num_prompt_logprobs(given.get("prompt_logprobs", -1), limits),
    )


def _randomness(given: Raw, defaults: GenerationDefaults) -> tuple[bool, float, float, int, float]:
    """(do_sample, temperature, top_p, top_k, min_p). Greedy comes back as (False, 1.0, 1.0, 1, 0.0)."""
    do_sample = bool(given.get("do_sample", defaults.do_sample))
    # Types are checked even where do_sample false hides the ranges.
    temperature = to_float("temperature", given.get("temperature", defaults.temperature))
    top_p = to_float("top_p", given.get("top_p", defaults.top_p))
    top_k = to_int("top_k", given.get("top_k", defaults.top_k))
    min_p = to_float("min_p", given.get("min_p", defaults.min_p))
    if not do_sample:
        return False, 1.0, 1.0, 1, 0.0
    if temperature < 0.0:
        raise InvalidRequest(f"temperature must > 0.0, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise InvalidRequest(f"top_p must be in (0.0, 1.0], got {top_p}")
    if not 0.0 <= min_p <= 1.0:
        raise InvalidRequest(f"min_p must be in [0.0, 1.0], got {min_p}")
    if temperature < GREEDY_TEMPERATURE:
        return False, 1.0, 1.0, 1, 0.0
    if top_k < -1 or top_k == 0:
        raise InvalidRequest(f"top_k must be -1 (disable), or at least 1, got {top_k}.")
    return True, temperature, top_p, top_k, min_p


def _num_prompt_logprobs(value: object, limits: ApiSettings) -> int | None:
    """-1: none."""
    count = to_int("prompt_logprobs", value)
    if not -1 <= count <= limits.max_top_logprobs:
        raise InvalidRequest(f"prompt_logprobs must be in [-1, {limits.max_top_logprobs}], got {count}")
    return None if count == -1 else count


def _length_penalty(value: object) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise InvalidRequest("ExponentialDecayLengthPenalty must be Tuple[int, float]")
    start = to_int("exponential_decay_length_penalty", value[0])
    factor = to_float("exponential_decay_length_penalty", value[1])
    if start < 0:
        raise InvalidRequest("ExponentialDecayLengthPenalty item0 must be int >= 0")
    if factor < 1.0:
        raise InvalidRequest("ExponentialDecayLengthPenalty item1 must be a float >= 1.0")
    return start, factor


def _stop_sequences(value: object, limits: ApiSettings) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """(strings, groups of token ids). Empty ones and items of other types are dropped, as LightLLM does."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise InvalidRequest(f"stop_sequences must be str or list, got {type(value).__name__}")
    strings = tuple(item for item in value if isinstance(item, str) and item)
    groups = tuple(
        tuple(item) for item in value if isinstance(item, list) and item and all(type(part) is int for part in item)
    )
    if len(strings) + len(groups) > limits.max_stop_sequences:
        raise InvalidRequest("Too many stop sequence groups.")
    if any(len(stop) > limits.max_stop_tokens for stop in (*strings, *groups)):
        raise InvalidRequest("stop token length too long.")
    return strings, groups


def _allowed_token_ids(value: object, limits: ApiSettings, vocab_size: int) -> tuple[int, ...]:
    """Ids outside the vocabulary are dropped, as LightLLM does; if none is left, nothing could be said at all."""
    token_ids = to_token_ids("allowed_token_ids", value)
    if len(token_ids) > limits.max_allowed_token_ids:
        raise InvalidRequest("Too many allowed token IDs.")
    known = tuple(token_id for token_id in token_ids if 0 <= token_id < vocab_size)
    if token_ids and not known:
        raise InvalidRequest(f"allowed_token_ids has no id in [0, {vocab_size})")
    return known


def to_logit_bias(value: object, limits: ApiSettings, vocab_size: int) -> dict[int, float]:
    """{"id": bias} or [[id, bias], ...]. Raises InvalidRequest."""
    if isinstance(value, dict):
        pairs = [[_token_id(key), bias] for key, bias in value.items()]
    elif isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        pairs = value
    else:
        raise InvalidRequest("logit_bias must be an object {id: bias} or a list of [id, bias]")
    if len(pairs) > limits.max_logit_bias:
        raise InvalidRequest(f"logit_bias has {len(pairs)} entries, at most {limits.max_logit_bias} are allowed")
    biases = {}
    for key, bias in pairs:
        token_id = to_int("logit_bias", key, -MAX_INT32, 2**64)
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"logit_bias has id {token_id}, which is not in [0, {vocab_size})")
        biases[token_id] = to_float("logit_bias", bias)
    return biases


def _token_id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise InvalidRequest(f"logit_bias has id {key!r}, which is no integer") from None
