"""A GGUF's own codes reach the panels: nothing rounded, rows in Hugging Face's order."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from engine.gguf_codes import CodesFile, codes_of_blocks, reordered, write_codes
from engine.gguf_conversion import pair_halves
from engine.weights import load_model
from errors import ConfigError
from kernels import cpu_build, panels
from kernels.panels import Kind
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")


def blocks_of(name: str, outs: int = 8, ins: int = 96) -> np.ndarray[Any, Any]:
    weight = np.random.default_rng(0).standard_normal((outs, ins), dtype=np.float32)
    return np.asarray(gguf.quants.quantize(weight, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_codes_mean_what_gguf_dequantizes(name: str) -> None:
    blocks = blocks_of(name)
    codes = codes_of_blocks(blocks, name)
    assert codes is not None
    wanted = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))
    torch.testing.assert_close(panels.dequantize(codes), wanted, rtol=1e-6, atol=1e-6)  # gguf rounds twice


def test_other_types_have_no_codes() -> None:
    assert codes_of_blocks(blocks_of("Q5_1"), "Q5_1") is None


@pytest.mark.parametrize("name", ["Q4_1", "Q8_0"])
def test_parts_come_back_from_the_file_in_the_order_they_were_given(name: str, tmp_path: Path) -> None:
    given = codes_of_blocks(blocks_of(name), name)
    assert given is not None
    moved = reordered(given, lambda value: pair_halves(value, 2))
    write_codes({"q_proj": moved}, tmp_path)
    found = CodesFile(tmp_path).of("q_proj", range(2, 7), range(32, 80))
    assert found is not None
    wanted = pair_halves(panels.dequantize(given), 2)[2:7, 32:80]
    assert torch.equal(panels.dequantize(found), wanted)
    assert CodesFile(tmp_path).of("q_proj", range(8), range(16, 96)) is None  # cuts a group
    assert CodesFile(tmp_path).of("k_proj", range(8), range(96)) is None


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_a_model_with_integer_weights_says_nearly_the_same(kind: Kind) -> None:
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    model = load_model(tiny_model("llama").path, torch.bfloat16, CPU, kind=kind)
    plain = load_model(tiny_model("llama").path, torch.bfloat16, CPU)
    hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        logits, wanted = model.logits(hidden), plain.logits(hidden)
    assert 0 < (logits - wanted).norm() / wanted.norm() < 0.05


def test_integer_weights_where_nothing_multiplies_by_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="PDQ_MODEL__WEIGHTS=int4"):
        load_model(tiny_model("llama").path, torch.float32, CPU, kind=Kind.INT4)
