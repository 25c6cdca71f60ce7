"""A decoder that transformers' own code computes, with our paged attention as its attention function.

Slower than `engine/model.py`, for architectures that have no row in `engine/families.py`. The tokens of all sequences
stand in one row, as packed as they come; positions say where they belong, and attention is ours, so that no mask is
made. Whether that computes what transformers means is tried at load: a few tokens by its eager attention, the same in
two chunks and a decode step on a pool of ours. What differs is refused. Knows no sequence and no sampling.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.checkpoint import Checkpoint
from engine.kv_pool import KVLayout, KVPool
from engine.model import DecodeMeta
from engine.model_config import ModelConfig
from engine.tensor_parallel import SingleRank
from engine.transformers_config import class_of
from errors import ModelError
from kernels.decoder_step import StepRows
from kernels.ops import PrefillMeta, select_ops

TRIAL_TOKENS = 24
BLOCK_SIZE = 16  # of the trial's pool
# How far the trial's median token may be off, as a share of its hidden state's length.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
# What layers hand to their attention function and what changes nothing there.
HARMLESS = {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings", "use_cache", "return_dict"}

_numbers = itertools.count()


class TransformersModel:
    """A `ServedModel` over a transformers module."""

    has_whole_steps = False
    can_be_recorded = False
    is_reward = False

    def __init__(
        self, config: ModelConfig, module: Any, dtype: torch.dtype, device: torch.device, model_hash: str
    ) -> None:
        """Takes over `module`, which computes by eager attention. Raises ModelError where its trial fails."""
        self.config, self.dtype, self.device, self.model_hash = config, dtype, device, model_hash
        self.communicator = SingleRank()
        self._ops = select_ops(device, dtype)
        self._module, self._body = module, module.base_model
        self._pass: tuple[Tensor, PrefillMeta | DecodeMeta, KVPool] | None = (
            None  # slots, where sequences lie, the pool
        )
        self._layers_seen: list[int] = []  # of the pass
        # Masks are not made where there is one of four dimensions. Nobody reads it.
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
        with torch.inference_mode():
            self._try()

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of the KV pool that the model writes."""
        return self.config.num_kv_heads

    @property
    def needs_clean_tails(self) -> bool:
        """See `engine.model.Model`."""
        return self._ops.needs_clean_tails

    def step(self, rows: StepRows, pool: KVPool) -> tuple[Tensor, Tensor | None]:
        """There are none: see `has_whole_steps`."""
        raise NotImplementedError("a foreign model has no whole steps")

    def largest_of_step(self, rows: StepRows, pool: KVPool) -> tuple[list[int], list[float]]:
        """As `step`."""
        raise NotImplementedError("a foreign model has no whole steps")

    def embed(self, token_ids: Tensor) -> Tensor:
        """There is nothing to put in: a foreign model reads no images."""
        raise NotImplementedError("a foreign model embeds by itself")

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """See `engine.model.Model.forward`; the hidden state is after the final norm, which is in the body."""
        assert embedded is None, "a foreign model embeds by itself"
        return self._computed(token_ids, positions, slot_mapping, meta, pool, self._no_mask)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """See `engine.model.Model.logits`."""
        logits = self._module(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits[0]
        return logits.float() if out is None else out.copy_(logits)

    def score(self, hidden: Tensor) -> Tensor:
        """There is no reward head."""
        raise NotImplementedError("a foreign model does not score")

    def _computed(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
        mask: Tensor | None,
    ) -> Tensor:
        self._pass, self._layers_seen = (slot_mapping, meta, pool), []
        try:
            output = self._body(
                input_ids=token_ids.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                attention_mask=mask,
                use_cache=False,
            )
        finally:
            self._pass = None
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _attend(
        self,
        layer: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Our attention as transformers calls it. query: [1, H, T, D]; key, value: [1, KVH, T, D] -> [1, T, H, D]"""
        assert self._pass is not None, "attention is called by a pass"
        slots, meta, pool = self._pass
        index = int(layer.layer_idx)  # type: ignore[arg-type]
        self._layers_seen.append(index)
        q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
        keys, values = pool.layer(index)
        self._ops.kv_write(k, v, keys, values, slots)
        scale = q.shape[2] ** -0.5 if scaling is None else float(scaling)
        window = self.config.sliding_windows[index]
        if isinstance(meta, PrefillMeta):
            attended = self._ops.attention_prefill(q, k, v, keys, values, meta, scale, window, softcap)
        else:
            tables, lens = meta.block_tables, meta.seq_lens
            attended = self._ops.attention_decode(q, keys, values, tables, lens, scale, window, softcap)
        return attended.unsqueeze(0), None

    # ---- the trial

    def _try(self) -> None:
        config, name = self.config, f"pdq_{next(_numbers)}"
        count = min(TRIAL_TOKENS, config.max_position_embeddings)
        tokens = (torch.arange(count, device=self.device) * 7919 + 11) % config.vocab_size
        windows: list[int | None] = [None] * config.num_layers

        def attend(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any) -> Any:
            index = self._checked_layer(layer, query, key, value, mask, given)
            windows[index] = int(mask) or None
            # The window is known from here on; a second pass checks what it computes.
            self.config = replace(self.config, sliding_windows=tuple(windows))
            return self._attend(layer, query, key, value, mask, **given)

        positions = torch.arange(count, device=self.device)
        try:
            wanted = self._body(
                input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
            ).last_hidden_state[0]
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, _window_of)
            ALL_ATTENTION_FUNCTIONS.register(name, attend)
            self._module.set_attn_implementation(name)
            whole = self._in_chunks(tokens, [count], None)
            ALL_ATTENTION_FUNCTIONS.register(name, self._attend)
            parts = self._in_chunks(tokens, [count // 2, count - 1, count], self._no_mask)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError) as error:
            raise ModelError(f"{config.architecture} does not run over paged attention: {error!r}") from error
        for computed in (whole, parts):
            off = (computed - wanted).float().norm(dim=-1) / wanted.float().norm(dim=-1)
            if not off.median() <= TOLERANCE[self.dtype]:
                raise ModelError(
                    f"{config.architecture} is not computed over paged attention as transformers computes it: hidden "
                    f"states are off by {float(off.median()):.2g} of their length, {TOLERANCE[self.dtype]} is allowed"
                )
        # The head is the module's own, over a body that says what it is given.
        setattr(self._module, self._module.base_model_prefix, _Given())

    def _in_chunks(self, tokens: Tensor, ends: list[int], mask: Tensor | None) -> Tensor:
        """The hidden states of one sequence, computed up to each end in turn; a single token is a decode step."""
        config = self.config
        layout = KVLayout(config.num_layers, config.num_kv_heads, BLOCK_SIZE, config.head_dim, self.dtype)
        pool = KVPool.allocate(layout, -(-len(tokens) // BLOCK_SIZE), self.device)
        table = list(reversed(range(pool.num_blocks)))
        computed, first = [], 0
        for end in ends:
            positions = torch.arange(first, end, device=self.device)
            blocks = torch.tensor(table, device=self.device)
            slots = blocks[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
            meta: PrefillMeta | DecodeMeta = PrefillMeta.of([0, end - first], [first], [table], self.device)
            if first and end - first == 1:
                meta = DecodeMeta(
                    torch.tensor([table], dtype=torch.int32, device=self.device),
                    torch.tensor([end], dtype=torch.int32, device=self.device),
                )
            computed.append(self._computed(tokens[first:end], positions, slots, meta, pool, mask))
            if sorted(self._layers_seen) != list(range(config.num_layers)):
                raise ModelError(
                    f"{config.architecture}: attention is computed in layers {sorted(self._layers_seen)}, not once in "
                    f"each of {config.num_layers}; a decoder of attention layers alone is supported"
                )
            first = end
        return torch.cat(computed)

    def _checked_layer(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, given: dict[str, Any]
    ) -> int:
        """The layer's index. Raises ModelError where it asks for what our attention does not compute."""
        config = self.config
        shapes = [tuple(part.shape[1:]) for part in (query, key, value)]
        kv_shape = (config.num_kv_heads, query.shape[2], config.head_dim)
        if shapes != [(config.num_heads, query.shape[2], config.head_dim), kv_shape, kv_shape]:
            raise ModelError(
                f"{config.architecture}: heads of attention are {shapes}, not {config.num_heads} queries and "
                f"{config.num_kv_heads} keys and values of {config.head_dim}"
            )
        known = HARMLESS | {"scaling", "softcap", "sliding_window"}
        unknown = sorted(name for name, said in given.items() if name not in known and said is not None)
        if unknown or given.get("is_causal") is False or mask is None:
            what = unknown or ("no mask" if mask is None else "attention to later tokens")
            raise ModelError(f"{config.architecture} asks for {what} in attention, which is not supported")
        return int(layer.layer_idx)  # type: ignore[arg-type]


class _Given(nn.Module):
    """In place of a module's body: its output is what was given as embeddings."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **others: Any) -> Any:
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def _window_of(mask_function: Any, local_size: int | None = None, device: Any = None, **others: Any) -> Tensor:
    """In place of a mask: the window that it stands for, 0 for none. int64 [1, 1, 1, 1]"""
    window = local_size or 0
    query = 2 * window + TRIAL_TOKENS
    keys = torch.arange(query + 3)
    zero = torch.tensor(0)
    visible = mask_function(zero, zero, torch.tensor(query), keys)
    wanted = (keys <= query) & (keys > query - window if window else keys >= 0)
    if not torch.equal(visible.expand(keys.shape), wanted):
        raise ModelError("attention with a mask that is neither causal nor a sliding window is not supported")
    return torch.full((1, 1, 1, 1), window, dtype=torch.int64, device=device)


def load_transformers_model(
    model_dir: Path, config: ModelConfig, dtype: torch.dtype | None, device: torch.device
) -> TransformersModel:
    """The model of a directory whose config `is_foreign`. `dtype` None: the checkpoint's own.

    Raises ModelError when transformers cannot load it, lacks weights for it, or its trial fails.
    """
    dtype = dtype or getattr(torch, config.dtype)
    checkpoint = Checkpoint(model_dir)
    transformers.utils.logging.disable_progress_bar()
    try:
        module, info = class_of(config.architecture, {}).from_pretrained(
            model_dir,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"transformers cannot load {model_dir}: {error}") from None
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info.get(what):
            names = sorted(map(str, info[what]))[:5]
            raise ModelError(
                f"{model_dir}: weights do not fit {config.architecture}; {what.replace('_', ' ')}: {names}"
            )
    return TransformersModel(config, module.to(device).eval(), dtype, device, checkpoint.hash())
