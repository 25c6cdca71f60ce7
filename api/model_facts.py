"""What the API must know of the model, read from its directory without loading it.

Knows Hugging Face's config.json and generation_config.json; knows no weights and no torch. What the workers know of
the model they read on their own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from images import ARCHITECTURES as WITH_IMAGES
from messages import ModelError
from settings import ModelSettings

REWARD_ARCHITECTURES = ("InternLM2ForRewardModel", "Qwen2ForRewardModel")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a request that is silent about a parameter gets; from generation_config.json where it says so."""

    do_sample: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model. `max_position_embeddings` is 0 when the config does not bound it."""

    path: Path
    name: str
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: frozenset[int]
    is_reward: bool
    defaults: GenerationDefaults

    @classmethod
    def from_dir(cls, settings: ModelSettings) -> "ModelFacts":
        """Facts of the directory `settings.path`. Raises ModelError with what to do."""
        path = Path(settings.path).expanduser()
        if not path.is_dir():
            raise ModelError(f"{settings.path}: the API needs a model directory; `pdq model` makes one of this name")
        config = _text_config(read_json(path / "config.json"))
        if not isinstance(config.get("vocab_size"), int):
            raise ModelError(f"{path / 'config.json'}: no vocab_size")
        generation: dict[str, Any] = {}
        if (path / "generation_config.json").exists():
            generation = read_json(path / "generation_config.json")
        return cls(
            path=path,
            name=settings.name or path.resolve().name,
            vocab_size=config["vocab_size"],
            max_position_embeddings=_max_positions(config),
            eos_token_ids=_eos_token_ids(generation, config),
            is_reward=_is_reward(config),
            defaults=_generation_defaults(generation),
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`. Raises ModelError when there is none."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """What is said of the text part, where the model has others."""
    if (config.get("architectures") or [""])[0] not in WITH_IMAGES:
        return config
    outer = {key: config[key] for key in ("architectures", "eos_token_id") if config.get(key) is not None}
    return {**(config.get("text_config") or {}), **outer}


def _max_positions(config: dict[str, Any]) -> int:
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("short_factor") == rope.get("long_factor"):
        return positions
    # longrope with two sets of factors: the workers serve the lengths of the first.
    first = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or 0
    return min(positions, int(first)) if first else positions


def _eos_token_ids(generation: dict[str, Any], config: dict[str, Any]) -> frozenset[int]:
    named = generation.get("eos_token_id")
    if named is None:
        named = config.get("eos_token_id")
    if named is None:
        return frozenset()
    return frozenset(named if isinstance(named, list) else [named])


def _is_reward(config: dict[str, Any]) -> bool:
    architecture = (config.get("architectures") or [""])[0]
    if architecture in REWARD_ARCHITECTURES:
        return True
    # transformers writes id2label only when it is not the default of two labels.
    num_labels = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    return bool(architecture.endswith("ForSequenceClassification")) and num_labels == 1


def _generation_defaults(generation: dict[str, Any]) -> GenerationDefaults:
    fields = GenerationDefaults.__dataclass_fields__
    given = {name: generation[name] for name in fields if generation.get(name) is not None}
    if given.get("top_k") == 0:  # Hugging Face's word for "no limit"
        given["top_k"] = -1
    return GenerationDefaults(**given)
