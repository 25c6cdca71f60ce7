"""The overload bench: its figures, its verdict, and a run against a server that refuses."""

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import overload as bench_overload
from bench.cli import app
from bench.overload_report import Bounds, missed, recovery_s, report_of
from bench.record import Failure, RequestRecord
from bench.report import Limits
from tests.bench.scripted_server import Script, scripted_server

LIMITS = Limits(ttft_ms=1000, tpot_ms=60)


def answered(sent_s: float = 0.0, ttft_s: float = 0.5, tpot_s: float = 0.05, num_tokens: int = 3) -> RequestRecord:
    arrivals = [sent_s + ttft_s + place * tpot_s for place in range(num_tokens)]
    return RequestRecord("g", 0, 100, num_tokens, sent_s, None, arrivals, arrivals[-1], "length")


def failed(kind: str, took_s: float = 0.01) -> RequestRecord:
    return RequestRecord("g", 0, 100, 3, 0.0, end_s=took_s, failure=Failure(kind))


def test_refused_admitted_kept_and_wasted() -> None:
    records = [
        answered(),
        answered(ttft_s=1.1),
        answered(tpot_s=0.07),
        failed("http_504", 2.0),
        failed("http_503", 0.010),
        failed("http_503", 0.030),
    ]
    report = report_of(records, LIMITS, computed_tokens=400)
    assert (report.num_sent, report.num_admitted, report.num_kept, report.num_failed) == (6, 4, 1, 1)
    assert report.refusal_ms.count == 2
    assert report.refusal_ms.max == pytest.approx(30)
    assert report.kept_share == 0.25
    assert report.wasted_share == pytest.approx(0.25)
    assert report_of(records, LIMITS, None).wasted_share is None


def test_recovery_is_when_three_probes_in_a_row_are_normal() -> None:
    idle = [answered(ttft_s=0.2), answered(ttft_s=0.4)]
    slow, fast = answered(ttft_s=0.7), answered(ttft_s=0.6)
    probes = [
        replace(probe, sent_s=100.0 + place, arrivals_s=[at + 100.0 + place for at in probe.arrivals_s])
        for place, probe in enumerate([slow, fast, fast, failed("http_503"), fast, fast, fast])
    ]
    assert recovery_s(probes, idle, 99.0) == pytest.approx(5.0)
    assert recovery_s(probes[:6], idle, 99.0) is None
    assert recovery_s(probes, [], 99.0) is None


def test_every_bound_that_is_missed_is_named() -> None:
    good = replace(report_of([answered(), failed("http_503")], LIMITS, 100), recovery_s=1.0)
    assert missed(good, Bounds()) == []
    bad = replace(report_of([answered(ttft_s=2), failed("http_503", 0.2)], LIMITS, 200), recovery_s=6.0)
    problems = missed(bad, Bounds())
    assert [re.sub(r"[0-9.]+", "N", problem) for problem in problems] == [
        "pN of the refusals is N ms, at most N ms are allowed",
        "N% of the admitted kept the limits, at least N% must",
        "N% of prefill was in vain, at most N% may be",
        "latency was back to normal after N s, N s are allowed",
    ]
    assert missed(replace(bad, recovery_s=None), Bounds())[-1].startswith("latency was back to normal never")
    assert "no overload" in missed(report_of([answered()], LIMITS, None), Bounds())[0]


@pytest.mark.parametrize("refuses", [True, False])
def test_a_run_says_what_it_saw_and_ends_with_it(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_overload, "SETTLE_S", 0.0)

    def script(index: int) -> Script:
        busy = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
        return Script(raw=busy) if refuses and index > 10 and index % 2 else Script()

    async def main() -> Any:
        async with scripted_server(script) as server:
            arguments = ["overload", "--url", server.url, "--request-rate", "10", "--duration-s", "1"]
            more = ["--prompt-tokens", "8", "--output-tokens", "4", "--factor", "2"]
            return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *more])

    # Probes are refused too, every other one: it is never normal for three in a row.
    monkeypatch.setattr(bench_overload, "GIVE_UP_S", 0.2)
    done = asyncio.run(main())
    assert "Poisson 20.00/s" in done.output, done.output
    assert "prefill in vain     not known" in done.output
    assert done.exit_code == 1
    assert ("nothing was refused" in done.output) is not refuses
    assert ("back to normal never" in done.output) is refuses
