"""The in-process half of the queue path, on a tiny checkpoint."""

import pytest

from bench.in_process import InProcessPrefill
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sampler import Sampled
from settings.loading import Settings, load_settings
from tests.tiny_models import tiny_model


@pytest.fixture
def settings() -> Settings:
    return load_settings(
        {
            "model": {"path": str(tiny_model("llama").path), "dtype": "float32", "device": "cpu"},
            "prefill": {"token_budget": 16},
        }
    )


def test_a_prompt_is_computed_in_the_workers_steps_and_its_blocks_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[int]] = []
    prefill = ModelRunner.prefill

    def counted(runner: ModelRunner, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        steps.append([chunk.num_tokens for chunk in chunks])
        return prefill(runner, chunks)

    monkeypatch.setattr(ModelRunner, "prefill", counted)
    said: list[str] = []
    in_process = InProcessPrefill(settings, max_prompt_tokens=40, num_threads=1, report=said.append)
    for seed in range(3):  # the pool holds one prompt: a block that stayed taken would stop the second
        assert in_process.prefill([seed, *range(100, 139)]) > 0
    assert steps == [[16], [16], [8]] * 3
    assert "float32" in in_process.description and "1 compute threads" in in_process.description
