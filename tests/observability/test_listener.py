"""A worker's own /metrics."""

import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.status_board import StatusBoard
from errors import ConfigError
from messages.worker_status import Role
from observability.catalogue import PREEMPTED
from observability.listener import metrics_listener
from settings.observability import MetricsSettings
from tests.end_to_end.cluster import free_port


def names_at(port: int) -> set[str]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_it_says_what_the_worker_has_counted_by_then() -> None:
    board, port = StatusBoard(Role.DECODE), free_port()
    with metrics_listener(MetricsSettings(port=port), board.meters, board.read, "m"):
        board.meters.count(PREEMPTED, 3)
        board.meters.decode.observe(2.0)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert f'pdq_preemptions_total{{role="decode",worker="{board.worker_id}"}} 3.0' in text
        assert 'pdq_decode_seconds_bucket{le="2.5"} 1.0' in text
        assert f'vllm:request_decode_time_seconds_count{{engine="{board.worker_id}",model_name="m"}} 1.0' in text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_vllms_names_can_be_left_out() -> None:
    board, port = StatusBoard(Role.PREFILL), free_port()
    with metrics_listener(MetricsSettings(port=port, vllm_names=False), board.meters, board.read, "m"):
        names = names_at(port)
        assert "pdq_prefill_seconds_count" in names and not any(name.startswith("vllm:") for name in names)


def test_a_port_that_is_taken_stops_the_start_with_a_sentence() -> None:
    board = StatusBoard(Role.DECODE)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"PDQ_METRICS__PORT = {port}: cannot listen"):
            with metrics_listener(MetricsSettings(port=port), board.meters, board.read, "m"):
                pass


def test_port_0_listens_nowhere() -> None:
    board = StatusBoard(Role.DECODE)
    with metrics_listener(MetricsSettings(), board.meters, board.read, "m"):
        pass
