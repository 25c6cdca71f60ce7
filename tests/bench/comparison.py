"""Documents of comparisons that nobody has measured, for tests of what comes out of them."""

from dataclasses import replace

from bench.compare.document import DEMO, FORMAT_VERSION, Attempt, Column, Document
from bench.machine import CpuUse, read_machine
from bench.peers.server import PORT
from bench.report import Distribution, Limits, Summary

EMPTY = Distribution(0, None, None, None, None, None)
CLEAN = CpuUse(10.0, 1.0, 8.0, 9.1, 0.1, True)


def summary(tokens_per_s: float, ttft_ms: float, group: str = "all", **others: float) -> Summary:
    itl = Distribution(10, 5.0, 5.0, 6.0, others.get("itl_p99", 7.0), 8.0)
    num_failed = int(others.get("num_failed", 0))
    return Summary(
        group=group,
        num_sent=8,
        num_succeeded=8 - num_failed,
        failures=[],
        duration_s=10.0,
        offered_rps=others.get("offered"),
        requests_per_s=1.0,
        output_tokens=1024,
        failed_output_tokens=0,
        untimed_output_tokens=0,
        output_tokens_per_s=tokens_per_s,
        total_tokens_per_s=2 * tokens_per_s,
        ttft_ms=Distribution(8, ttft_ms, ttft_ms, ttft_ms, ttft_ms, ttft_ms),
        itl_ms=itl,
        tpot_ms=EMPTY,
        e2e_ms=EMPTY,
        num_met_limits=8,
        attainment=others.get("attainment", 1.0),
        goodput_rps=1.0,
        send_delay_ms=EMPTY,
    )


def column(server: str, weights: str = "16-bit", is_peer: bool = True, model: str = DEMO) -> Column:
    return Column(server, model, weights, is_peer, f"{server} --port {PORT}", {"A": "1"}, {server: "1.0"})


def document(*columns: Column) -> Document:
    return Document(FORMAT_VERSION, "python -m bench.compare", read_machine(), Limits(1000, 60), 0, 7, list(columns))


def attempt(server: str, workload: str, *summaries: Summary, round_: int = 0, is_clean: bool = True) -> Attempt:
    return Attempt(server, DEMO, workload, round_, None, list(summaries), replace(CLEAN, is_clean=is_clean))
