"""The rows of a shard that is over, in the file store: `LINE 0|1 ROW`, a line each. Blocking; knows no Redis."""

from collections.abc import Mapping

from file_store import FileStore

Rows = Mapping[int, tuple[bool, bytes]]  # line -> whether it completed, its row


def folder(batch_id: str) -> str:
    """Where the parts of a batch are."""
    return f"parts/{batch_id}"


def write_part(store: FileStore, batch_id: str, shard: int, rows: Rows) -> None:
    """Keep the rows. The same shard's are the same rows, however often."""
    with store.create(f"{folder(batch_id)}/{shard}") as file:
        for line, (is_completed, row) in sorted(rows.items()):
            file.write(b"%d %d %b\n" % (line, is_completed, row))


def read_part(store: FileStore, batch_id: str, shard: int) -> Rows:
    """The rows. Raises FileGone."""
    rows: dict[int, tuple[bool, bytes]] = {}
    with store.read(f"{folder(batch_id)}/{shard}") as file:
        for raw in file:
            line, is_completed, row = raw.rstrip(b"\n").split(b" ", 2)
            rows[int(line)] = (is_completed == b"1", row)
    return rows
