"""Scores are the raw numbers that the reference heads give."""

import pytest
import torch
from safetensors.torch import load_file

from engine.model_runner import ModelRunner, PrefillChunk
from tests.tiny_models import REWARDS, prompts, sequences_for, tiny_model, tiny_runner

PROMPTS = prompts(count=4, longest=45, seed=3)


def scores(runner: ModelRunner) -> list[float]:
    return [runner.score(sequence) for sequence in sequences_for(runner, PROMPTS, 0)]


def oracle_hidden(name: str) -> list[torch.Tensor]:
    """transformers' hidden state of every prompt's last token, after the final norm."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model(name).oracle_path)
    with torch.no_grad():
        return [model.model(torch.tensor([prompt])).last_hidden_state[0, -1] for prompt in PROMPTS]


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "qwen2_reward"])
def test_one_linear_is_what_transformers_computes(name: str) -> None:
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model(name).oracle_path)
    with torch.no_grad():
        wanted = [float(model(torch.tensor([prompt])).logits[0, 0]) for prompt in PROMPTS]
    runner = tiny_runner(tiny_model(name).path)
    assert runner.model.is_reward
    assert scores(runner) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert len({round(score, 2) for score in wanted}) == len(wanted), "a constant score proves nothing"


def test_two_layers_are_linear_relu_linear() -> None:
    head = load_file(tiny_model("qwen2_reward").path / "model.safetensors")
    wanted = []
    for hidden in oracle_hidden("qwen2_reward"):
        inner = torch.relu(head["score.0.weight"] @ hidden + head["score.0.bias"])
        wanted.append(float(head["score.2.weight"][0] @ inner + head["score.2.bias"][0]))
    assert scores(tiny_runner(tiny_model("qwen2_reward").path)) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_score_does_not_depend_on_what_was_computed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tiny_runner(tiny_model("llama_reward").path)
    wanted = scores(runner)
    monkeypatch.setattr("engine.model_runner.SCORE_CHUNK_TOKENS", 7)
    assert scores(runner) == pytest.approx(wanted, rel=1e-5)
    again = sequences_for(runner, PROMPTS, 0)
    for sequence in again:
        first = runner.score(sequence)
        assert sequence.num_computed_tokens == sequence.num_tokens
        assert runner.score(sequence) == pytest.approx(first, rel=1e-5), "all KV there already"


def test_heads_are_not_mixed_up() -> None:
    reward, language = tiny_runner(tiny_model("llama_reward").path), tiny_runner(tiny_model("llama").path)
    (sequence,) = sequences_for(language, [[1, 2]], 1)
    with pytest.raises(AssertionError, match="only a reward model scores"):
        language.score(sequence)
    (sequence,) = sequences_for(reward, [[1, 2]], 1)
    with pytest.raises(AssertionError, match="no language head"):
        reward.prefill([PrefillChunk(sequence, 2)])
