"""Health is a verdict on what the API answers and what the registry says."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.health import api_problem, cluster_problem, in_url, is_api_here, own_problem, probe_address
from messages.worker_status import Role, WorkerState, WorkerStatus

NO_PROGRESS_S = 2.5


def worker(
    role: Role = Role.DECODE,
    state: WorkerState = WorkerState.READY,
    host: str = "here",
    idle_s: float = 0.0,
    detail: str = "",
) -> WorkerStatus:
    return WorkerStatus(f"{role}-1", role, state, host, 7, 0, idle_s=idle_s, detail=detail)


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers every GET with `status`; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_api_is_well_when_it_says_so() -> None:
    with answering(200) as port:
        assert api_problem("0.0.0.0", port) == ""
        assert is_api_here("0.0.0.0", port)
    with answering(503) as port:
        assert api_problem("127.0.0.1", port) == "/health answers 503"
    port = free_port()
    assert "no answer from" in api_problem("127.0.0.1", port)
    assert not is_api_here("127.0.0.1", port)


def test_own_worker() -> None:
    assert own_problem([worker()], "here", NO_PROGRESS_S) == ""
    assert "no live worker" in own_problem([worker(host="there")], "here", NO_PROGRESS_S)
    loading = worker(state=WorkerState.LOADING, detail="loading weights 43 %")
    assert own_problem([loading], "here", NO_PROGRESS_S) == "decode-1 is loading (loading weights 43 %)"
    assert "no progress" in own_problem([worker(idle_s=2.5)], "here", NO_PROGRESS_S)
    assert own_problem([worker(idle_s=2.4)], "here", NO_PROGRESS_S) == ""
    assert own_problem([worker(state=WorkerState.DRAINING)], "here", NO_PROGRESS_S) != ""


def test_a_cluster_needs_one_of_each_role() -> None:
    prefill, decode = worker(Role.PREFILL), worker(Role.DECODE)
    assert cluster_problem([prefill, decode], NO_PROGRESS_S) == ""
    assert cluster_problem([prefill], NO_PROGRESS_S) == "decode: 0/0 ready"
    wedged = worker(Role.PREFILL, idle_s=60)
    assert cluster_problem([wedged, decode], NO_PROGRESS_S).startswith(
        "prefill: 0/1 ready (prefill-1 has made no progr"
    )
    assert cluster_problem([wedged, prefill, decode], NO_PROGRESS_S) == ""


@pytest.mark.parametrize(
    "host, address, url", [("0.0.0.0", "127.0.0.1", "127.0.0.1"), ("::", "::1", "[::1]"), ("10.1.2.3",) * 3]
)
def test_where_a_listening_address_is_reached(host: str, address: str, url: str) -> None:
    assert (probe_address(host), in_url(host)) == (address, url)
