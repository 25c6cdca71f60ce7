"""What is tuned: every knob of pdq, with its unit, its default and a sentence. The room's other files are the sections.

Built once in a process's entry point by `load_settings()` and handed down by section; nothing else reads
`os.environ`. An environment variable is `PDQ_<SECTION>__<KNOB>` (`PDQ_KV__BLOCK_SIZE=32`). An unknown name or a
value out of bounds stops the start. This room knows no other.
"""

import os
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from errors import ConfigError
from settings.api import ApiSettings, SecuritySettings
from settings.batch import BatchSettings
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from settings.images import ImageSettings
from settings.kv import KVSettings, TransferSettings
from settings.model import ModelSettings
from settings.observability import LogSettings, MetricsSettings, TracingSettings
from settings.workers import DecodeSettings, GpuSettings, PrefillSettings

ENV_PREFIX = "PDQ_"
# Begin like settings and are none: what commands that are clients of a server read themselves.
CLIENT_VARIABLES = frozenset({"PDQ_API_KEY"})
RENAMED = {"PDQ_QUEUE__STALL_LIMIT_S": "PDQ_QUEUE__PLACE_LIMIT_S"}  # what was a setting once -> what it is now

LEAST_LIKENESS = 0.6


class Settings(BaseSettings):
    """Every section. See `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    redis: RedisSettings = RedisSettings()
    model: ModelSettings = ModelSettings()
    kv: KVSettings = KVSettings()
    kv_transfer: TransferSettings = TransferSettings()
    prefill: PrefillSettings = PrefillSettings()
    decode: DecodeSettings = DecodeSettings()
    gpu: GpuSettings = GpuSettings()
    queue: QueueSettings = QueueSettings()
    stream: StreamSettings = StreamSettings()
    api: ApiSettings = ApiSettings()
    images: ImageSettings = ImageSettings()
    batch: BatchSettings = BatchSettings()
    security: SecuritySettings = SecuritySettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()


def load_settings(overrides: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Settings from the environment, with command-line `overrides` ({section: {knob: value}}) on top.

    Raises ConfigError that names the variable, its value and what was wanted.
    """
    # pydantic-settings ignores a variable whose section does not exist; a misspelt one must stop the start.
    for sentence in _unknown_variables():
        raise ConfigError(sentence)
    try:
        settings = Settings()
        for section, knobs in (overrides or {}).items():
            merged = getattr(settings, section).model_dump() | knobs
            checked = type(getattr(settings, section)).model_validate(merged)
            settings = settings.model_copy(update={section: checked})
    except ValidationError as error:
        raise ConfigError(_sentences(error)[0]) from None
    return settings


def setting_problems() -> list[str]:
    """All sentences for which the environment would stop the start, where `load_settings` raises the first."""
    problems = list(_unknown_variables())
    try:
        Settings()
    except ValidationError as error:
        problems += [sentence for sentence in _sentences(error) if sentence not in problems]
    except SettingsError:
        pass  # a whole section in one variable, which is among the unknown
    return problems


def setting_variables() -> list[str]:
    """The variable of every setting."""
    return [
        f"{ENV_PREFIX}{name}__{knob}".upper()
        for name, section in Settings.model_fields.items()
        for knob in type(section.default).model_fields
    ]


def _unknown_variables() -> Iterator[str]:
    known = {*setting_variables(), *CLIENT_VARIABLES}
    for variable in sorted(os.environ):
        if variable.startswith(ENV_PREFIX) and variable.upper() not in known:
            yield _unknown(variable)


def _unknown(variable: str) -> str:
    """What to say of a variable that is no setting."""
    said = f"{variable} is no setting of pdq"
    if variable.upper() in RENAMED:
        return f"{said} any more; it is {RENAMED[variable.upper()]} now"
    nearest = _nearest(variable.upper())
    sections = ", ".join(sorted(name.upper() for name in Settings.model_fields))
    return f"{said}; {f'the nearest is {nearest}' if nearest else f'sections are {sections}'}"


def _nearest(variable: str) -> str | None:
    """The setting that was most likely meant, also where its section was left out. None when none is near."""
    from difflib import SequenceMatcher  # only who has misspelt one waits for it

    def likeness(name: str) -> float:
        knob = name.rpartition("__")[2]
        pairs = ((name, variable), (knob, variable.removeprefix(ENV_PREFIX)))
        return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(setting_variables(), key=likeness)
    return best if likeness(best) >= LEAST_LIKENESS else None


def _sentences(error: ValidationError) -> list[str]:
    """One per value that is not as it should be."""
    sentences = []
    for one in error.errors():
        variable = ENV_PREFIX + "__".join(str(part).upper() for part in one["loc"])
        unknown = one["type"] == "extra_forbidden"
        sentences.append(_unknown(variable) if unknown else f"{variable} = {one['input']!r}: {one['msg']}")
    return sentences
