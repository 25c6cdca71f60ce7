"""Where a choice's tokens go: to an outlet as soon as they come, or to the caller where something stands between."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from api.frames import OutputToken
from api.generation import Generation
from messages.request import GenerationRequest, OutputParams
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until
from tests.broker.samples import make_request


class Written:
    """An outlet that keeps what it gets."""

    def __init__(self, is_broken: bool = False) -> None:
        self.is_clear = True
        self.tokens: list[OutputToken] = []
        self._is_broken = is_broken

    def write(self, tokens: list[OutputToken]) -> None:
        if self._is_broken:
            raise ValueError("broken")
        self.tokens += tokens


class Followed:
    """A request whose tokens the test says one by one."""

    def __init__(self, cluster: FakeCluster, request_id: str, written: Written, output: OutputParams) -> None:
        self._said: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._written = written
        self.yielded: list[OutputToken] = []
        request = make_request(request_id)
        api_id = cluster.services.api_id
        self._generation = Generation(cluster.services, msgspec.structs.replace(request, api_id=api_id, output=output))
        self.task = asyncio.create_task(self._follow())

    async def say(self, event: TokenEvent) -> None:
        """One token more; returns when it has come out."""
        num_before = self._num_tokens
        self._said.put_nowait(event)

        async def is_out() -> bool:
            return self._num_tokens > num_before or self.task.done()

        await until(is_out)

    async def script(self, request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
        while True:
            yield await self._said.get()

    @property
    def _num_tokens(self) -> int:
        return len(self.yielded) + len(self._written.tokens)

    async def _follow(self) -> None:
        async with self._generation as generation:
            async for tokens in generation.follow(0, outlet=self._written):
                self.yielded += tokens


def ids(tokens: list[OutputToken]) -> list[int | None]:
    return [token.token_id for token in tokens]


def test_tokens_go_to_an_outlet_while_it_is_clear_and_the_last_one_to_the_caller(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            written = Written()
            followed = Followed(cluster, "request", written, OutputParams())
            cluster.script = followed.script
            for token_id, is_clear in ((10, False), (11, True), (12, True), (13, False), (14, True)):
                written.is_clear = is_clear
                await followed.say(TokenEvent(token_id))
            await followed.say(TokenEvent(15, finish_reason=FinishReason.LENGTH))
            await followed.task
            assert ids(written.tokens) == [11, 12, 14]
            assert ids(followed.yielded) == [10, 13, 15]
            assert sorted(token.count for token in written.tokens + followed.yielded) == [1, 2, 3, 4, 5, 6]
            meters = cluster.services.meters
            assert meters.num_tokens == meters.relay.count == 6
            assert meters.ended == {"length": 1}

    run(main())


def test_what_may_end_at_any_token_goes_to_the_caller(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            written = Written()
            followed = Followed(cluster, "request", written, OutputParams(stop_token_ids=((11,),)))
            cluster.script = followed.script
            for token_id in (10, 11):
                await followed.say(TokenEvent(token_id))
            await followed.task
            assert not written.tokens
            assert followed.yielded[-1].finish_reason == FinishReason.STOP
            event = await cluster.last_event("request")
            assert event is not None and event.finish_reason == FinishReason.STOP

    run(main())


def test_an_outlet_that_fails_fails_its_own_reader_alone(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            broken, written = Written(is_broken=True), Written()
            readers = {
                "broken": Followed(cluster, "broken", broken, OutputParams()),
                "sound": Followed(cluster, "sound", written, OutputParams()),
            }
            cluster.script = lambda request, choice: readers[request.request_id].script(request, choice)
            await readers["broken"].say(TokenEvent(10))
            with pytest.raises(ValueError, match="broken"):
                await readers["broken"].task
            for token_id in (10, 11):
                await readers["sound"].say(TokenEvent(token_id))
            assert ids(written.tokens) == [10, 11]
            await readers["sound"].say(TokenEvent(12, finish_reason=FinishReason.LENGTH))
            await readers["sound"].task

    run(main())
