"""The sampler of CUDA devices: rows become packed tensors, one copy there; the kernels; one copy back.

Chooses the tokens that `engine.sampler.sample` chooses from the same logits (see there how far "the same" goes) and
says their logprobs within float32's rounding. Waits for the device once, at the end.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.penalties import (
    MASKED_EOS_LOGIT,
    SamplingRow,
    bitmask_of,
    changes_logits,
    counts_tokens,
    eos_growth,
    masks_eos,
)
from engine.sampler import Sampled, is_greedy, to_sampled
from engine.truncation import lowest_logit, truncates
from kernels.gpu import logit_edit, sampling
from kernels.gpu.logits_bitmask import logits_bitmask
from kernels.gpu.sampling_inputs import SamplingInputs

_ALIGNMENT = 16  # bytes; where a tensor begins is part of what a kernel is compiled for
_NO_EDIT = ((0.0,), (1.0,), (0.0,), (0.0,), (np.inf,))  # added, repetition, subtracted, growth, ceiling

Ids = npt.NDArray[np.int64]
Edits = npt.NDArray[np.float64]


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
    """The next token of every row. logits: [B, V], not changed; row i belongs to `rows[i]`."""
    if logits.shape[0] != len(rows):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} sampling rows")
    if not rows:
        return []
    inputs = sampling_inputs(rows, logits.shape[1], logits.device)
    edited = logit_edit.edit(logits, inputs)
    # After the edits, which change no logit that stays: what a grammar forbids is out whatever else is said of it.
    guided = [(index, row.allowed_bits) for index, row in enumerate(rows) if row.allowed_bits is not None]
    if guided:
        places = torch.tensor([index for index, _ in guided], dtype=torch.int32)
        bitmask, places = _to_device([bitmask_of([bits for _, bits in guided]), places], logits.device)
        logits_bitmask(edited, bitmask, places)
    chosen = sampling.choose(edited, inputs).tolist()
    return to_sampled([int(token_id) for token_id, _ in chosen], [logprob for _, logprob in chosen])


def sampling_inputs(rows: Sequence[SamplingRow], vocab_size: int, device: torch.device) -> SamplingInputs:
    """What the kernels need to know of the rows, in one copy that the host does not wait for."""
    params = [row.params for row in rows]
    draws = [not is_greedy(param) for param in params]
    cuts = [is_drawn and truncates(param, vocab_size) for is_drawn, param in zip(draws, params, strict=True)]
    edited = [index for index, row in enumerate(rows) if changes_logits(row)]
    edits = [_edits(rows[index], vocab_size) for index in edited]
    edit_rows = [np.full(len(ids), index) for index, (ids, _) in zip(edited, edits, strict=True)]
    host = [
        torch.tensor([param.seed for param in params], dtype=torch.int64),
        torch.tensor([row.token_index for row in rows], dtype=torch.int64),
        torch.tensor(
            [param.top_p if cut else 1.0 for cut, param in zip(cuts, params, strict=True)], dtype=torch.float64
        ),
        torch.tensor([param.temperature if is_drawn else 1.0 for is_drawn, param in zip(draws, params, strict=True)]),
        torch.tensor([lowest_logit(param) if cut else -np.inf for cut, param in zip(cuts, params, strict=True)]),
        torch.tensor(
            [
                min(param.top_k, vocab_size) if cut and param.top_k > 0 else vocab_size
                for cut, param in zip(cuts, params, strict=True)
            ],
            dtype=torch.int32,
        ),
        torch.tensor(draws, dtype=torch.int32),
        torch.tensor([bool(param.allowed_token_ids) for param in params], dtype=torch.int32),
        torch.from_numpy(np.concatenate([*edit_rows, np.empty(0, np.int64)])).int(),
        torch.from_numpy(np.concatenate([*(ids for ids, _ in edits), np.empty(0, np.int64)])).int(),
        torch.from_numpy(np.concatenate([*(values for _, values in edits), np.empty((5, 0))], axis=1)).float(),
    ]
    return SamplingInputs(any(cuts), *_to_device(host, device))


def _edits(row: SamplingRow, vocab_size: int) -> tuple[Ids, Edits]:
    """What `penalties.apply_penalties` would do to this row: ids [E], each once, and `SamplingInputs.edits` [5, E]."""
    params = row.params
    seen, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    if counts_tokens(params):
        tokens = [*row.output_token_ids, *(row.prompt_token_ids if params.input_penalty else ())]
        seen, counts = np.unique(np.array(tokens, np.int64), return_counts=True)
    biased = np.array(list(params.logit_bias), np.int64)
    eos = np.array(row.eos_token_ids, np.int64)
    # Without a list of allowed ids, what is not edited stays; with one, it is out whatever else is said of it.
    ids = np.unique(np.array(params.allowed_token_ids or [*seen, *biased, *eos], np.int64))
    ids = ids[(ids >= 0) & (ids < vocab_size)]
    added, repetition, subtracted, growth, ceiling = edits = np.tile(np.array(_NO_EDIT), len(ids))
    to, among = _places(ids, biased)
    added[to] = np.array(list(params.logit_bias.values()))[among]
    to, among = _places(ids, seen)
    repetition[to] = params.repetition_penalty
    subtracted[to] = (counts * params.frequency_penalty + params.presence_penalty)[among]
    to, _ = _places(ids, eos)
    growth[to] = eos_growth(row.params, row.token_index)
    ceiling[to] = MASKED_EOS_LOGIT if masks_eos(row.params, row.token_index) else np.inf
    return ids, edits


def _places(ids: Ids, wanted: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Where the wanted ids stand in `ids`, which rise, and which of the wanted do."""
    found = np.isin(wanted, ids)
    return np.searchsorted(ids, wanted[found]), found


def _to_device(host: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors' copies: one piece of pinned memory, one copy, views of it."""
    offsets = [0]
    for tensor in host:
        offsets.append(-(-(offsets[-1] + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT)
    buffer = bytearray(offsets[-1])
    for offset, tensor in zip(offsets, host, strict=False):
        buffer[offset : offset + tensor.nbytes] = tensor.numpy().tobytes()
    packed = torch.frombuffer(buffer, dtype=torch.uint8)
    if device.type == "cuda":
        packed = packed.pin_memory()
    there = packed.to(device, non_blocking=True)
    return [
        there[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for offset, tensor in zip(offsets, host, strict=False)
    ]
