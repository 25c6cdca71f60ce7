"""Checkpoints load whole or not at all, and their hash tells them apart."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.model import Model
from engine.tensor_names import wqkv_rows
from engine.weights import load_model
from errors import ModelError
from tests.tiny_models import sharded, tiny_model

CPU = torch.device("cpu")


def load(path: Path) -> Model:
    return load_model(path, None, CPU)


def changed(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of the tiny llama whose tensors are changed."""
    path = tmp_path / "changed"
    shutil.copytree(tiny_model("llama").path, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def test_dtype_is_the_checkpoints_or_the_wanted_one() -> None:
    path = tiny_model("llama").path
    assert load(path).dtype == torch.float32
    assert load_model(path, torch.bfloat16, CPU).dtype == torch.bfloat16


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    load_model(tiny_model("llama").path, None, CPU, shares.append)
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert 0 < shares[0] < 1
    assert shares[-1] == 1.0


def test_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    path = changed(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"lacks the tensor {name}"):
        load(path)


def test_unexpected_tensor(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda tensors: tensors.update({"model.layers.3.mlp.up_proj.weight": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"no use for: \['model.layers.3.mlp.up_proj.weight'\]"):
        load(path)


def test_old_rotary_buffers_are_let_pass(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load(changed(tmp_path, lambda tensors: tensors.update({name: torch.ones(5)})))


def test_wrong_shape(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(61)}))
    with pytest.raises(ModelError, match=r"model.norm.weight has shape \[61\], config.json: \[60\]"):
        load(path)


def test_integer_weights(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(60, dtype=torch.int8)}))
    with pytest.raises(ModelError, match="model.norm.weight is torch.int8"):
        load(path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "shards"
    shutil.copytree(sharded("llama"), path)
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=f"cannot read .*{shard.name}"):
        load(path)
    shard.unlink()
    with pytest.raises(ModelError, match=f"cannot read .*{shard.name}"):
        load(path)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="outside its directory"):
        load(path)
    index.write_text("{}")
    with pytest.raises(ModelError, match="no index of safetensors"):
        load(path)
    index.unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors.index.json and no model.safetensors"):
        load(path)


def test_hash_is_equal_for_equal_and_different_for_different_weights(tmp_path: Path) -> None:
    hashes = {name: load(tiny_model(name).path).model_hash for name in ("llama", "mistral", "qwen3")}
    assert len(set(hashes.values())) == 3
    copied = tmp_path / "copy"
    shutil.copytree(tiny_model("llama").path, copied)
    assert load(copied).model_hash == hashes["llama"]
    finetuned = changed(tmp_path, lambda tensors: tensors["model.norm.weight"].mul_(1.01))
    assert load(finetuned).model_hash != hashes["llama"]


# InternLM2's layout of 2 groups of 3 queries, a key and a value, head_dim 1
WQKV = ["q0", "q1", "q2", "k0", "v0", "q3", "q4", "q5", "k1", "v1"]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        (range(6), range(2), ["q0", "q1", "q2", "q3", "q4", "q5", "k0", "k1", "v0", "v1"]),
        (range(3, 6), range(1, 2), ["q3", "q4", "q5", "k1", "v1"]),  # rank 1 of 2
        (range(1, 2), range(0, 1), ["q1", "k0", "v0"]),  # rank 1 of 6: heads of one group on several ranks
    ],
)
def test_wqkv_rows_by_hand(heads: range, kv_heads: range, expected: list[str]) -> None:
    ranges = wqkv_rows(heads, kv_heads, queries_per_group=3, head_dim=1)
    assert [WQKV[row] for rows in ranges for row in rows] == expected
    doubled = wqkv_rows(heads, kv_heads, queries_per_group=3, head_dim=2)
    assert [(rows.start, rows.stop) for rows in doubled] == [(2 * rows.start, 2 * rows.stop) for rows in ranges]
