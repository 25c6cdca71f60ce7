"""A model with a chat template."""

import shutil
from pathlib import Path

import pytest

from settings.broker import RedisSettings
from settings.loading import Settings
from tests.api.fake_cluster import settings_for

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening }}{% endif %}"
)


@pytest.fixture(scope="session")
def chat_dir(model_dir: Path) -> Path:
    path = model_dir.with_name("chatty")
    shutil.copytree(model_dir, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def chatty(redis_settings: RedisSettings, chat_dir: Path) -> Settings:
    return settings_for(redis_settings, chat_dir)
