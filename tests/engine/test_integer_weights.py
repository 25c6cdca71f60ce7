"""int8 and int4 weights of every family: which linears have them, and that the model says what they mean.

The oracle is the same checkpoint with each matrix put through the codes and back, computed in float32.
"""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.feed_forward import Experts, Linear
from engine.model import Model
from engine.model_runner import ModelRunner, PrefillChunk
from engine.prefill_rows import PrefillRows
from engine.step import PrefillStep
from kernels import cpu_build
from kernels.panels import Kind, PanelMatrix, dequantize, quantize
from tests.tiny_models import prompts, sequences_for, tiny_model, tiny_runner

FAMILIES = ["qwen3", "internlm2", "gemma2", "gemma3", "phi4", "gpt_neox", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe"]
KINDS = [Kind.INT8, Kind.INT4]
PROMPTS = prompts(count=5, longest=45)
EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight", "embed_in.weight", "wte.weight", "wpe.weight")
ROUTERS = (".gate.weight", "shared_expert_gate.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


@pytest.fixture(autouse=True)
def library() -> None:
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2")


@functools.cache
def exact(name: str) -> Tensor:
    return logprobs_of(tiny_runner(tiny_model(name).path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_says_what_its_codes_mean(name: str, kind: Kind, tmp_path: Path) -> None:
    meant = logprobs_of(tiny_runner(through_codes(tiny_model(name).path, kind, tmp_path)))
    runner = tiny_runner(tiny_model(name).path, dtype=torch.bfloat16, kind=kind)
    off, coarse = (logprobs_of(runner) - meant).abs().mean(), (exact(name) - meant).abs().mean()
    # What is left is bfloat16 and the rows in 8 bits. A wrong order of rows or experts is off by the whole spread, and
    # codes that are none of the checkpoint's by as much as 4 bits are coarse.
    assert off < 0.1 * meant.std()
    assert coarse > 0
    if kind is Kind.INT4:
        assert off < 0.5 * coarse


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_but_routers_has_them(name: str, kind: Kind) -> None:
    model = tiny_runner(tiny_model(name).path, dtype=torch.bfloat16, kind=kind).model
    assert isinstance(model, Model)
    assert {kind_of(one) for one in linears_of(model)} == {kind}
    assert {kind_of(one) for one in model._weights.head} == {Kind.INT8}
    mixtures = [layer.mlp for layer in model._weights.layers if isinstance(layer.mlp, Experts)]
    assert bool(mixtures) == (name in ("mixtral", "qwen2_moe", "qwen3_moe"))
    for mixture in mixtures:
        routers = [mixture.router, *([mixture.shared_gate] if mixture.shared_gate is not None else [])]
        assert {kind_of(one) for one in routers} == {Kind.BF16}


def linears_of(model: Model) -> Iterator[Linear]:
    """All that a layer multiplies by, apart from what decides between experts."""
    for layer in model._weights.layers:
        yield from (layer.qkv, layer.output)
        mlps = [layer.mlp]
        if isinstance(layer.mlp, Experts):
            mlps = [*layer.mlp.experts, *([layer.mlp.shared] if layer.mlp.shared is not None else [])]
        for mlp in mlps:
            assert not isinstance(mlp, Experts)
            yield from (mlp.gate_up, mlp.down)


def kind_of(linear: Linear) -> Kind:
    assert isinstance(linear.weight, PanelMatrix)
    return linear.weight.kind


def through_codes(path: Path, kind: Kind, folder: Path) -> Path:
    """The checkpoint with every matrix that is quantized as it is read back."""
    copy = shutil.copytree(path, folder / "meant")
    (file,) = copy.glob("*.safetensors")
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.dim() == 1 or name.endswith((*EMBEDDINGS, *ROUTERS)):
            continue
        is_transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))  # GPT-2 has them [in, out]
        weight = tensor.T if is_transposed else tensor
        meant = dequantize(quantize(weight, Kind.INT8 if name.endswith(HEADS) else kind))
        tensors[name] = (meant.T if is_transposed else meant).contiguous()
    save_file(tensors, file, {"format": "pt"})
    return copy


def logprobs_of(runner: ModelRunner) -> Tensor:
    """[num_prompts, vocab], of the tokens after the prompts"""
    sequences = sequences_for(runner, PROMPTS, 1)
    rows = PrefillRows.of([PrefillChunk(one, one.num_tokens) for one in sequences], runner.kv_layout.block_size)
    return runner.compute(PrefillStep(rows, list(range(len(sequences))))).float().log_softmax(dim=-1)
