"""The request records and their token streams: who may write, and what. `request_reader.py` reads them.

Every change is one Lua script of broker/lua/, hence atomic and harmless when repeated after a lost answer. The protocol
is docs/lifecycle.md, "hops and epochs". This file knows neither workers nor HTTP.
"""

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum

from redis.asyncio import Redis

from broker.backlog import Backlog, Reason, Refused, Room, read_backlog
from broker.choice import Append, Taken, member_of
from broker.hand_over import HandOver, hand_over_call
from broker.job_queue import QueueEntry
from broker.keys import GROUP, LOCAL, Keys
from broker.scripts import load_script, run_in_order
from broker.step_append import RELAY_EXPIRE_S, accepted, append_call, append_step
from errors import InvalidRequest
from messages.job import DecodeJob, Phase, PrefillJob
from messages.request import GenerationRequest
from messages.token_event import TokenEvent
from messages.wire import decode, encode
from messages.worker_status import Role
from settings.broker import StreamSettings


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
        """Publish a step's events, a large step's in a few round trips; each is accepted or refused alone.

        True: the event stands in the stream, be it from an earlier try of this very call. False: the choice is
        finished, unknown or another's; drop the sequence, and its queue entry only through `ack_if_stale`.
        """
        return await append_step(self._redis, self._keys, self._stream, items)

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
        script, keys, arguments = hand_over_call(self._keys, HandOver(entry, epoch, job, phase))
        return bool(await script.run(self._redis, keys, arguments))

    async def append_and_hand_over(
        self, items: Sequence[Append], given: Sequence[HandOver]
    ) -> tuple[list[bool], list[bool]]:
        """`append` all, then hand over each of `given`, in one round trip: of the events which are accepted, of the
        hand-overs which.

        A hand-over that says how many events there have to be is refused where one of them was. Where an answer got
        lost and the second try finds everything done, the event of who was handed over reads refused.
        """
        answers, *handed_over = await run_in_order(
            self._redis,
            [append_call(self._keys, self._stream, items), *(hand_over_call(self._keys, each) for each in given)],
        )
        return accepted(answers), [bool(answer) for answer in handed_over]

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
