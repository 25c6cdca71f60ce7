"""Forecasts as a table for people; in a pipe, plain text. It computes nothing."""

from rich.console import Console
from rich.table import Table

from bench.report import Distribution
from planning.costs import StepCosts, Way
from planning.forecast import Forecast, Objective, nearest, recommended


def print_plan(
    console: Console, costs: StepCosts, description: str, objective: Objective, forecasts: list[Forecast]
) -> None:
    """The alternatives, and one sentence that says which to take."""
    console.print(f"{description} · {costs.model} · {costs.machine}", style="bold", highlight=False, markup=False)
    table = Table()
    for name in ("P + D", "TTFT ms", "TPOT ms", "tokens/s", "goodput/s", "within", "busy"):
        table.add_column(name, justify="right", no_wrap=True)
    best = recommended(forecasts)
    for one in forecasts:
        table.add_row(
            f"{one.size.num_prefill} + {one.size.num_decode}",
            _halves(one.ttft_ms, 0),
            _halves(one.tpot_ms, 1),
            f"{one.output_tokens_per_s:.1f}",
            f"{one.goodput_rps:.2f}",
            f"{one.attainment:.0%}",
            f"{one.prefill_use:.0%} {one.decode_use:.0%}",
            style="bold" if one is best else None,
        )
    console.print(table)
    console.print(
        "P + D: prefill and decode workers, busy their mean; TTFT and TPOT: p50 and p90", style="dim", highlight=False
    )
    limits = objective.limits
    wanted = f"{objective.share:.0%} of requests within TTFT {limits.ttft_ms:g} ms and TPOT {limits.tpot_ms:g} ms"
    say = f"{describe(best)} is the smallest with {wanted}." if best else _none_enough(forecasts, wanted)
    console.print(say, highlight=False, markup=False, soft_wrap=True)
    preempted = sum(one.num_preempted for one in forecasts if one is best)
    if preempted:
        console.print(f"{preempted} preemptions for want of KV blocks", highlight=False)


def print_way(console: Console, way: Way) -> None:
    """What lies around the steps."""
    table = Table("around the steps", "")
    for name in Way.__struct_fields__:
        value = getattr(way, name)
        is_time = name.endswith("_s")
        shown = f"{value * 1000:.3f} ms" if is_time else f"{value:.2f}"
        table.add_row(name.removesuffix("_s").replace("_", " "), shown)
    console.print(table)


def describe(one: Forecast) -> str:
    """An alternative in a few words."""
    size = one.size
    hosts = f" on {size.num_hosts} hosts" if size.num_hosts > 1 else ""
    return f"{size.num_prefill} prefill and {size.num_decode} decode{hosts}"


def _none_enough(forecasts: list[Forecast], wanted: str) -> str:
    best = nearest(forecasts)
    return (
        f"None of these {len(forecasts)} has {wanted}; the nearest, {describe(best)}, has {best.attainment:.0%}. "
        "More workers (--max-prefill, --max-decode), more hosts (--hosts) or other limits may do."
    )


def _halves(values: Distribution, digits: int) -> str:
    """p50 and p90."""
    shown = ("-" if value is None else f"{value:.{digits}f}" for value in (values.p50, values.p90))
    return " ".join(f"{each:>5}" for each in shown)
