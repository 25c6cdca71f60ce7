"""What clients do: ask, leave, and find a stop sequence. Each kind of event: to whom it could happen, and how."""

from collections.abc import Sequence

from bench.chaos.protocol.api_process import API_ID, Client
from bench.chaos.protocol.shape import MAX_NEW_TOKENS, MAX_PROMPT_TOKENS
from bench.chaos.protocol.world import World
from messages.request import GenerationRequest, Priority, SamplingParams

MAX_OPEN = 8  # requests at a time


def newcomers(world: World) -> Sequence[str]:
    """Whether one more may come."""
    return ["client"] if len(world.api.open_clients) < MAX_OPEN else []


def create(world: World, _: str, choice: int) -> None:
    """A request comes; `choice` says which."""
    world.num_requests += 1
    num_tokens, choice = choice % MAX_PROMPT_TOKENS + 1, choice // MAX_PROMPT_TOKENS
    max_new_tokens, choice = choice % MAX_NEW_TOKENS + 1, choice // MAX_NEW_TOKENS
    n, choice = choice % 2 + 1, choice // 2
    ignore_eos, choice = bool(choice % 2), choice // 2
    # Few first tokens, so that prefixes are shared; the last one is nobody else's.
    prompt = [1 + (choice >> place) % 2 for place in range(num_tokens - 1)] + [100 + world.num_requests]
    sampling = SamplingParams(seed=choice, do_sample=True, max_new_tokens=max_new_tokens, ignore_eos=ignore_eos)
    created_ms = world.clock.time_ns() // 1_000_000
    # One in four has a deadline, a few seconds from now.
    deadline_ms = created_ms + 500 + choice % 10_000 if choice % 4 == 0 else 0
    request = GenerationRequest(
        f"r{world.num_requests}",
        prompt,
        sampling,
        n=n,
        api_id=API_ID,
        created_ms=created_ms,
        priority=list(Priority)[choice % 3],
        deadline_ms=deadline_ms,
    )
    world.api.ask(request, world.settings.queue.max_waiting)


def who_may_leave(world: World) -> Sequence[Client]:
    """Clients that wait."""
    return [client for client in world.api.open_clients if not client.has_left]


def leave(world: World, client: Client, _: int) -> None:
    """It is gone."""
    world.api.leave(client)


def who_may_stop(world: World) -> Sequence[Client]:
    """Clients without a stop sequence."""
    return [client for client in world.api.open_clients if client.stop_after is None]


def stop(world: World, client: Client, choice: int) -> None:
    """Its stop sequence is found at a token to come: the API ends the choice."""
    client.stop_after = 1 + choice % MAX_NEW_TOKENS
