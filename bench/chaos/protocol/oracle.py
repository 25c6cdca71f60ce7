"""What must hold of the records in Redis after every command, whoever sent it.

An oracle of its own: it looks at the data before and after, not at what the scripts answered. It knows the names of the
record's fields and that `append` alone publishes for an owner; it must not know how a script decides.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from bench.chaos.protocol.redis_server import Command, Link, SimulatedRedis
from bench.chaos.protocol.toy_model import answer
from broker.keys import GROUP, LOCAL, Keys
from broker.scripts import load_script
from errors import DeadlineExceeded
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from messages.wire import decode
from messages.worker_status import Role

_SCRIPTS = ("take", "append", "hand_over", "finish", "cancel", "heartbeat", "reclaim")

Place = tuple[str, int]
Entry = tuple[str, bytes]  # queue and entry id


class Violation(AssertionError):
    """The protocol broke a promise."""


@dataclass(slots=True)
class ChoiceTruth:
    """One choice as the oracle saw it last."""

    tokens: list[int]  # that it must say
    reason: FinishReason
    deadline_ms: int
    epoch: int = 0
    hop: int = 0
    is_finished: bool = False
    num_events: int = 0
    owner: Any = None  # the process whose take was the last
    giver: Any = None  # who handed it over last
    is_cancelled: bool = False  # its client may have ended it
    events: list[TokenEvent] = field(default_factory=list)


class Oracle:
    """`may_fail(place)`: whether the choice may end in an error."""

    def __init__(self, redis: SimulatedRedis, keys: Keys, lease_s: float) -> None:
        self._redis, self._keys = redis, keys
        self._scripts = {load_script(name).sha1.encode(): name for name in _SCRIPTS}
        self._lease_s = lease_s
        self._entries: dict[Entry, tuple[bytes, int]] = {}
        self._renewed_s: dict[Entry, float] = {}  # queue entry -> when its living worker last renewed it
        self.choices: dict[Place, ChoiceTruth] = {}
        self.may_fail = False
        self.num_takes = 0
        self.num_tokens = 0
        redis.on_served = self.check

    def expect(self, request: GenerationRequest) -> None:
        """The request is about to be created."""
        for choice in range(request.n):
            self.choices[request.request_id, choice] = ChoiceTruth(*answer(request, choice), request.deadline_ms)

    def check(self, link: Link, command: Command, answer: Any) -> None:
        """Raises Violation."""
        if isinstance(answer, RedisError):  # a script that Redis does not know yet
            return
        word = command[0].upper()
        if word == b"XREADGROUP":
            self._entries = self._read_entries()
        if word not in (b"EVALSHA", b"EVAL"):
            return
        script = self._scripts.get(command[1]) if word == b"EVALSHA" else self._of_source(command[1])
        num_keys = int(command[2])
        for place in self._places(command[3 : 3 + num_keys]):
            self._check_choice(place, script, link)
        self._check_leases(script, link)

    def _check_leases(self, script: str | None, link: Link) -> None:
        before, now_s = self._entries, self._redis.clock.now_s
        self._entries = self._read_entries()
        if script not in ("heartbeat", "reclaim"):
            return
        for place, (holder, deliveries) in self._entries.items():
            if place not in before:
                continue
            if script == "heartbeat" and holder != before[place][0]:
                raise Violation(f"{link.owner} renewed entry {place} of {before[place][0].decode()}")
            if script == "heartbeat" and place in link.renewing and holder == link.owner.name.encode():
                self._renewed_s[place] = now_s
            renewed_s = self._renewed_s.get(place, float("-inf"))
            if script == "reclaim" and deliveries > before[place][1] and now_s < renewed_s + self._lease_s - 0.001:
                ago = f"which {before[place][0].decode()} renewed {now_s - renewed_s:.3f} s ago"
                raise Violation(f"{link.owner} reclaimed entry {place}, {ago}")

    def _read_entries(self) -> dict[Entry, tuple[bytes, int]]:
        """(consumer, deliveries) of every entry that somebody has."""
        entries: dict[Entry, tuple[bytes, int]] = {}
        for queue in (*self._keys.queues(Role.PREFILL), *self._keys.queues(Role.DECODE), *self._keys.queues(LOCAL)):
            for entry_id, pending in self._redis.pending(queue, GROUP).items():
                entries[queue, entry_id.encode()] = pending.consumer_name, pending.times_delivered
        return entries

    def _of_source(self, source: bytes) -> str | None:
        return next((name for name in self._scripts.values() if load_script(name).source.encode() == source), None)

    def _places(self, keys: Iterable[bytes]) -> Iterable[Place]:
        records = {key for key in keys if key.endswith(b":record")}
        for key in records:
            request_id = key.decode().rpartition("{")[2].rpartition("}")[0]
            choice = 0
            while (request_id, choice) in self.choices:
                yield request_id, choice
                choice += 1

    def _check_choice(self, place: Place, script: str | None, link: Link) -> None:
        truth = self.choices[place]
        request_id, choice = place
        fields = self._redis.fields(self._keys.record(request_id))
        if not fields:
            return
        epoch, hop = int(fields[f"epoch:{choice}".encode()]), int(fields[f"hop:{choice}".encode()])
        is_finished = f"finished:{choice}".encode() in fields
        stream = self._keys.tokens(request_id, choice)
        num_events = self._redis.length(stream)
        if (epoch, hop, is_finished, num_events) == (truth.epoch, truth.hop, truth.is_finished, truth.num_events):
            return

        def demand(condition: bool, what: str) -> None:
            if not condition:
                raise Violation(f"{request_id}:{choice}: {what} (by {script} of {link.owner})")

        demand(epoch >= truth.epoch, f"epoch fell from {truth.epoch} to {epoch}")
        demand(hop >= truth.hop, f"hop fell from {truth.hop} to {hop}")
        demand(not truth.is_finished, "it changed after its end")
        demand(num_events >= truth.num_events, "events are gone")
        for entry_id, entry in self._redis.entries(stream)[truth.num_events :]:
            self._check_event(truth, len(truth.events), entry_id, decode(entry[b"event"], TokenEvent), demand)
        demand(
            is_finished == (bool(truth.events) and truth.events[-1].finish_reason is not None), "its end is not told"
        )
        grew = num_events > truth.num_events
        if script == "append":
            demand(epoch == truth.epoch, "an append changed the epoch")
            demand(not grew or truth.owner is link.owner, f"{link.owner} published, {truth.owner} owns it")
        else:
            demand(not grew or is_finished, "it was published by no owner")
            demand(epoch > truth.epoch or script is None and truth.epoch == 0, "nobody was fenced")
        if script == "hand_over":
            # Or takes back what it handed over and nobody has taken.
            giver = truth.owner or truth.giver
            demand(giver is link.owner, f"{link.owner} handed it over, {giver} owns it")
            truth.giver = link.owner
        if script == "take":
            truth.owner = link.owner
            self.num_takes += 1
        elif script != "append":
            truth.owner = None
        self.num_tokens += num_events - truth.num_events
        truth.epoch, truth.hop, truth.is_finished, truth.num_events = epoch, hop, is_finished, num_events

    def _check_event(self, truth: ChoiceTruth, index: int, entry_id: bytes, event: TokenEvent, demand: Any) -> None:
        demand(entry_id == f"{index + 1}-0".encode(), f"event {index} has id {entry_id.decode()}")
        demand(not truth.events or truth.events[-1].finish_reason is None, "an event came after its end")
        if event.token_id is not None:
            demand(index < len(truth.tokens), f"token {index} is one too many")
            demand(
                event.token_id == truth.tokens[index], f"token {index} is {event.token_id}, not {truth.tokens[index]}"
            )
            is_last = index == len(truth.tokens) - 1
            demand((event.finish_reason is not None) == is_last, f"token {index} of {len(truth.tokens)} ends it")
            demand(not is_last or event.finish_reason == truth.reason, f"it ends by {event.finish_reason}")
        elif event.finish_reason == FinishReason.ERROR and event.error_status == DeadlineExceeded.status:
            now_ms = self._redis.clock.time() * 1000
            demand(0 < truth.deadline_ms < now_ms, f"it was late at {now_ms:.0f}, its deadline is {truth.deadline_ms}")
        elif event.finish_reason == FinishReason.ERROR:
            demand(self.may_fail, f"it failed: {event.error}")
        else:
            demand(truth.is_cancelled, f"it ended by {event.finish_reason} and nobody asked for it")
        truth.events.append(event)
