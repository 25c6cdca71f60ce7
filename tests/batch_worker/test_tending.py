"""Which steps of a batch are due."""

from batch_worker.tending import due_steps, undone_shards
from broker.batch_records import BatchView
from messages.batch import Batch, BatchStatus

BATCH = Batch("batch_x", "", "/generate", "file-x", "24h", 0, 1)


def view(status: BatchStatus) -> BatchView:
    return BatchView(BATCH, status, 9, 0, 0, {"shard_starts": "[0,10,20]"})


def test_the_input_is_looked_through_once() -> None:
    assert due_steps(view(BatchStatus.VALIDATING), [], set(), 0) == ["plan"]
    assert due_steps(view(BatchStatus.VALIDATING), [], {"plan"}, 0) == []


def test_shards_that_nobody_has_are_dealt_out_while_there_is_room() -> None:
    running = view(BatchStatus.IN_PROGRESS)
    undone = undone_shards(running, {1})
    assert undone == [0, 2]
    assert due_steps(running, undone, set(), 5) == ["shard-0", "shard-2"]
    assert due_steps(running, undone, {"shard-0"}, 5) == ["shard-2"]
    assert due_steps(running, undone, set(), 1) == ["shard-0"]
    assert due_steps(running, undone, set(), 0) == []


def test_files_are_written_once_no_shard_is_being_run() -> None:
    for status in (BatchStatus.FINALIZING, BatchStatus.CANCELLING):
        assert due_steps(view(status), [0, 2], {"shard-2"}, 5) == []
        assert due_steps(view(status), [0, 2], {"finalize"}, 5) == []
        assert due_steps(view(status), [0, 2], set(), 0) == ["finalize"]
