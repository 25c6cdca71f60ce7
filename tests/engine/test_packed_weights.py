"""Packed weights: written once, mapped by whoever comes, the same tokens from either."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import checkpoint, packed_weights, weights
from engine.feed_forward import Mlp
from engine.kv_pool import KVLayout, KVPool
from engine.model import Model
from engine.model_runner import ModelRunner
from engine.packed_weights import FILES_KEPT, PackedWeights
from engine.tensor_parallel import Shard
from engine.weights import load_model
from kernels import cpu_build
from kernels.cpu_linear import PanelWeight
from kernels.ops import plain_ops
from kernels.panels import PanelMatrix
from tests.tiny_models import greedy, prompts, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_model_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2: oneDNN's layout is its own")
    monkeypatch.setattr(weights, "SMALLEST_BYTES", 0)


def load(path: Path, directory: Path, said: list[str] | None = None, dtype: torch.dtype | None = None) -> Model:
    lines: list[str] = [] if said is None else said
    return load_model(path, dtype, CPU, packed=PackedWeights(directory, lines.append))


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.weights"))


def mapped_at(model: Model, path: Path) -> bool:
    """Whether the model's weights lie in a read-only, shared mapping of the file."""
    mlp = model._weights.layers[1].mlp
    assert isinstance(mlp, Mlp)
    weight = mlp.down.weight
    assert isinstance(weight, PanelWeight | PanelMatrix)
    address = weight.panels.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split()[1] == "r--s" and line.endswith(str(path))
    return False


def tokens_of(model: Model) -> list[list[int]]:
    layout = KVLayout(model.config.num_layers, model.num_kv_heads, 16, model.config.head_dim, model.dtype)
    runner = ModelRunner(model, KVPool.allocate(layout, 64))
    return greedy(runner, prompts(3, 40), 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_biased", "qwen3", "llama_reward", "qwen2_reward"])
def test_a_second_load_maps_what_the_first_wrote_and_means_the_same(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    path = tiny_model(name).path
    said: list[str] = []
    first = load(path, tmp_path, said, dtype)
    assert any("writing" in line for line in said)
    (file,) = files(tmp_path)
    written = file.stat().st_mtime_ns, file.stat().st_ino
    second = load(path, tmp_path, said := [], dtype)
    assert said == [] and files(tmp_path) == [file] and file.stat().st_ino == written[1]
    assert mapped_at(first, file) and mapped_at(second, file)
    private = load_model(path, dtype, CPU)
    assert first.model_hash == second.model_hash == private.model_hash
    if not private.config.is_reward:
        assert tokens_of(second) == tokens_of(first) == tokens_of(private)


def test_two_that_start_at_once_write_once(tmp_path: Path) -> None:
    program = f"""
import sys, torch
from pathlib import Path
from engine import weights
from engine.packed_weights import PackedWeights
weights.SMALLEST_BYTES = 0
model = weights.load_model(Path({str(tiny_model("llama").path)!r}), None, torch.device("cpu"),
                           packed=PackedWeights(Path({str(tmp_path)!r}), print))
"""
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) for _ in "12"
    ]
    said = "".join(process.communicate(timeout=120)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count("writing the packed weights") == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other format"])
def test_a_torn_file_is_made_anew(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model("llama").path
    expected = tokens_of(load(path, tmp_path))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    file.unlink()  # the models above have it mapped: a file that was damaged in place would be SIGBUS for them
    match damage:
        case "cut":
            del content[-4096:]
        case "header":
            content[200] ^= 1
        case "empty":
            content.clear()
        case "other format":
            content[:4] = b"\x7fELF"
    file.write_bytes(content)
    said: list[str] = []
    model = load(path, tmp_path, said)
    assert any("writing" in line for line in said)
    assert tokens_of(model) == expected
    load(path, tmp_path, said := [])
    assert said == []


def test_a_changed_model_gets_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SMALL_TENSOR_BYTES", 1 << 10)
    model_dir, directory = tmp_path / "model", tmp_path / "weights"
    shutil.copytree(tiny_model("llama").path, model_dir)
    before = load(model_dir, directory)
    tensors = load_file(model_dir / "model.safetensors")
    # A matrix: the hash of the model looks at norms alone and does not see it.
    tensors["model.layers.0.mlp.down_proj.weight"] = -tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, model_dir / "model.safetensors")
    after = load(model_dir, directory)
    assert len(files(directory)) == 2
    assert after.model_hash == before.model_hash and tokens_of(after) != tokens_of(before)


def test_types_and_parts_of_a_model_have_their_own(tmp_path: Path) -> None:
    path = tiny_model("llama_even").path
    seen: list[str] = []

    class Noting(PackedWeights):
        def get(self, key: str, make: object) -> object:  # type: ignore[override]
            seen.append(key)
            return make()  # type: ignore[operator]

    class Part:
        def __init__(self, rank: int) -> None:
            self.shard = Shard(rank, 2)

    noting = Noting(tmp_path, print)
    load_model(path, torch.float32, CPU, packed=noting)
    for rank in (0, 1):
        load_model(path, torch.float32, CPU, communicator=Part(rank), packed=noting)  # type: ignore[arg-type]
    assert len(set(seen)) == 3


def test_where_nothing_can_be_written_the_weights_are_private(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    model = load(tiny_model("llama").path, blocked / "weights")
    assert tokens_of(model) == tokens_of(load_model(tiny_model("llama").path, None, CPU))
    assert "".join(capfd.readouterr()).count("weights_not_shared") == 1


def test_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = load(tiny_model("llama").path, tmp_path)
    assert tokens_of(model) and [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_files_mapped_last_are_kept(tmp_path: Path) -> None:
    path = tiny_model("llama").path
    first = load(path, tmp_path)
    (mine,) = files(tmp_path)
    for number in range(FILES_KEPT):
        other = tmp_path / f"{number}.weights"
        other.write_bytes(b"")
        os.utime(other, (1000 + number, 1000 + number))
    (tmp_path / "dead.tmp").write_bytes(b"")
    os.utime(mine, (1, 1))
    load(path, tmp_path)  # mapped just now, though it is the oldest
    load(tiny_model("qwen3").path, tmp_path)
    assert mine in files(tmp_path) and len(files(tmp_path)) == FILES_KEPT
    assert not (tmp_path / "0.weights").exists() and not (tmp_path / "dead.tmp").exists()
    assert tokens_of(first)


def test_a_layout_that_means_nothing_elsewhere_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "select_ops", plain_ops)
    load(tiny_model("llama").path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_small_model_stays_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALLEST_BYTES", packed_weights.SMALLEST_BYTES)
    load(tiny_model("llama").path, tmp_path)
    assert list(tmp_path.iterdir()) == []
