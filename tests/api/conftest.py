"""Model directories for the API's tests."""

from pathlib import Path

import pytest

from settings.broker import RedisSettings
from settings.loading import Settings
from tests.api.fake_cluster import settings_for
from tests.api.tiny_models import BYTE_LEVEL_CONFIG, byte_level_tokenizer, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model whose EOS is token 0."""
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", byte_level_tokenizer(), BYTE_LEVEL_CONFIG, {"eos_token_id": 0}
    )


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model."""
    config = BYTE_LEVEL_CONFIG | {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    return write_model(tmp_path_factory.mktemp("models") / "reward", byte_level_tokenizer(), config, {})


@pytest.fixture
def settings(redis_settings: RedisSettings, model_dir: Path) -> Settings:
    return settings_for(redis_settings, model_dir)
