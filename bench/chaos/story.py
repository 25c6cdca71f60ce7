"""One request of the bench, what it must say, and how a client that comes back hears it.

Knows LightLLM's frames; knows no processes.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from itertools import cycle

import orjson

from bench.chaos.event_source import Address, Connection, ConnectionLost, Refused, get, post

RECONNECT_S = 0.1  # what a page may tell EventSource with `retry:`
GIVE_UP_S = 60.0  # no event for so long, over all connections
LOGPROB_TOLERANCE = 1e-3  # another batch size adds up float32 in another order


@dataclass(frozen=True, slots=True)
class Story:
    """A request; the same one gives the same tokens, whoever computes them."""

    prompt: list[int]
    parameters: dict[str, object]

    def body(self) -> bytes:
        """Of POST /generate_stream."""
        return orjson.dumps({"inputs": self.prompt, "parameters": self.parameters})


@dataclass(frozen=True, slots=True)
class Token:
    """One frame of a stream."""

    event_id: str
    token_id: int | None
    text: str
    logprob: float
    finish_reason: str | None

    def says_same(self, other: "Token") -> bool:
        """Whether a client could not tell them apart."""
        mine = (self.event_id, self.token_id, self.text, self.finish_reason)
        theirs = (other.event_id, other.token_id, other.text, other.finish_reason)
        return mine == theirs and abs(self.logprob - other.logprob) < LOGPROB_TOLERANCE


@dataclass(slots=True)
class Telling:
    """What one client heard."""

    tokens: list[Token] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)  # between two tokens, after the first
    num_connections: int = 0
    failure: str = ""

    def in_place(self) -> list[Token]:
        """The tokens with their places as ids, for a stream that has none."""
        return [replace(token, event_id=str(place)) for place, token in enumerate(self.tokens)]


def stories() -> list[Story]:
    """Greedy and sampled, with penalties, stop sequences and prompts of several blocks."""
    told = []
    for number in range(24):
        prompt = [(number * 37 + position * 11) % 97 + 32 for position in range(5 + number * 7)]
        parameters: dict[str, object] = {"max_new_tokens": 64, "ignore_eos": True}
        if number % 2:
            parameters |= {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": 1000 + number}
        if number % 3 == 0:
            parameters |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}
        if number % 4 == 0:
            parameters |= {"stop_sequences": ["\x01\x02\x03"]}  # watched for, and never said
        told.append(Story(prompt, parameters))
    return told


async def listen(
    story: Story, request_id: str, addresses: list[Address], telling: Telling, is_back: bool = True
) -> None:
    """Ask for `story` and hear it to its end, from one API process after the other; only the first unless `is_back`."""
    where = cycle(addresses)
    ids = [("X-SSE-Ids", "true")] if is_back else []
    ask = post("/generate_stream", story.body(), [("X-Request-Id", request_id), *ids])
    is_asked = False
    heard_s = time.monotonic()
    while time.monotonic() - heard_s < GIVE_UP_S:
        last = telling.tokens[-1].event_id if telling.tokens else ""
        headers = [("Last-Event-ID", last)] if last else []
        request = get(f"/requests/{request_id}/stream", headers) if is_asked else ask
        telling.num_connections += 1
        try:
            connection = await Connection.open(next(where), request)
            is_asked = True
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    async for event in connection.events():
                        now_s = time.monotonic()
                        if telling.tokens:
                            telling.gaps_s.append(now_s - heard_s)
                        heard_s = now_s
                        token = _token(event.event_id, event.data)
                        telling.tokens.append(token)
                        if token.finish_reason is not None:
                            return
            finally:
                connection.abort()
        except Refused as refused:
            if refused.status == 404 and not telling.tokens:
                is_asked = False  # whom we asked died before it wrote anything down
            elif refused.status != 503:
                telling.failure = str(refused)
                return
        except (ConnectionLost, TimeoutError):
            pass
        except ValueError as error:
            telling.failure = str(error)
            return
        await asyncio.sleep(RECONNECT_S)
    telling.failure = f"nothing new for {GIVE_UP_S:g} s"


def _token(event_id: str, data: bytes) -> Token:
    """The frame in an event. Raises ValueError when it is an error or no frame."""
    frame = orjson.loads(data)
    if "error" in frame:
        raise ValueError(f"error frame: {frame['error']['message']}")
    token = frame["token"]
    return Token(event_id, token["id"], token["text"], token["logprob"], frame["finish_reason"])


@dataclass(frozen=True, slots=True)
class Difference:
    """How what was heard differs from what is true, in tokens."""

    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    different: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.reordered + other.reordered,
            self.different + other.different,
        )


def compare(heard: list[Token], truth: list[Token]) -> Difference:
    """Event by event. Ids are the tokens' places."""
    ids = [token.event_id for token in heard]
    by_id = {token.event_id: token for token in truth}
    numbers = [int(event_id) for event_id in ids if event_id.isdigit()]
    return Difference(
        lost=len(by_id.keys() - set(ids)),
        duplicated=len(ids) - len(set(ids)),
        reordered=sum(after < before for before, after in zip(numbers, numbers[1:], strict=False)),
        different=sum(token.event_id not in by_id or not token.says_same(by_id[token.event_id]) for token in heard),
    )
