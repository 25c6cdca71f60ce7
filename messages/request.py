"""What a client asked, as the record keeps it. API -> Redis, and whoever works on it.

This file knows no room, no Redis and no torch.
"""

from enum import StrEnum
from typing import Literal

import msgspec


class Priority(StrEnum):
    """Which waiting request goes first; the members are in that order."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the output has to be, as the client wrote it. `grammar.py` says what each kind means."""

    kind: Literal["json_schema", "json_object", "regex", "lark", "ebnf"]
    text: str = ""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is chosen. Names and meanings are LightLLM's; greedy when `do_sample` is false."""

    seed: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1  # -1: no limit
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    exponential_decay_length_penalty: tuple[int, float] = (1, 1.0)
    input_penalty: bool = False  # whether prompt tokens count in the three penalties
    ignore_eos: bool = False
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    logit_bias: dict[int, float] = {}  # token id -> added to its logit
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    min_p: float = 0.0  # of the largest probability; 0: no limit
    grammar: Grammar | None = None  # None: any text
    num_top_logprobs: int = 0  # how many of the likeliest ids are told with each token
    num_prompt_logprobs: int | None = None  # as many with each prompt token, and its own logprob; None: neither


class OutputParams(msgspec.Struct, frozen=True, array_like=True):
    """How token ids become text. Only the API looks at it; it is in the record so that any API can go on."""

    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[tuple[int, ...], ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    add_spaces_between_special_tokens: bool = True
    print_eos_token: bool = False


class ToolParams(msgspec.Struct, frozen=True, array_like=True):
    """How tool calls are read out of an output."""

    style: Literal["hermes", "llama3"]
    names: tuple[str, ...]  # of the tools that may be called
    is_parallel: bool = True  # else only the first call is told
    is_required: bool = False  # the text is held to calls: no beginning of one is content


class AnswerParams(msgspec.Struct, frozen=True, array_like=True):
    """How the answer is written. Only the API looks at it; it is in the record so that any API can go on."""

    route: str = ""  # name of the route that began it, whose frames and body it is answered with
    with_details: bool = False  # whether its body lists every token
    num_logprobs: int | None = None  # OpenAI's routes: how many of the likeliest tokens it lists; None: no logprobs
    echo: bool = False  # whether the prompt stands before the output
    drops_output: bool = False  # only the prompt is wanted; the one token that was generated is not told
    include_usage: bool = False  # whether a stream ends with its usage
    continuous_usage: bool = False  # whether every chunk of a stream has it
    tools: ToolParams | None = None  # None: the output is content, whatever is in it


class ImageRef(msgspec.Struct, frozen=True, array_like=True):
    """An image of a prompt and the tokens that stand for it; its bytes lie under the request's images in Redis."""

    digest: bytes  # sha256 of its bytes
    first: int  # place of its first token in the prompt
    num_tokens: int  # the markers around and between its tiles included

    @property
    def end(self) -> int:
        """The place after its last token."""
        return self.first + self.num_tokens


class GenerationRequest(msgspec.Struct, frozen=True, array_like=True):
    """What a client asked, as the record keeps it. `n` sequences ("choices" 0..n-1) share the prompt."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output: OutputParams = OutputParams()
    n: int = 1
    kind: Literal["generate", "score"] = "generate"
    api_id: str = ""  # whose relay stream gets the tokens
    created_ms: int = 0  # Unix time
    owner: str = ""  # id of the API key that made it; empty where no keys are asked for
    is_detached: bool = False  # goes on when its client leaves
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0  # Unix time after which nobody waits for it; 0: none
    answer: AnswerParams = AnswerParams()
    trace: str = ""  # W3C traceparent of the span that work on it belongs to; empty: it is not traced
    images: tuple[ImageRef, ...] = ()  # of its prompt, in its order
