"""The dashboard, the alert rules and the scrape configuration name what exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from observability.catalogue import METRICS, exposed_names

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROMETHEUS_LABELS = {"job", "instance", "le"}
METRIC_OF = {name: metric for metric in METRICS.values() for name in exposed_names(metric)}


def dashboard() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((MONITORING / "grafana" / "pdq.json").read_text())["panels"]
    return panels


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return read


def expressions() -> list[tuple[str, str]]:
    """(where, what)"""
    shown = [(panel["title"], target["expr"]) for panel in dashboard() for target in panel.get("targets", [])]
    return shown + [(rule["alert"], rule["expr"]) for rule in rules()]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_expression_names_series_and_labels_that_exist(where: str, expression: str) -> None:
    names = re.findall(r"\b(?:pdq_|vllm:)\w+", expression)
    assert names or where in ("PdqTargetDown", "PdqNoApi")
    assert set(names) <= METRIC_OF.keys()
    labels = {label for name in names for label in METRIC_OF[name].labels} | PROMETHEUS_LABELS
    for listed in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", listed)) <= labels, expression
    for selector in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= labels, expression
    for name in names:  # a rate is of what only grows
        is_rated = re.search(rf"(rate|increase)\({re.escape(name)}\b", expression) is not None
        assert is_rated == name.endswith(("_total", "_bucket", "_sum", "_count")), expression
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_labels_that_its_expression_keeps(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    said = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    kept = {label for listed in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in re.split(r",\s*", listed)}
    assert said <= kept | (PROMETHEUS_LABELS if rule["expr"].startswith("up") else set())


def test_what_the_dashboard_leaves_out_is_said() -> None:
    shown = {METRIC_OF[name].name for _, text in expressions() for name in re.findall(r"\bpdq_\w+", text)}
    left_out = {"pdq_kv_capacity_tokens", "pdq_output_tokens", "pdq_prefill_tokens_per_second", "pdq_queue_jobs"}
    assert METRICS.keys() - shown == left_out | {"pdq_decode_seconds"}


def test_prometheus_scrapes_every_replica_on_the_port_that_it_has() -> None:
    services = compose()["services"]
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs}
    assert found.keys() == {"api", "prefill", "decode"}
    for name, discovery in found.items():
        environment = services[name]["environment"]
        port = environment["PDQ_API__PORT" if name == "api" else "PDQ_METRICS__PORT"]
        assert (discovery["names"], discovery["type"], str(discovery["port"])) == ([name], "A", port)
        assert environment["PDQ_API__HOST" if name == "api" else "PDQ_METRICS__HOST"] == "0.0.0.0"
        assert set(services[name]["networks"]) & set(services["prometheus"]["networks"])


def test_what_compose_mounts_is_there_and_nothing_of_it_starts_unasked() -> None:
    services = compose()["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() or source in compose()["volumes"], source
    (published,) = services["grafana"]["ports"]
    assert published.startswith("${GRAFANA_HOST:-127.0.0.1}") and "ports" not in services["prometheus"]


def test_the_dashboard_asks_the_datasource_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((MONITORING / "grafana" / "datasource.yml").read_text())["datasources"]
    panels = [panel for panel in dashboard() if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard()}) == len(dashboard())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard()]
    assert len(set(places)) == len(places)


def test_every_alert_is_seen_to_fire_and_not_to() -> None:
    """What promtool runs; docs/metrics.md says how."""
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    samples = [each["exp_samples"] for case in cases for each in case.get("promql_expr_test", [])]
    fired = set(re.findall(r'alertname="(\w+)"', json.dumps(samples).replace("\\", "")))
    fired |= {each["alertname"] for case in cases for each in case.get("alert_rule_test", []) if "exp_alerts" in each}
    assert fired == {rule["alert"] for rule in rules()}
    quiet = cases[0]
    assert [each["exp_samples"] for each in quiet["promql_expr_test"]] == [[]]
    said = " ".join(one["series"] for one in quiet["input_series"])
    asked = {name for rule in rules() for name in re.findall(r"\b(?:pdq_\w+|up)\b", rule["expr"])}
    assert all(f"{name}{{" in said for name in asked), "an alert is quiet for lack of what it looks at"
