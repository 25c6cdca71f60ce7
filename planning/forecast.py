"""From a simulation to figures, with the bench's definitions (`bench/report.py`); and which cluster is enough. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.report import Distribution, Limits, distribution_ms
from planning.cluster import Simulated, Size, simulate
from planning.costs import StepCosts
from planning.load import Load, Request
from settings.loading import Settings


@dataclass(frozen=True, slots=True)
class Objective:
    """What is promised: so large a share of all requests within both limits."""

    limits: Limits
    share: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """The figures of one alternative."""

    size: Size
    num_requests: int
    duration_s: float
    ttft_ms: Distribution
    tpot_ms: Distribution
    output_tokens_per_s: float
    attainment: float  # requests within the limits / all
    goodput_rps: float
    prefill_use: float  # share of the time that prefill workers computed, mean over them
    decode_use: float
    num_preempted: int
    is_enough: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many workers there may be."""

    max_prefill: int
    max_decode: int
    num_hosts: int = 1


def forecast(simulated: Simulated, size: Size, objective: Objective) -> Forecast:
    """The figures of a simulation."""
    requests, duration_s = simulated.requests, simulated.duration_s
    num_met = sum(meets(request, objective.limits) for request in requests)
    attainment = num_met / len(requests) if requests else 1.0

    def per_s(amount: float) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    return Forecast(
        size=size,
        num_requests=len(requests),
        duration_s=duration_s,
        ttft_ms=distribution_ms([request.ttft_s for request in requests]),
        tpot_ms=distribution_ms([tpot_s for request in requests if (tpot_s := request.tpot_s) is not None]),
        output_tokens_per_s=per_s(sum(request.output_tokens for request in requests)),
        attainment=attainment,
        goodput_rps=per_s(num_met),
        prefill_use=per_s(sum(simulated.prefill_busy_s) / size.num_prefill),
        decode_use=per_s(sum(simulated.decode_busy_s) / size.num_decode),
        num_preempted=simulated.num_preempted,
        is_enough=attainment >= objective.share,
    )


def meets(request: Request, limits: Limits) -> bool:
    """Whether a request counts for goodput."""
    tpot_s = request.tpot_s
    return request.ttft_s * 1000 <= limits.ttft_ms and (tpot_s is None or tpot_s * 1000 <= limits.tpot_ms)


def sizes_by_total(bounds: Bounds) -> Iterator[list[Size]]:
    """Every alternative, fewest workers in total first; those of one total together, fewest prefill workers first."""
    for total in range(2, bounds.max_prefill + bounds.max_decode + 1):
        least, most = max(1, total - bounds.max_decode), min(bounds.max_prefill, total - 1)
        yield [Size(num, total - num, bounds.num_hosts) for num in range(least, most + 1)]


def search(
    costs: StepCosts,
    settings: Settings,
    make_load: Callable[[], Load],
    objective: Objective,
    bounds: Bounds,
    on_size: Callable[[Size], None],
    on_end: Callable[[Request], None],
) -> list[Forecast]:
    """Simulates alternatives until the first total of workers with one that is enough, or to the bounds.

    `on_size` is told before, `on_end` at each simulated request's end. Raises ConfigError as `simulate` does.
    """
    forecasts: list[Forecast] = []
    for sizes in sizes_by_total(bounds):
        for size in sizes:
            on_size(size)
            forecasts.append(forecast(simulate(costs, settings, size, make_load(), on_end), size, objective))
        if any(one.is_enough for one in forecasts):
            break
    return forecasts


def recommended(forecasts: list[Forecast]) -> Forecast | None:
    """The one with the fewest workers that is enough, of those the one with the largest share; None: none."""
    enough = [one for one in forecasts if one.is_enough]
    return min(enough, key=lambda one: (one.size.num_prefill + one.size.num_decode, -one.attainment), default=None)


def nearest(forecasts: list[Forecast]) -> Forecast:
    """The one that comes nearest to the share; of equal ones the first. At least one must be there."""
    return max(forecasts, key=lambda one: one.attainment)
