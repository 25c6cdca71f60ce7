"""The input tensors of the decode graphs: they keep their place in memory, a step only changes what they hold.

A step's inputs go to the device as one copy of one packed buffer. Token ids, positions, slots and lengths are read
where they arrive. Block tables arrive as wide as the step's longest and are spread over tables of full width there: a
graph's tables must not change shape, but most of a full table is empty (at 131072 tokens and 256 rows, 8 MiB).
Knows no model and no graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.decode_rows import DecodeRows

_ROW_BYTES = 8 + 8 + 8 + 4  # token id, position, slot, length
_NO_SLOT = -1  # kv_write skips it
# Every part begins at a multiple of 16 bytes, as Triton would compile a kernel again for a pointer that does not.
_ROWS_MULTIPLE = 4


class DecodeInputs:
    """Inputs of up to `max_rows` rows whose block tables have up to `max_blocks` entries.

    A row that pads a batch has length 0, no slot and block 0 in its table: it reads and writes nothing of the pool.
    """

    def __init__(
        self, max_rows: int, max_blocks: int, device: torch.device, host_buffer: Callable[[int], Tensor]
    ) -> None:
        """host_buffer(n): uint8 [n] on the host, from where a copy to the device need not be waited for."""
        self.max_blocks = max_blocks
        self._rows = -(-max_rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        num_bytes = self._rows * _ROW_BYTES + max_rows * max_blocks * 4
        host = host_buffer(num_bytes)
        self._host = host
        self._arrived = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.token_ids, self.positions, self.slot_mapping, self.seq_lens, self._tables = self._parts(self._arrived)
        self.slot_mapping.fill_(_NO_SLOT)
        # int32 [max_rows, max_blocks]. What lies beyond a row's length is left from earlier steps: blocks of the pool.
        self.block_tables = torch.zeros((max_rows, max_blocks), dtype=torch.int32, device=device)
        # numpy writes a list into a row four times faster than torch.
        self._host_parts = [part.numpy() for part in self._parts(host)]

    def fill(self, rows: DecodeRows, num_rows: int) -> None:
        """Launch the copy of `rows`, padded to `num_rows`.

        Whoever calls has waited for the last step's result since the last call: its copy is over.
        """
        token_ids, positions, slots, seq_lens, tables = self._host_parts
        used, width = len(rows), rows.max_blocks
        for part, values, padding in (
            (token_ids, rows.token_ids, 0),
            (positions, rows.positions, 0),
            (slots, rows.slots, _NO_SLOT),
            (seq_lens, rows.seq_lens, 0),
        ):
            part[:used] = values
            part[used:num_rows] = padding
        packed = tables[: num_rows * width].reshape(num_rows, width)
        packed.fill(0)
        for row, table in zip(packed, rows.block_tables, strict=False):
            row[: len(table)] = table
        num_bytes = self._rows * _ROW_BYTES + num_rows * width * 4
        self._arrived[:num_bytes].copy_(self._host[:num_bytes], non_blocking=True)
        self.block_tables[:num_rows, :width].copy_(self._tables[: num_rows * width].view(num_rows, width))

    def _parts(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Token ids, positions, slots: int64 [rows]; lengths: int32 [rows]; tables: int32 [max_rows * max_blocks]."""
        wide = packed[: self._rows * 24].view(torch.int64)
        narrow = packed[self._rows * 24 :].view(torch.int32)
        token_ids, positions, slots = wide.view(3, self._rows)
        return token_ids, positions, slots, narrow[: self._rows], narrow[self._rows :]
