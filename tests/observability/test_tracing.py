"""What a trace needs before the first span: its header, its setting, its extra. What is sent: tests/end_to_end."""

import subprocess
import sys

import pytest

from errors import ConfigError
from observability.tracing import open_tracing, valid_traceparent
from settings.loading import load_settings
from settings.observability import TracingSettings

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (GOOD, GOOD),
        (GOOD.replace("-01", "-00"), GOOD.replace("-01", "-00")),
        ("", ""),
        (GOOD.upper(), ""),
        ("ff" + GOOD[2:], ""),
        (GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), ""),
        (GOOD.replace("00f067aa0ba902b7", "0" * 16), ""),
        (GOOD + "\n", ""),
        ("x" * 10_000, ""),
    ],
)
def test_only_a_traceparent_is_taken_for_one(given: str, taken: str) -> None:
    assert valid_traceparent(given) == taken


def test_nothing_is_traced_unless_an_endpoint_is_set() -> None:
    assert open_tracing(TracingSettings(), "api", "api-0") is None


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        ConfigError, match=r"PDQ_TRACING__OTLP_ENDPOINT = 'http://c:4318' .*pip install 'pdq\[tracing\]'"
    ):
        open_tracing(TracingSettings(otlp_endpoint="http://c:4318"), "api", "api-0")


def test_a_collector_that_is_away_costs_nobody_anything() -> None:
    tracing = open_tracing(TracingSettings(otlp_endpoint="http://127.0.0.1:9"), "decode", "decode-0")
    assert tracing is not None
    tracing.add("decode", GOOD, 1, 2, {"pdq.choice": 0})
    tracing.close()


def test_an_endpoint_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_TRACING__OTLP_ENDPOINT", "collector:4318")
    with pytest.raises(ConfigError, match="PDQ_TRACING__OTLP_ENDPOINT = 'collector:4318'"):
        load_settings()


def test_neither_traces_nor_a_listener_are_loaded_by_a_worker_that_has_no_use_for_them() -> None:
    # redis loads the SDK's metrics by itself, where the extra is installed.
    unwanted = {"opentelemetry.sdk.trace", "opentelemetry.exporter", "prometheus_client", "google.protobuf"}
    program = f"import sys, cli.worker_process; sys.exit(', '.join({unwanted!r} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
