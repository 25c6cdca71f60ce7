"""What is read of a model directory."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from api.frames import OutputToken, error_frame, generate_body, stream_frame
from api.model_facts import GenerationDefaults, ModelFacts
from errors import ModelError
from messages.request import AnswerParams, GenerationRequest, SamplingParams
from messages.token_event import FinishReason
from settings.model import ModelSettings


def facts(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None, name: str = "") -> ModelFacts:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 10} | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelFacts.from_dir(ModelSettings(path=str(folder), name=name))


@pytest.mark.parametrize(
    ("config", "is_reward"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, False),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, True),
        ({"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, True),
        ({"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}, False),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, False),  # two labels unless it says otherwise
        ({"architectures": ["InternLM2ForRewardModel"]}, True),
        ({"architectures": ["Qwen2ForRewardModel"]}, True),
        ({"architectures": []}, False),
        ({}, False),
    ],
)
def test_reward_models(tmp_path: Path, config: dict[str, Any], is_reward: bool) -> None:
    assert facts(tmp_path, config).is_reward == is_reward


@pytest.mark.parametrize(
    ("config", "generation", "eos"),
    [
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 4]}, {3, 4}),
        ({"eos_token_id": [5]}, {}, {5}),
        ({}, None, set()),
    ],
)
def test_eos_token_ids(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, eos: set[int]
) -> None:
    assert facts(tmp_path, config, generation).eos_token_ids == eos


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"n_positions": 33}, 33),  # GPT-2's word
        ({}, 0),
        ({"max_position_embeddings": 90, "rope_scaling": {"type": "linear", "factor": 2}}, 90),
        ({"max_position_embeddings": 90, "rope_scaling": {"short_factor": [1], "long_factor": [1]}}, 90),
        (
            {
                "max_position_embeddings": 90,
                "original_max_position_embeddings": 30,
                "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]},
            },
            30,
        ),
    ],
)
def test_longest_request(tmp_path: Path, config: dict[str, Any], longest: int) -> None:
    assert facts(tmp_path, config).max_position_embeddings == longest


def test_names_bounds_and_defaults(tmp_path: Path) -> None:
    read = facts(tmp_path, {"max_position_embeddings": 77}, {"temperature": 0.6, "top_k": 0, "do_sample": True})
    assert (read.name, read.max_position_embeddings) == (tmp_path.name, 77)
    assert read.defaults == GenerationDefaults(do_sample=True, temperature=0.6, top_k=-1)
    assert facts(tmp_path, {}, {}, "mine").name == "mine"


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_directory_that_is_no_model_stops_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelFacts.from_dir(ModelSettings(path=str(tmp_path)))


ASKED = GenerationRequest("r", [1, 2, 3], SamplingParams(seed=0), answer=AnswerParams(with_details=True))


def test_frames_are_always_json() -> None:
    token = OutputToken(5, "a\n\n\u2028", -math.inf, False, 1, FinishReason.LENGTH)
    frame = stream_frame(token, 3)
    assert frame.count(b"\n") == 2
    assert json.loads(frame.removeprefix(b"data:"))["token"]["logprob"] == -9999.0
    assert json.loads(generate_body(ASKED, [[token]]))["tokens"][0]["logprob"] == -9999.0
    assert error_frame("x\n\ny").count(b"\n") == 2


def test_a_sequence_that_ends_without_a_token_has_a_last_event() -> None:
    first = OutputToken(5, "a", -1.0, False, 1, None)
    end = OutputToken(None, "held", 0.0, True, 1, FinishReason.ABORT)
    body = json.loads(generate_body(ASKED, [[first, end]]))
    assert (body["generated_text"], body["count_output_tokens"], body["finish_reason"]) == (["aheld"], 1, "abort")
    assert len(body["tokens"]) == 1
    assert json.loads(stream_frame(end, 3).removeprefix(b"data:"))["token"]["id"] is None
