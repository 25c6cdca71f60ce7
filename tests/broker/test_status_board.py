"""What a worker says of itself."""

import time

from broker.status_board import StatusBoard
from messages.worker_status import Role, WorkerState


def test_a_worker_loads_then_is_ready_and_says_how_long_its_loop_stands_still() -> None:
    board = StatusBoard(Role.PREFILL)
    board.say("loading weights 43%")
    loading = board.read()
    assert (loading.state, loading.detail, loading.capacity_tokens) == (WorkerState.LOADING, "loading weights 43%", 0)

    board.ready(model_hash="hash", block_size=16, num_blocks=10)
    ready = board.read()
    assert (ready.state, ready.detail, ready.capacity_tokens, ready.free_blocks) == (WorkerState.READY, "", 160, 10)

    board.tick(free_blocks=3, num_running=2)
    began = time.monotonic()
    first = board.read()
    while time.monotonic() - began < 0.02:
        pass
    second = board.read()
    assert (second.free_blocks, second.num_running) == (3, 2)
    assert second.idle_s - first.idle_s >= 0.02
    assert second.worker_id == first.worker_id != StatusBoard(Role.PREFILL).worker_id
