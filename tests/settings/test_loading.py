"""Settings: what is unknown or out of bounds stops the start with a sentence."""

import pytest

from errors import ConfigError
from settings.loading import Settings, load_settings, setting_problems


def test_defaults_hold_without_an_environment() -> None:
    settings = load_settings()
    assert (settings.api.port, settings.kv.block_size, settings.redis.key_prefix) == (8080, 16, "pdq")


def test_every_knob_is_explained() -> None:
    for name, section in Settings.model_fields.items():
        for knob, field in type(section.default).model_fields.items():
            assert field.description, f"{name}.{knob} has no sentence"


def test_the_environment_sets_a_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_KV__BLOCK_SIZE", "32")
    monkeypatch.setenv("PDQ_API__PORT", "9000")
    settings = load_settings()
    assert (settings.kv.block_size, settings.api.port) == (32, 9000)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_API__PORT", "9000")
    assert load_settings({"api": {"port": 9001}}).api.port == 9001


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        # Misspelt inside a section, without any, and the section itself.
        ("PDQ_KV__BLOKSIZE", "32", "PDQ_KV__BLOKSIZE is no setting of pdq; the nearest is PDQ_KV__BLOCK_SIZE"),
        ("PDQ_PROT", "1", "PDQ_PROT is no setting of pdq; the nearest is PDQ_API__PORT"),
        ("PDQ_REDDIS__URL", "x", "PDQ_REDDIS__URL is no setting of pdq; the nearest is PDQ_REDIS__URL"),
        ("PDQ_MODEL", "demo", "PDQ_MODEL is no setting of pdq; the nearest is PDQ_MODEL__"),
        ("PDQ_XYZZY", "1", "PDQ_XYZZY is no setting of pdq; sections are API, BATCH, DECODE"),
        ("PDQ_QUEUE__STALL_LIMIT_S", "1", "it is PDQ_QUEUE__PLACE_LIMIT_S now"),
        ("PDQ_KV__BLOCK_SIZE", "17", "PDQ_KV__BLOCK_SIZE = 17: Input should be 16 or 32"),
        ("PDQ_API__PORT", "99999", "PDQ_API__PORT = '99999'"),
        ("PDQ_QUEUE__LEASE_S", "0", "PDQ_QUEUE__LEASE_S"),
    ],
)
def test_a_bad_one_stops_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert said in str(raised.value)


def test_every_problem_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting_problems() == []
    for variable, value in (("PDQ_PROT", "1"), ("PDQ_MODEL", "demo"), ("PDQ_QUEUE__LEASE_S", "0")):
        monkeypatch.setenv(variable, value)
    assert len(setting_problems()) == 2  # a section in one variable hides what else is wrong
    monkeypatch.delenv("PDQ_MODEL")
    assert ["PDQ_PROT", "PDQ_QUEUE__LEASE_S"] == [problem.split()[0] for problem in setting_problems()]


def test_the_key_of_a_client_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_API_KEY", "pdq-secret")
    load_settings()
    assert setting_problems() == []
