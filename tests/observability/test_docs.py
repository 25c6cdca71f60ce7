"""docs/metrics.md lists every figure, with its meaning."""

import re
from pathlib import Path

from observability import catalogue
from observability.catalogue import METRICS, Kind, Metric

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def row_of(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    alias = f"`vllm:{metric.vllm}`" if metric.vllm else ""
    suffix = "_total" if metric.kind is Kind.COUNTER else ""
    return f"| `{metric.name}{suffix}` | {metric.kind} | {labels} | {metric.meaning} | {alias} |"


def test_every_figure_has_its_row_and_every_row_its_figure() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `pdq_")]
    assert sorted(rows) == sorted(map(row_of, METRICS.values()))


def test_every_name_of_vllms_is_there() -> None:
    named = set(re.findall(r"`(vllm:\w+)`", PAGE))
    ours = {f"vllm:{metric.vllm}" for metric in METRICS.values() if metric.vllm}
    counters = {f"{catalogue.VLLM_PROMPT_TOKENS}_total", f"{catalogue.VLLM_GENERATED_TOKENS}_total"}
    assert named == ours | counters | {catalogue.VLLM_WAITING}
