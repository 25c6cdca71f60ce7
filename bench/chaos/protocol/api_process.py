"""The API's side of a simulated cluster: a process with the real relay, and clients that follow, leave and stop.

Does what api/generation.py does with the request log and the relay; knows no HTTP and no text.
"""

import asyncio
from collections.abc import Callable

from bench.chaos.protocol.oracle import Oracle, Violation
from bench.chaos.protocol.process import Process
from broker.client import Broker
from broker.deadline import deadline_event, now_ms
from broker.relay import RelayReader
from broker.request_log import CancelIf
from broker.subscription import Subscription
from errors import QueueFull
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent

API_ID = "api-0"
ABORTED = TokenEvent(finish_reason=FinishReason.ABORT)
STOPPED = TokenEvent(finish_reason=FinishReason.STOP)


class Client:
    """One request and what came of it."""

    def __init__(self, request: GenerationRequest, stop_after: int | None) -> None:
        self.request = request
        self.stop_after = stop_after  # tokens after which a stop sequence is found
        self.received: list[list[TokenEvent]] = [[] for _ in range(request.n)]
        self.was_refused = False
        self.has_left = False
        self.is_done = False
        self.task: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return self.request.request_id


class Api:
    """One API process."""

    def __init__(self, process: Process, assemble: Callable[[Process], Broker], oracle: Oracle) -> None:
        self.process, self.oracle = process, oracle
        self.broker = assemble(process)
        self.relay = RelayReader(self.broker, API_ID)
        self.clients: list[Client] = []
        process.main = process.run(self.relay.run())

    def ask(self, request: GenerationRequest, max_waiting: int, stop_after: int | None = None) -> Client:
        """A client comes."""
        client = Client(request, stop_after)
        self.oracle.expect(request)
        self.clients.append(client)
        client.task = self.process.run(self._serve(client, max_waiting))
        return client

    def leave(self, client: Client) -> None:
        """The client is gone."""
        assert client.task is not None
        client.has_left = True
        self.process.call(client.task.cancel)

    @property
    def open_clients(self) -> list[Client]:
        """Who still waits."""
        return [client for client in self.clients if not client.is_done]

    async def _serve(self, client: Client, max_waiting: int) -> None:
        request = client.request
        subscriptions = [self.relay.open(request.request_id, choice) for choice in range(request.n)]
        unfinished = set(range(request.n))
        try:
            await self.broker.requests.create(request, max_waiting)
            for choice, subscription in enumerate(subscriptions):
                await self._follow(client, choice, subscription)
                unfinished.discard(choice)
        except QueueFull:
            client.was_refused = True
            unfinished.clear()
        except asyncio.CancelledError:
            pass
        finally:
            await asyncio.shield(asyncio.create_task(self._end(client, unfinished, subscriptions)))
            client.is_done = True

    async def _follow(self, client: Client, choice: int, subscription: Subscription) -> None:
        received = client.received[choice]
        truth = self.oracle.choices[client.request.request_id, choice]
        request = client.request
        while True:
            try:
                events = await subscription.take(_patience_s(request))
            except TimeoutError:
                await self.broker.requests.finish(request.request_id, choice, deadline_event(request))
                return
            for event in events:
                index = len(received)
                if index >= len(truth.events) or event != truth.events[index]:
                    raise Violation(f"{client.request.request_id}:{choice}: event {index} is not what was published")
                received.append(event)
                if event.finish_reason is not None:
                    return
                if client.stop_after is not None and len(received) >= client.stop_after:
                    truth.is_cancelled = True
                    await self.broker.requests.finish(client.request.request_id, choice, STOPPED)
                    return

    async def _end(self, client: Client, unfinished: set[int], subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            self.relay.close(subscription)
        for choice in unfinished:
            self.oracle.choices[client.request.request_id, choice].is_cancelled = True
        if unfinished:
            await self.broker.requests.cancel(client.request, ABORTED, CancelIf.UNATTACHED)


def _patience_s(request: GenerationRequest) -> float | None:
    """Until the request's deadline is past."""
    return max(0.0, (request.deadline_ms + 1 - now_ms()) / 1000) if request.deadline_ms else None
