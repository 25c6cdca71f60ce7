"""The request records and their token streams: who may write, what was published, what is active.

Every change is one Lua script of broker/lua/, hence atomic and harmless when repeated after a lost answer. The protocol
is docs/lifecycle.md, "hops and epochs". This file knows neither workers nor HTTP.
"""

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from redis.asyncio import Redis

from broker.backlog import Backlog, Reason, Refused, Room, read_backlog
from broker.choice import Append, ChoiceProgress, ChoiceState, SequenceLoad, Taken, member_of, parse_member
from broker.job_queue import QueueEntry
from broker.keys import GROUP, LOCAL, Keys
from broker.scripts import Argument, load_script
from messages import (
    DecodeJob,
    GenerationRequest,
    InvalidRequest,
    Phase,
    PrefillJob,
    RelayedEvent,
    RelayedEvents,
    Role,
    TokenEvent,
    decode,
    encode,
)
from settings import StreamSettings

__all__ = ["Append", "ChoiceProgress", "ChoiceState", "RequestLog", "SequenceLoad", "Taken"]

TWO_TRIPS_FROM = 32  # events of one step
RELAY_EXPIRE_S = 60  # a relay nobody writes to; an API process that died leaves nothing behind


class CancelIf(StrEnum):
    """What must be true of a request for it to be cancelled."""

    ALWAYS = "always"
    UNATTACHED = "unattached"  # nobody but its first reader ever read it
    ABANDONED = "abandoned"  # it has gone without a reader for too long


class RequestLog:
    """Records, token streams and the fence around them. Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys, stream: StreamSettings, reader_lease_ms: int) -> None:
        self._redis = client
        self._keys = keys
        self._stream = stream
        self._reader_lease_ms = reader_lease_ms

    async def create(
        self,
        request: GenerationRequest,
        max_waiting: int | None = None,
        room: Room | None = None,
        images: Mapping[bytes, bytes] | None = None,
    ) -> Backlog:
        """Write the record and put one PrefillJob per choice; what waited before it. `images`: the bytes of those that
        the request names, by digest.

        Raises InvalidRequest when the id is in use, Refused (a QueueFull) when it has no `room`; `max_waiting` is a
        room of so many jobs.
        """
        if room is None:
            room = Room() if max_waiting is None else Room(jobs=max_waiting)
        keys, request_id = self._keys, request.request_id
        sampling = request.sampling
        sizes = f"{len(request.prompt_token_ids)} {sampling.max_new_tokens} {int(sampling.ignore_eos)}"
        sizes += f" {len(request.images)}"
        assert {image.digest for image in request.images} == set(images or {}), "an image is created with its request"
        choices = range(request.n)
        answer, *figures = await load_script("create").run(
            self._redis,
            [
                keys.record(request_id),
                keys.active_sizes(),
                keys.active_phases(),
                keys.reader_leases(),
                keys.bids(),
                *keys.queues(Role.PREFILL),
                *keys.queues(Role.DECODE),
                *keys.queues(LOCAL),
                keys.images(request_id),
                *(keys.tokens(request_id, choice) for choice in choices),
            ],
            [
                secrets.token_hex(8),
                encode(request),
                sizes,
                Phase.PREFILL_QUEUED.value,
                request_id,
                request.priority.rank + 1,
                GROUP,
                *map(str, (room.jobs, room.tokens_ahead, room.sequences_ahead, room.sequences_per_token)),
                self._reader_lease_ms,
                int(request.kind == "generate" and not request.images),
                *(encode(PrefillJob(request_id, choice, hop=1)) for choice in choices),
                *(part for image in (images or {}).items() for part in image),
            ],
        )
        if answer == b"in_use":
            raise InvalidRequest(f"request id {request_id!r} is already in use")
        backlog = read_backlog(figures)
        if answer != b"created":
            raise Refused(Reason(answer.decode()), backlog)
        return backlog

    async def take(self, job: PrefillJob | DecodeJob, phase: Phase) -> Taken | None:
        """Own the job's choice from now on; every earlier owner is refused.

        None when the job is a leftover (older hop) or its choice finished or unknown: acknowledge its entry.
        """
        answer = await load_script("take").run(
            self._redis,
            [
                self._keys.record(job.request_id),
                self._keys.tokens(job.request_id, job.choice),
                self._keys.active_phases(),
            ],
            [job.choice, member_of(job.request_id, job.choice), job.hop, phase.value],
        )
        if answer is None:
            return None
        request, epoch, taken_at, *events = answer
        return Taken(
            decode(request, GenerationRequest),
            job.choice,
            epoch,
            [decode(event, TokenEvent) for event in events],
            int(taken_at.partition(b"-")[0]),
        )

    async def append(self, items: Sequence[Append]) -> list[bool]:
        """Publish a step's events in one round trip, or in two at once; each is accepted or refused alone.

        True: the event stands in the stream, be it from an earlier try of this very call. False: the choice is
        finished, unknown or another's; drop the sequence, and its queue entry only through `ack_if_stale`.
        """
        if not items:
            return []
        half = len(items) // 2
        if len(items) < TWO_TRIPS_FROM or _have_a_choice_in_common(items[:half], items[half:]):
            return await self._append(items)
        # While Redis and the API process work on the first half, the second is encoded: it halves what a token waits
        # for the other tokens of its step.
        first, second = await asyncio.gather(self._append(items[:half]), self._append(items[half:]))
        return first + second

    async def _append(self, items: Sequence[Append]) -> list[bool]:
        keys = self._keys
        item_keys: list[Argument] = [keys.active_sizes(), keys.active_phases(), keys.reader_leases()]
        arguments: list[Argument] = [
            self._stream.keep_s,
            keys.relay(""),
            self._stream.relay_max_entries,
            RELAY_EXPIRE_S,
            len(items),
        ]
        relayed: dict[str, list[RelayedEvent]] = {}
        for item in items:
            event, api_id = item.event, item.api_id
            place = _place(keys, item.request_id, item.choice)
            item_keys += (place.record, place.tokens)
            arguments += (
                item.choice,
                place.member,
                item.epoch,
                item.index,
                0 if event.finish_reason is None else 1,
                encode(event),
                api_id,
            )
            if api_id:
                relayed.setdefault(api_id, []).append(RelayedEvent(place.member, item.index, event))
        for api_id, events in relayed.items():
            arguments += (api_id, len(events), encode(RelayedEvents(events)))
        answers = await load_script("append").run(self._redis, item_keys, arguments)
        return [answer == 1 for answer in answers]

    async def finish(self, request_id: str, choice: int, event: TokenEvent, api_id: str | None = None) -> bool:
        """End a choice from outside its owner, who is fenced; True when this call ended it.

        `event` must be terminal. It is relayed to whoever reads the request if `api_id`, who created it, is given;
        `Broker.cancels` hears of it.
        """
        assert event.finish_reason is not None, "finish() takes a terminal event"
        keys = self._keys
        answer = await load_script("finish").run(
            self._redis,
            [
                keys.record(request_id),
                keys.tokens(request_id, choice),
                keys.active_sizes(),
                keys.active_phases(),
                keys.cancels(),
                keys.reader_leases(),
            ],
            [
                secrets.token_hex(8),
                choice,
                member_of(request_id, choice),
                encode(event),
                self._stream.keep_s,
                keys.relay(""),
                self._stream.relay_max_entries,
                RELAY_EXPIRE_S,
                api_id or "",
            ],
        )
        return bool(answer)

    async def cancel(
        self, request: GenerationRequest, event: TokenEvent, condition: CancelIf = CancelIf.ALWAYS
    ) -> list[int]:
        """End what has not ended of a request with the terminal `event`; the choices that this call ended.

        Like `finish`, but all choices in one step, under a condition, and every reader hears of it.
        """
        assert event.finish_reason is not None, "cancel() takes a terminal event"
        keys, request_id = self._keys, request.request_id
        answer: list[int] = await load_script("cancel").run(
            self._redis,
            [
                keys.record(request_id),
                keys.active_sizes(),
                keys.active_phases(),
                keys.reader_leases(),
                keys.cancels(),
                *(keys.tokens(request_id, choice) for choice in range(request.n)),
            ],
            [
                secrets.token_hex(8),
                condition.value,
                request_id,
                encode(event),
                self._stream.keep_s,
                keys.relay(""),
                self._stream.relay_max_entries,
                RELAY_EXPIRE_S,
                request.api_id,
            ],
        )
        return sorted(answer)

    async def hand_over(
        self,
        entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]",
        epoch: int,
        job: PrefillJob | DecodeJob,
        phase: Phase,
    ) -> bool:
        """Put `job` (of a higher hop) for the choice that `epoch` owns, give up owning it, acknowledge `entry`.

        False when refused; the entry is then acknowledged only if nobody can need it (see `ack_if_stale`).
        """
        assert job.hop > entry.job.hop, "a hand-over raises the hop"
        assert (job.request_id, job.choice) == (entry.job.request_id, entry.job.choice)
        answer = await load_script("hand_over").run(
            self._redis,
            [
                self._keys.record(job.request_id),
                self._keys.active_phases(),
                self._keys.queue(entry.queue, entry.priority),
                self._keys.queue(Role.PREFILL if isinstance(job, PrefillJob) else Role.DECODE, entry.priority),
            ],
            [
                GROUP,
                job.choice,
                member_of(job.request_id, job.choice),
                epoch,
                entry.job.hop,
                job.hop,
                phase.value,
                encode(job),
                entry.entry_id,
            ],
        )
        return bool(answer)

    async def ack_if_stale(self, entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> bool:
        """Acknowledge an entry whose choice is finished, unknown or on a later hop; True when it was.

        For a worker that was refused. If its job still stands, another worker holds the very same entry, and an
        unconditional ack would lose the choice should that worker die.
        """
        job = entry.job
        answer = await load_script("ack_if_stale").run(
            self._redis,
            [self._keys.record(job.request_id), self._keys.queue(entry.queue, entry.priority)],
            [GROUP, job.choice, job.hop, entry.entry_id],
        )
        return bool(answer)

    async def read(self, request_id: str, choice: int, after: int = -1) -> list[tuple[int, TokenEvent]]:
        """The choice's events of an index above `after`, in order."""
        return (await self.read_many({(request_id, choice): after}))[request_id, choice]

    async def read_many(
        self, positions: Mapping[tuple[str, int], int]
    ) -> dict[tuple[str, int], list[tuple[int, TokenEvent]]]:
        """`read` of many choices, {(request_id, choice): after}, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for (request_id, choice), after in positions.items():
            pipeline.xrange(self._keys.tokens(request_id, choice), min=f"{after + 2}-0")
        answers = await pipeline.execute() if positions else []
        return {
            position: [
                (int(entry_id.partition(b"-")[0]) - 1, decode(fields[b"event"], TokenEvent))
                for entry_id, fields in entries
            ]
            for position, entries in zip(positions, answers, strict=True)
        }

    async def record(self, request_id: str) -> GenerationRequest | None:
        """The request as it was created; None when unknown."""
        data: Any = await self._redis.hget(self._keys.record(request_id), "request")
        return None if data is None else decode(data, GenerationRequest)

    async def images(self, request_id: str, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        """The bytes of these images of an unfinished request, as far as they are there."""
        found: Any = await self._redis.hmget(self._keys.images(request_id), list(digests)) if digests else []
        return {digest: data for digest, data in zip(digests, found, strict=True) if data is not None}

    async def progress(self, request: GenerationRequest) -> list[ChoiceProgress]:
        """How far each choice is, in one round trip. What is unknown reads as ended."""
        pipeline = self._redis.pipeline(transaction=True)
        for choice in range(request.n):
            pipeline.hget(self._keys.active_phases(), member_of(request.request_id, choice))
            pipeline.xlen(self._keys.tokens(request.request_id, choice))
        answers = await pipeline.execute()
        return [
            ChoiceProgress(None if phase is None else Phase(phase.decode()), length)
            for phase, length in zip(answers[::2], answers[1::2], strict=True)
        ]

    async def is_finished(self, request_id: str, choice: int) -> bool:
        """Whether the choice has ended or is unknown."""
        return (await self.states([(request_id, choice)]))[0].finished

    async def states(self, items: Iterable[tuple[str, int]]) -> list[ChoiceState]:
        """Where each (request_id, choice) stands, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for request_id, choice in items:
            pipeline.hmget(self._keys.record(request_id), [f"hop:{choice}", f"epoch:{choice}", f"finished:{choice}"])
        return [
            ChoiceState(int(hop), int(epoch), finished is not None)
            if hop is not None and epoch is not None
            else ChoiceState(0, 0, True)
            for hop, epoch, finished in await pipeline.execute()
        ]

    async def loads(self) -> list[SequenceLoad]:
        """Every unfinished choice of the cluster, in two round trips."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hgetall(self._keys.active_sizes())
        pipeline.hgetall(self._keys.active_phases())
        sizes, phases = await pipeline.execute()
        members = [(member, *parse_member(member)) for member in sizes]
        lengths = self._redis.pipeline(transaction=False)
        for _, request_id, choice in members:
            lengths.xlen(self._keys.tokens(request_id, choice))
        loads = []
        for (member, request_id, choice), output_tokens in zip(members, await lengths.execute(), strict=True):
            prompt_tokens, max_new_tokens, ignore_eos, *_ = map(int, sizes[member].split())
            phase = Phase(phases[member].decode())
            loads.append(
                SequenceLoad(request_id, choice, phase, prompt_tokens, max_new_tokens, bool(ignore_eos), output_tokens)
            )
        return loads


def _have_a_choice_in_common(some: Sequence[Append], others: Sequence[Append]) -> bool:
    """Whether their order matters."""
    places = {(item.request_id, item.choice) for item in some}
    return any((item.request_id, item.choice) in places for item in others)


class _Place(NamedTuple):
    """How a choice is called in Redis."""

    record: str
    tokens: str
    member: str


@lru_cache(maxsize=4096)  # more than the sequences that a worker runs at a time
def _place(keys: Keys, request_id: str, choice: int) -> _Place:
    return _Place(keys.record(request_id), keys.tokens(request_id, choice), member_of(request_id, choice))
