"""What the request log says about one choice of a request. This file knows no Redis."""

from dataclasses import dataclass

import msgspec

from messages.job import Phase
from messages.request import GenerationRequest
from messages.token_event import TokenEvent


def member_of(request_id: str, choice: int) -> str:
    """How a choice is named inside Redis; a request id may hold colons itself."""
    return f"{request_id}:{choice}"


def parse_member(member: bytes | str) -> tuple[str, int]:
    """(request_id, choice) of a `member_of`. Raises ValueError when it is none."""
    text = member.decode() if isinstance(member, bytes) else member
    request_id, _, choice = text.rpartition(":")
    return request_id, int(choice)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a worker gets with a choice it took."""

    request: GenerationRequest
    choice: int
    epoch: int  # goes with every append and hand-over from now on
    events: list[TokenEvent]  # published so far; the next index is their number
    taken_ms: int = 0  # when, by Redis' clock, which also stamped the entries of the queues; 0: not known


class Append(msgspec.Struct, frozen=True):
    """One event on its way into a choice's stream."""

    request_id: str
    choice: int
    epoch: int
    index: int
    event: TokenEvent
    api_id: str  # whose relay gets it; empty: nobody's


@dataclass(frozen=True, slots=True)
class SequenceLoad:
    """One unfinished choice, as load estimates need it."""

    request_id: str
    choice: int
    phase: Phase
    prompt_tokens: int
    max_new_tokens: int
    ignore_eos: bool
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ChoiceProgress:
    """How far a choice is, for whoever asked for it."""

    phase: Phase | None  # None: it has ended
    num_events: int  # published so far: its tokens, and an end without a token


@dataclass(frozen=True, slots=True)
class ChoiceState:
    """Where a choice stands. An unknown one reads hop 0, epoch 0, finished."""

    hop: int
    epoch: int
    finished: bool

    @property
    def is_known(self) -> bool:
        """Whether Redis has a record of it (records go `stream.keep_s` after their end)."""
        return self.hop > 0
