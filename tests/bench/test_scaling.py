"""How work grows: the arithmetic, the plot as a document, and a real cluster whose workers sleep."""

import asyncio
import xml.etree.ElementTree as ElementTree

import pytest

from bench.http_stream import resolve
from bench.load import Load, Outcome, run_workload
from bench.options import StyleName, wire_style
from bench.prompts import PromptSource
from bench.record import RequestRecord
from bench.scaling.__main__ import _workers_chart, _workers_table
from bench.scaling.growth import AtWorkers, borne_by_one, steady_rps, worker_counts
from bench.scaling.plot import HEIGHT, WIDTH, Series, line_chart
from bench.scaling.simulated_cluster import simulated_cluster
from bench.scaling.simulated_role import Pace
from bench.workload import Concurrency, Group, Workload
from messages.worker_status import Role

SVG = "{http://www.w3.org/2000/svg}"


def ended(end_s: float, is_good: bool = True) -> RequestRecord:
    record = RequestRecord("all", 0, 4, 2, 0.0, end_s=end_s)
    if not is_good:
        record.fail("timeout")
    return record


def test_the_steady_rate_counts_what_ends_well_inside_the_window() -> None:
    records = [ended(100.5), ended(102.0), ended(103.9), ended(104.0), ended(103.0, is_good=False)]
    assert steady_rps(Outcome(100.0, records), from_s=2.0, for_s=2.0) == 1.0


def test_a_worker_of_each_role_bears_about_the_same() -> None:
    prefill, decode = borne_by_one()
    assert prefill == pytest.approx(decode, rel=0.05)


def test_both_roles_and_each_alone_are_grown_once() -> None:
    counts = worker_counts()
    assert len(set(counts)) == len(counts) == 10
    assert {(1, 1), (4, 4), (1, 4), (4, 1)} <= set(counts)


def test_the_table_and_the_plot_say_what_was_measured() -> None:
    prefill, decode = borne_by_one()
    measured = [AtWorkers(p, d, 0.5 * min(p * prefill, d * decode), 0, 0.7) for p, d in worker_counts()]
    assert _workers_table(measured).count("| 50% ") == 10
    drawn = ElementTree.fromstring(_workers_chart([], measured))
    lines = drawn.findall(f"{SVG}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [4, 4, 4, 4]
    assert len(drawn.findall(f"{SVG}circle")) == 12  # the bound is dashed and has none


def test_a_chart_is_well_formed_and_inside_its_borders() -> None:
    series = [Series("a < b & c", [(1, 30.0), (32, 280.0)]), Series("bound", [(1, 10.0), (32, 320.0)], is_dashed=True)]
    drawn = ElementTree.fromstring(line_chart("tokens & more", "x", "y", series))
    texts = [element.text for element in drawn.iter(f"{SVG}text")]
    assert "a < b & c" in texts and "32" in texts and "320" in texts  # the axis ends at a round number above all
    for line in drawn.findall(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert "prefers-color-scheme" in (drawn.findtext(f"{SVG}style") or "")


@pytest.mark.timeout(180)
def test_simulated_workers_take_the_time_they_are_told_and_serve_every_request() -> None:
    pace = Pace(prefill_token_s=0.001, decode_step_s=0.05)
    group = Group("all", Concurrency(4), prompt_tokens=40, output_tokens=5, num_requests=8)

    async def run() -> Outcome:
        async with simulated_cluster({Role.PREFILL: 2, Role.DECODE: 1}, pace, max_running=4) as url:
            style = wire_style(StyleName.LIGHTLLM)
            load = Load(await resolve(url, style.PATH), style, PromptSource(1, 0, 90), idle_timeout_s=60.0)
            return await run_workload(load, Workload("test", (group,)), 0, lambda record: None)

    records = asyncio.run(run()).records
    assert [record.failure for record in records] == [None] * 8
    for record in records:
        assert record.ttft_s > 40 * pace.prefill_token_s
        # 4 steps, the first of which may have begun. From the request on: a busy machine may read a first token late.
        assert record.e2e_s > 40 * pace.prefill_token_s + 3 * pace.decode_step_s
