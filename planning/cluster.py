"""A simulated cluster: two queues between clients, prefill workers and decode workers, in simulated time.

Numbers in, numbers out: no clock of the machine, no files, no random numbers of its own. Knows the order of things;
what a step costs is costs.py's, what a worker decides is the workers' own schedulers'.
"""

from collections.abc import Callable
from dataclasses import dataclass

from planning.costs import StepCosts
from planning.decode_model import DecodeModel
from planning.exchange import Exchange
from planning.host import Host
from planning.load import Load, Request
from planning.prefill_model import PrefillModel
from settings.loading import Settings


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers, on how many hosts."""

    num_prefill: int
    num_decode: int
    num_hosts: int = 1  # that share cores; of no meaning where every worker has a device of its own


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of a load."""

    requests: list[Request]
    duration_s: float  # from the start to the last token
    prefill_busy_s: tuple[float, ...]  # of each worker, in steps
    decode_busy_s: tuple[float, ...]
    request_seconds: float  # integral over time of the number of requests that had arrived and not ended
    num_preempted: int


def simulate(
    costs: StepCosts, settings: Settings, size: Size, load: Load, on_end: Callable[[Request], None] = lambda _: None
) -> Simulated:
    """Run `load` to its end on such a cluster. Raises ConfigError on a request that no worker has the KV blocks for."""
    exchange = Exchange(costs, settings, load, on_end)
    hosts = [Host(exchange.clock, costs.cores, costs.way.shared_stretch) for _ in range(size.num_hosts)]
    places = [hosts[number % size.num_hosts] for number in range(size.num_prefill + size.num_decode)]
    prefill = [PrefillModel(exchange, host) for host in places[: size.num_prefill]]
    decode = [DecodeModel(exchange, host) for host in places[size.num_prefill :]]
    exchange.prefillers.extend(prefill)
    exchange.takers.extend(decode)
    exchange.open()
    exchange.clock.run(exchange.watch)
    assert exchange.num_present == 0, "a request was forgotten"
    return Simulated(
        exchange.requests,
        max((request.last_token_s for request in exchange.requests), default=0.0),
        tuple(worker.seat.busy_s for worker in prefill),
        tuple(worker.seat.busy_s for worker in decode),
        exchange.request_seconds,
        exchange.num_preempted,
    )
