"""Prompts with images give the tokens that transformers gives, however the work is cut, batched and reused."""

import functools
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.block_space import BlockSpace
from engine.image_encoder import ImageEncoder, load_image_encoder
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner, PrefillChunk
from engine.placed_features import placed_features
from engine.prefill_rows import PrefillRows
from engine.sequence import Sequence
from engine.step import PrefillStep
from engine.tensor_parallel import ModelSlice, Shard
from images import ImageLayout
from messages import ConfigError, InvalidRequest, ModelError
from tests.tiny_models import new_sequence, prefill_all, sequences_for, tiny_model, tiny_runner
from tests.vision_models import picture, prompt_of, transformers_answer, vision_model

MODELS = ["idefics3", "smolvlm"]
NUM_TOKENS = 20
QUESTIONS: dict[str, tuple[str, list[bytes]]] = {
    "no image": ("User: what is AI?<end_of_utterance>\nAssistant:", []),
    "wide": ("User:<image>what is it?<end_of_utterance>\nAssistant:", [picture(1, 50, 30)]),
    "one tile": ("<image>", [picture(2, 8, 8, kind="WEBP")]),
    "two": (
        "User:<image>\n and <image> differ?<end_of_utterance>\nAssistant:",
        [picture(3, 20, 33, "RGBA"), picture(4, 31, 31, "L")],
    ),
    "adjoining": ("a<image><image>\n\n", [picture(5, 40, 11, kind="JPEG"), picture(5, 40, 11, kind="JPEG")]),
}


@functools.cache
def runner_of(name: str) -> ModelRunner:
    return tiny_runner(vision_model(name))


@functools.cache
def encoder_of(name: str, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    return load_image_encoder(vision_model(name), dtype, torch.device("cpu"), 10_000, 1 << 20, lambda line: None)


@functools.cache
def expected(name: str, question: str) -> tuple[list[int], list[int]]:
    return transformers_answer(vision_model(name), *QUESTIONS[question], NUM_TOKENS)


def with_images(sequence: Sequence, name: str, question: str, dtype: torch.dtype = torch.float32) -> Sequence:
    """The sequence as a worker has it that is about to compute it."""
    text, pictures = QUESTIONS[question]
    ids, sequence.images = prompt_of(vision_model(name), text, pictures)
    assert sequence.token_ids == ids
    encoder = encoder_of(name, dtype)
    sequence.image_features = {
        image.digest: encoder.encode_now(data) for image, data in zip(sequence.images, pictures, strict=True)
    }
    return sequence


def answers(name: str, questions: list[str], token_budget: int = 512) -> list[list[int]]:
    runner = runner_of(name)
    prompts = [expected(name, question)[0] for question in questions]
    sequences = sequences_for(runner, prompts, NUM_TOKENS)
    for sequence, question in zip(sequences, questions, strict=True):
        with_images(sequence, name, question)
    prefill_all(runner, sequences, token_budget)
    assert all(sequence.image_features is None for sequence in sequences if sequence.images), "held longer than needed"
    for _ in range(NUM_TOKENS - 1):
        for sequence, sampled in zip(sequences, runner.decode(sequences), strict=True):
            sequence.token_ids.append(sampled.token_id)
    return [sequence.output_token_ids for sequence in sequences]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_prompts_and_answers_are_those_of_transformers(name: str, question: str) -> None:
    text, pictures = QUESTIONS[question]
    prompt, tokens = expected(name, question)
    assert prompt_of(vision_model(name), text, pictures)[0] == prompt
    assert answers(name, [question]) == [tokens]
    assert len(set(tokens)) > 3, "a degenerate model proves nothing"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("token_budget", [7, 16, 33])
def test_chunks_that_cut_images_and_batches_change_nothing(name: str, token_budget: int) -> None:
    wanted = [expected(name, question)[1] for question in QUESTIONS]
    assert answers(name, list(QUESTIONS), token_budget) == wanted


def test_what_is_in_a_picture_changes_the_answer() -> None:
    text, _ = QUESTIONS["wide"]
    path = vision_model("idefics3")
    first, second = (transformers_answer(path, text, [picture(seed, 50, 30)], NUM_TOKENS) for seed in (1, 2))
    assert first[0] == second[0] and first[1] != second[1]


def test_a_cached_prefix_of_another_picture_is_none() -> None:
    """The same placeholders, and another picture: with its blocks taken for these, the text would be the first's."""
    path, text = vision_model("idefics3"), QUESTIONS["wide"][0]
    runner, encoder = runner_of("idefics3"), encoder_of("idefics3")
    space = BlockSpace(runner.pool.num_blocks, 16, prefix_cache=True)

    def answer(data: bytes) -> tuple[list[int], int]:
        ids, images = prompt_of(path, text, [data])
        cached = space.match(ids, images)
        table = [*cached, *space.allocate(-(-(len(ids) + NUM_TOKENS) // 16) - len(cached))]
        sequence = new_sequence(ids, table)
        sequence.images, sequence.num_computed_tokens = images, 16 * len(cached)
        if sequence.images_to_compute:
            sequence.image_features = {images[0].digest: encoder.encode_now(data)}
        prefill_all(runner, [sequence], 512)
        for _ in range(NUM_TOKENS - 1):
            sequence.token_ids.append(runner.decode([sequence])[0].token_id)
        space.remember(ids, table, images)
        space.free(table)
        return sequence.output_token_ids, len(cached)

    pictures = [picture(seed, 50, 30) for seed in (1, 2)]
    wanted = [transformers_answer(path, text, [data], NUM_TOKENS)[1] for data in pictures]
    told = [answer(data) for data in (*pictures, *pictures)]
    assert [tokens for tokens, _ in told] == wanted * 2
    assert [num_cached > 3 for _, num_cached in told] == [False, False, True, True]
    space.check_integrity()


def test_a_step_as_one_call_computes_the_same() -> None:
    """In bfloat16 the C++ step is given the rows; the twin is the decoder over plain operations, in float32."""
    runner = tiny_runner(vision_model("idefics3"), dtype=torch.bfloat16)
    if not runner.model.has_whole_steps:
        pytest.skip("this machine has no steps as one call")
    logits = []
    for one in (runner, runner_of("idefics3")):
        chunks = []
        for sequence, question in zip(
            sequences_for(one, [expected("idefics3", question)[0] for question in ("two", "wide")], 1),
            ("two", "wide"),
            strict=True,
        ):
            with_images(sequence, "idefics3", question, one.model.dtype)
            chunks.append(PrefillChunk(sequence, sequence.num_tokens))
        step = PrefillStep(PrefillRows.of(chunks, one.kv_layout.block_size), [0, 1])
        with torch.inference_mode():
            logits.append(one.compute(step, None, placed_features(chunks, one.model.config.image_token_id)))
    ours, twin = (rows.log_softmax(dim=-1) for rows in logits)
    off = (ours - twin).norm(dim=-1) / twin.norm(dim=-1)
    assert off.max() < 0.05, off


def test_an_image_is_not_computed_before_it_is_encoded() -> None:
    runner = runner_of("idefics3")
    ids, images = prompt_of(vision_model("idefics3"), *QUESTIONS["wide"])
    (sequence,) = sequences_for(runner, [ids], 1)
    sequence.images = images
    with pytest.raises(AssertionError, match="encoded"):
        runner.prefill([PrefillChunk(sequence, sequence.num_tokens)])


def test_the_encoder_refuses_what_it_cannot_see() -> None:
    encoder = encoder_of("idefics3")
    with pytest.raises(InvalidRequest, match="101 x 101 pixels, at most 10000"):
        encoder.encode_now(picture(1, 101, 101))
    with pytest.raises(InvalidRequest, match="cannot be decoded"):
        encoder.encode_now(picture(1, 20, 20)[:-200])
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    with pytest.raises(InvalidRequest, match="PNG, JPEG, WEBP are read"):
        encoder.encode_now(gif.getvalue())


def test_configs_are_told_apart() -> None:
    config = ModelConfig.from_dir(vision_model("smolvlm"))
    assert config.reads_images and config.tie_word_embeddings and not config.is_foreign
    assert not ModelConfig.from_dir(tiny_model("llama").path).reads_images
    assert ImageLayout.from_dir(tiny_model("llama").path) is None


def test_a_text_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    said = (vision_model("idefics3") / "config.json").read_text().replace('"llama"', '"qwen2"')
    (tmp_path / "config.json").write_text(said)
    with pytest.raises(ModelError, match="text model 'qwen2' is not supported"):
        ModelConfig.from_dir(tmp_path)


def test_a_model_cut_into_ranks_is_refused() -> None:
    config = ModelConfig.from_dir(vision_model("idefics3"))
    with pytest.raises(
        ConfigError, match="TENSOR_PARALLEL = 2: .* reads images, it is not cut into ranks; set it to 1"
    ):
        ModelSlice.of(config, Shard(0, 2))
