"""What was published of requests, how far they are, and which are active: read, and nothing changed.

`request_log.py` writes it. This file knows neither workers nor HTTP.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from broker.choice import ChoiceProgress, ChoiceState, SequenceLoad, member_of, parse_member
from broker.keys import Keys
from messages.job import Phase
from messages.request import GenerationRequest
from messages.token_event import TokenEvent
from messages.wire import decode


class RequestReader:
    """Records, token streams and phases. Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis = client
        self._keys = keys

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
