"""One case, measured: open the streams, let the worker step, read until the last stream has ended.

Knows the order of things; what runs is cluster.py's, what is read client.py's, what it means latency.py's.
"""

import gc
import time

import msgspec
import orjson

from bench.relay.case import Case
from bench.relay.client import Streams
from bench.relay.cluster import Cluster
from bench.relay.latency import Broken, Result, WorkerReport, result_of
from bench.relay.stream_bytes import token_times

QUIET_S = 20.0  # when nothing has come for so long, something is broken
_PROMPT = "Say something about queues."


def measure(cluster: Cluster, case: Case) -> Result:
    """The figures of `case`. Raises Broken, StreamsLost, ClusterFailed."""
    streams = Streams(cluster.port)
    try:
        cluster.order(msgspec.json.encode(case))
        request = request_bytes(case.num_steps + 1)
        for _ in range(case.num_streams):
            streams.begin(request)
        streams.read_until(lambda: streams.num_answered == case.num_streams, QUIET_S)
        streams.check_begun()
        cluster.answer()  # it has taken all of them
        gc.collect()
        gc.disable()  # what is kept grows and nothing of it is garbage
        before, client_s = cluster.cpu_s(), time.process_time()
        cluster.order(b"go")
        streams.read_until(lambda: streams.all_ended, QUIET_S)
        client_s = time.process_time() - client_s
        cpu_s = {name: after_s - before[name] for name, after_s in cluster.cpu_s().items()}
        gc.enable()
        report = msgspec.json.decode(cluster.answer(), type=WorkerReport)
        try:
            arrivals = [token_times(reads) for reads in streams.reads]
        except ValueError as error:
            raise Broken(str(error)) from None
        return result_of(case, report, arrivals, {**cpu_s, "client": client_s})
    finally:
        gc.enable()
        streams.close()


def request_bytes(num_tokens: int) -> bytes:
    """A POST of /generate_stream whose stream can be resumed."""
    body = orjson.dumps({"inputs": _PROMPT, "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}})
    head = (
        "POST /generate_stream HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-SSE-Ids: true\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
