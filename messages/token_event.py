"""What the streams say: tokens, and how a sequence ended. Worker -> Redis -> API."""

from enum import StrEnum

import msgspec


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an EOS token or a stop sequence
    LENGTH = "length"  # max_new_tokens reached
    ABORT = "abort"  # the client went away or cancelled
    ERROR = "error"  # a failure on our side; the event says which


TokenLogprob = tuple[int, float]  # token id, the log of its probability


class PromptLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the model made of one prompt token, given those before it."""

    logprob: float
    top: tuple[TokenLogprob, ...] = ()  # the likeliest ids in its place, the likeliest first


# The collector looks through none of these: there are thousands a second, and no cycle can be made of them.
class TokenEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of a token stream. Its index is its place in the stream. The terminal event has `finish_reason`."""

    token_id: int | None = None  # None: a terminal event without a token
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    error: str = ""
    error_status: int = 0
    score: float | None = None  # the answer to a request of kind "score"
    top: tuple[TokenLogprob, ...] = ()  # the likeliest ids in its place, where they were asked for
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # event 0 only, where asked for: of the prompt's tokens from 1 on
    num_cached_tokens: int = 0  # event 0 only: prompt tokens whose KV was there already


class RelayedEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event on its way to an API process that waits for it."""

    member: str  # the choice, as broker/choice.py names it
    index: int
    event: TokenEvent


class RelayedEvents(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a relay: events of one step that an API process waits for. broker/lua/relay.lua writes it."""

    events: list[RelayedEvent]
