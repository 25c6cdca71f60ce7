"""What every route works with, opened once per API process.

Knows how the parts of this room and the broker fit together; knows no route.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from api.background import Background
from api.cancellation import end_tasks
from api.cluster_view import ClusterView
from api.gate import Gate
from api.grammar_check import GrammarCheck
from api.image_reader import ImageReader
from api.key_ring import KeyRing, open_key_ring
from api.lookout import Lookout
from api.meters import ApiMeters
from api.model_facts import ModelFacts
from api.openai.chat_template import find_chat_template
from api.openai.renderer import ChatRenderer
from api.readings import Readings
from api.tokenizer import Tokenizer
from broker.client import Broker, open_broker
from broker.relay import RelayReader
from file_store import FileStore
from images import ImageLayout
from observability.tracing import Tracing, open_tracing
from settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts. `api_id` names this process's relay stream."""

    settings: Settings
    broker: Broker
    relay: RelayReader
    view: ClusterView
    gate: Gate
    tokenizer: Tokenizer
    facts: ModelFacts
    grammars: GrammarCheck
    images: ImageReader
    api_id: str
    readings: Readings
    background: Background
    stopping: asyncio.Event  # the process ends soon, and nothing new should be sent to it
    chat: ChatRenderer
    started_s: int  # Unix time
    lookout: Lookout
    store: FileStore
    key_ring: KeyRing | None = None  # None: no keys are asked for
    tracing: Tracing | None = None  # None: nothing is traced
    meters: ApiMeters = field(default_factory=ApiMeters)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Services with their background tasks running. Raises StartupError. A task that fails ends the process."""
    key_ring = open_key_ring(settings.security)
    facts = ModelFacts.from_dir(settings.model)
    tokenizer = Tokenizer.from_dir(facts.path)
    layout = ImageLayout.from_dir(facts.path)
    store = FileStore(settings.batch.store)
    api_id = f"api-{uuid.uuid4().hex[:12]}"
    tracing = open_tracing(settings.tracing, "api", api_id)
    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        relay = RelayReader(broker, api_id)
        view = ClusterView(broker, settings.api)
        gate = Gate(broker.requests, view, settings.queue)
        background = Background()
        chat = ChatRenderer(find_chat_template(facts.path), settings.api.template_timeout_s)
        meters = ApiMeters()
        lookout = Lookout(broker, meters)
        async with running(relay.run(), view.watch(lookout.look), lookout.sample()):
            try:
                yield Services(
                    settings,
                    broker,
                    relay,
                    view,
                    gate,
                    tokenizer,
                    facts,
                    GrammarCheck(settings.api.grammar_timeout_s),
                    ImageReader(layout, tokenizer, settings.images),
                    api_id,
                    Readings(),
                    background,
                    asyncio.Event(),
                    chat,
                    int(time.time()),
                    lookout,
                    store,
                    key_ring,
                    tracing,
                    meters,
                )
            finally:
                await chat.close()
                await background.end()
                if tracing is not None:
                    await asyncio.to_thread(tracing.close)


@asynccontextmanager
async def running(*endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `endless` beside the body. One that fails cancels the body, and its error is raised in place of that."""
    body = asyncio.current_task()
    assert body is not None

    def on_done(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            body.cancel()

    tasks = [asyncio.create_task(coroutine) for coroutine in endless]
    for task in tasks:
        task.add_done_callback(on_done)
    try:
        yield
    finally:
        failures = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for task in tasks:
            task.remove_done_callback(on_done)
        await end_tasks(tasks)
        for failure in failures:
            if failure is not None:
                raise failure


def services_of(request: Request) -> Services:
    """The services of the app that `request` came to."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
