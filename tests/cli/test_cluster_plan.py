"""What `pdq serve` tells its children, and in which order it ends them."""

from pathlib import Path

import pytest

from cli.cluster_plan import cluster_children, nursery_child, nursery_path, redis_child, shared_knobs
from cli.model import client_name
from cli.options import environment, overrides
from messages.worker_status import Role
from settings.api import ApiSettings
from settings.loading import Settings, load_settings
from settings.model import ModelSettings
from settings.observability import LogSettings, MetricsSettings


def test_the_environment_reads_back_as_the_settings_it_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(overrides(model="demo", host="0.0.0.0", port=9000, dtype="float32", log_level="debug"))
    for name, value in environment(shared_knobs(settings, Path("/models/m"), "m", "unix:///run/redis.sock")).items():
        monkeypatch.setenv(name, value)
    child = load_settings()
    assert (child.redis.url, child.model.path, child.model.name) == ("unix:///run/redis.sock", "/models/m", "m")
    assert (child.api.host, child.api.port, child.model.dtype) == ("0.0.0.0", 9000, "float32")
    assert child.log.level == "debug"
    assert child.kv == settings.kv  # what was not said stays as it is


def test_the_drain_fits_into_the_stop_but_may_be_shorter() -> None:
    children = cluster_children(shared_knobs(Settings(), Path("/m"), "m", "unix:///r"), {Role.DECODE: 1})
    api = next(child for child in children if child.name == "api")
    assert 0 < float(api.environment["PDQ_API__DRAIN_S"]) < api.stop_within_s
    short = shared_knobs(Settings(api=ApiSettings(drain_s=0.5)), Path("/m"), "m", "unix:///r")
    assert short["api"]["drain_s"] == 0.5


def test_children_are_what_compose_runs() -> None:
    children = cluster_children(shared_knobs(Settings(), Path("/m"), "m", "r"), {Role.PREFILL: 2, Role.DECODE: 1})
    assert [child.name for child in children] == ["prefill 0", "prefill 1", "decode 0", "api"]
    assert [child.command[-1] for child in children] == ["prefill", "prefill", "decode", "api"]
    redis = redis_child(Path("/usr/bin/redis-server"), Path("/tmp/x"))
    order = [child.stop_order for child in (children[-1], children[0], children[2], redis)]
    assert order == [0, 1, 1, 2]
    assert all(child.stop_within_s <= 8 for child in [*children, redis])
    # A password in a URL is for the environment; a command line is there for everybody to read.
    assert not any("redis://" in part for child in children for part in child.command)


@pytest.mark.parametrize(
    "path, name, expected",
    [
        ("/models/Qwen2.5-0.5B/", "", "Qwen2.5-0.5B"),
        ("/models/tiny.gguf", "", "tiny"),
        ("Qwen/Qwen2.5-0.5B", "", "Qwen2.5-0.5B"),
        ("/models/x", "mine", "mine"),
        ("demo", "", "SmolLM2-135M-Instruct"),
    ],
)
def test_the_name_that_clients_see(path: str, name: str, expected: str) -> None:
    assert client_name(ModelSettings(path=path, name=name), Path("/cache/converted-v1")) == expected


def test_children_log_for_people_where_people_watch() -> None:
    formats = [
        shared_knobs(Settings(log=LogSettings(format=given)), Path("/m"), "m", "r", is_terminal)["log"]["format"]
        for given in ("auto", "json")
        for is_terminal in (True, False)
    ]
    assert formats == ["console", "auto", "json", "json"]


def test_children_seal_with_the_secret_that_was_made_for_them_or_the_one_that_was_named() -> None:
    made = shared_knobs(Settings(), Path("/m"), "m", "r", secret_file=Path("/state/secret"))
    (worker, *_) = cluster_children(made, {Role.PREFILL: 1})
    assert worker.environment["PDQ_KV_TRANSFER__SECRET_FILE"] == "/state/secret"
    named = shared_knobs(Settings(), Path("/m"), "m", "r")
    assert not any("SECRET" in name for name in environment(named))


def test_decode_workers_are_told_to_leave_a_small_shared_memory_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has_room in (True, False):
        knobs = shared_knobs(Settings(), Path("/m"), "m", "r", export_decode_pools=has_room)
        (worker, *_) = cluster_children(knobs, {Role.DECODE: 1})
        with monkeypatch.context() as patched:
            for name, value in worker.environment.items():
                if name.startswith("PDQ_DECODE"):
                    patched.setenv(name, value)
            assert load_settings().decode.export_pool is has_room


def test_workers_and_nobody_else_are_the_nurserys() -> None:
    path = nursery_path(Path("/run/x"))
    knobs = shared_knobs(Settings(), Path("/m"), "m", "r")
    children = cluster_children(knobs, {Role.PREFILL: 1, Role.DECODE: 1}, path)
    assert [child.nursery for child in children] == [path, path, None]  # the API has no torch
    assert [child.nursery for child in cluster_children(knobs, {Role.PREFILL: 1})] == [None, None]
    nursery = nursery_child(Path("/run/x"))
    assert nursery.command[-1] == str(path) and nursery.nursery is None
    assert nursery.stop_order == 0, "nobody is to be forked while all end"


def test_each_worker_has_a_metrics_port_of_its_own_where_one_is_asked_for() -> None:
    def ports(port: int) -> list[str]:
        knobs = shared_knobs(Settings(metrics=MetricsSettings(port=port)), Path("/m"), "m", "r")
        workers = cluster_children(knobs, {Role.PREFILL: 2, Role.DECODE: 2})[:-1]
        return [worker.environment["PDQ_METRICS__PORT"] for worker in workers]

    assert ports(9464) == ["9464", "9465", "9466", "9467"]
    assert ports(0) == ["0", "0", "0", "0"]
