"""The fields of a request to OpenAI's routes that say how to generate -> what admission takes.

Pure: the seed is drawn by the caller. Names, bounds and defaults are OpenAI's, with what its other servers added: a
request that is silent is sampled, with what the model's generation_config.json says. What cannot be honoured is
`unsupported.py`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from api.admission import Wanted
from api.answers import CHAT, CHAT_STREAM, COMPLETIONS, COMPLETIONS_STREAM
from api.errors import BadField
from api.guided import EXTENSIONS, grammar_of_body
from api.model_facts import GenerationDefaults
from api.openai.fields import Fields, flag, integer, mapping, number
from api.openai.tool_grammar import tool_grammar
from api.openai.tools import Style, read_tools
from api.parameters import GREEDY_TEMPERATURE, MAX_SEED, to_logit_bias
from errors import InvalidRequest
from messages.request import AnswerParams, Grammar, OutputParams, SamplingParams
from settings.api import ApiSettings

COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions; a chat's is what there is room for


@dataclass(frozen=True, slots=True)
class Reading:
    """By what a request is read."""

    defaults: GenerationDefaults
    limits: ApiSettings
    vocab_size: int
    draw_seed: Callable[[], int]
    tool_style: Style | None = "hermes"  # how the model writes tool calls; None: in a way that is not known here
    has_special_tags: bool = False  # whether that has special tokens, which are not shown else


def completion_wanted(body: Fields, reading: Reading) -> Wanted:
    """Of /v1/completions. Raises BadField."""
    limits = reading.limits
    num_logprobs = None
    if body.get("logprobs") is not None:
        num_logprobs = integer(body, "logprobs", 0, 0, limits.max_top_logprobs)
    echo, is_stream = flag(body, "echo"), flag(body, "stream")
    max_tokens = integer(body, "max_tokens", COMPLETION_TOKENS, 0 if echo else 1)
    sampling = _sampling(body, reading, max(1, max_tokens), num_logprobs)
    if echo and num_logprobs is not None:
        sampling = structs.replace(sampling, num_prompt_logprobs=num_logprobs)
    n = integer(body, "n", 1, 1, limits.max_best_of)
    if integer(body, "best_of", n) != n:
        raise BadField(f"best_of is supported where it equals n, got {body['best_of']} and {n}", "best_of")
    answer = structs.replace(
        _answer(body, is_stream),
        route=COMPLETIONS_STREAM if is_stream else COMPLETIONS,
        num_logprobs=num_logprobs,
        echo=echo,
        drops_output=max_tokens == 0,
    )
    return Wanted(sampling, _output(body, limits), answer, n, flag(body, "add_special_tokens", True))


def chat_wanted(body: Fields, reading: Reading) -> Wanted:
    """Of /v1/chat/completions, whose template writes the special tokens itself. Raises BadField."""
    limits = reading.limits
    num_logprobs = None
    num_top = integer(body, "top_logprobs", 0, 0, limits.max_top_logprobs)
    if flag(body, "logprobs"):
        num_logprobs = num_top
    elif num_top:
        raise BadField("top_logprobs needs logprobs to be true", "top_logprobs")
    is_stream = flag(body, "stream")
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    fills_context = body.get(name) is None
    sampling = _sampling(body, reading, integer(body, name, 1, 1), num_logprobs)
    answer = structs.replace(
        _answer(body, is_stream), route=CHAT_STREAM if is_stream else CHAT, num_logprobs=num_logprobs
    )
    output = _output(body, limits)
    tools = read_tools(body)
    if tools is not None:
        if reading.tool_style is None and not tools.is_required:
            raise BadField(
                "this model writes tool calls in a form that is not known here: tool_choice may be none, required or "
                "a name; PDQ_API__TOOL_STYLE says another form",
                "tools",
            )
        style = reading.tool_style or "hermes"
        sampling = structs.replace(
            sampling, grammar=tool_grammar(tools, style, sampling.grammar, limits.max_grammar_bytes)
        )
        answer = structs.replace(answer, tools=tools.params(style))
        output = structs.replace(
            output,
            skip_special_tokens=output.skip_special_tokens and not reading.has_special_tags,
            add_spaces_between_special_tokens=False,
        )
    n = integer(body, "n", 1, 1, limits.max_best_of)
    special = flag(body, "add_special_tokens")
    return Wanted(sampling, output, answer, n, special, fills_context=fills_context)


def _sampling(body: Fields, reading: Reading, max_tokens: int, num_logprobs: int | None) -> SamplingParams:
    defaults, limits = reading.defaults, reading.limits
    temperature = number(body, "temperature", defaults.temperature, 0.0)
    top_p = number(body, "top_p", defaults.top_p, 0.0, 1.0)
    min_p = number(body, "min_p", defaults.min_p, 0.0, 1.0)
    top_k = integer(body, "top_k", defaults.top_k, -1) or -1  # 0 is no limit, too
    if top_p == 0.0:
        raise BadField("top_p must be above 0", "top_p")
    do_sample = temperature >= GREEDY_TEMPERATURE and top_k != 1
    if not do_sample:
        temperature, top_p, top_k, min_p = 1.0, 1.0, 1, 0.0
    repetition_penalty = number(body, "repetition_penalty", defaults.repetition_penalty, 0.0)
    if repetition_penalty == 0.0:
        raise BadField("repetition_penalty must be above 0", "repetition_penalty")
    seed = integer(body, "seed", -1, -(2**63), MAX_SEED)
    try:
        logit_bias = to_logit_bias(mapping(body, "logit_bias"), limits, reading.vocab_size)
    except InvalidRequest as error:
        raise BadField(str(error), "logit_bias") from None
    min_tokens = integer(body, "min_tokens", 0, 0)
    has_limit = any(body.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
    if has_limit and min_tokens > max_tokens:
        raise BadField(f"min_tokens must be at most max_tokens {max_tokens}, got {min_tokens}", "min_tokens")
    return SamplingParams(
        seed=reading.draw_seed() if body.get("seed") is None else seed & MAX_SEED,
        do_sample=do_sample,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=number(body, "presence_penalty", defaults.presence_penalty, -2.0, 2.0),
        frequency_penalty=number(body, "frequency_penalty", defaults.frequency_penalty, -2.0, 2.0),
        repetition_penalty=repetition_penalty,
        ignore_eos=flag(body, "ignore_eos"),
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens + 1,  # ours may end with the min_new_tokens-th token, OpenAI's servers after it
        logit_bias=logit_bias,
        min_p=min_p,
        num_top_logprobs=num_logprobs or 0,
        grammar=_grammar(body, limits),
    )


def _grammar(body: Fields, limits: ApiSettings) -> Grammar | None:
    """What the output has to fit."""
    try:
        return grammar_of_body(body, limits.max_grammar_bytes)
    except InvalidRequest as error:
        named = [name for name in (*EXTENSIONS, "structured_outputs") if body.get(name) is not None]
        raise BadField(str(error), named[0] if named else "response_format") from None


def _output(body: Fields, limits: ApiSettings) -> OutputParams:
    stop = body.get("stop")
    strings = [stop] if isinstance(stop, str) else ([] if stop is None else stop)
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise BadField("stop must be a string that is not empty, or a list of such", "stop")
    ids = body.get("stop_token_ids") or []
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise BadField("stop_token_ids must be a list of integers", "stop_token_ids")
    if len(strings) + len(ids) > limits.max_stop_sequences:
        raise BadField(
            f"stop and stop_token_ids have {len(strings) + len(ids)} entries, at most {limits.max_stop_sequences} are "
            "allowed",
            "stop",
        )
    if any(len(one) > limits.max_stop_tokens for one in strings):
        raise BadField(f"an entry of stop may have at most {limits.max_stop_tokens} characters", "stop")
    return OutputParams(
        stop_strings=tuple(strings),
        stop_token_ids=tuple((one,) for one in ids),
        include_stop=flag(body, "include_stop_str_in_output"),
        skip_special_tokens=flag(body, "skip_special_tokens", True),
        add_spaces_between_special_tokens=flag(body, "spaces_between_special_tokens", True),
    )


def _answer(body: Fields, is_stream: bool) -> AnswerParams:
    options = mapping(body, "stream_options")
    if options and not is_stream:
        raise BadField("stream_options are for requests with stream: true", "stream_options")
    continuous = flag(options, "continuous_usage_stats")
    return AnswerParams(include_usage=flag(options, "include_usage"), continuous_usage=continuous)
