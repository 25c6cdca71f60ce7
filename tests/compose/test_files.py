"""What compose.yaml and compose.cpu.yaml come to. Needs the Compose plugin, starts nothing."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from settings.loading import Settings

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[2]
GPU_NODE = ("-f", "compose.yaml")
CPU_ONLY = ("-f", "compose.yaml", "-f", "compose.cpu.yaml")
WORKERS = ("prefill", "decode")


def services(files: tuple[str, ...], engine: dict[str, str]) -> dict[str, Any]:
    """The services as Compose understands `files`, without this machine's .env."""
    command = ["docker", "compose", *files, "--env-file", "/dev/null", "config", "--format", "json"]
    env = {**os.environ, **engine}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    merged: dict[str, Any] = json.loads(done.stdout)["services"]
    return merged


@pytest.mark.parametrize("files", [GPU_NODE, CPU_ONLY], ids=["gpu", "cpu"])
def test_workers_can_be_scaled_and_share_memory(files: tuple[str, ...], engine: dict[str, str]) -> None:
    merged = services(files, engine)
    assert merged["ipc"]["ipc"] == "shareable"
    for name in WORKERS:
        worker = merged[name]
        assert "container_name" not in worker and "ports" not in worker
        assert worker["ipc"] == worker["pid"] == "service:ipc"
        assert worker["user"] == merged["ipc"]["user"] == "10001:10001"


def test_only_the_gpu_node_asks_for_gpus(engine: dict[str, str]) -> None:
    for name in WORKERS:
        assert services(GPU_NODE, engine)[name]["gpus"] == [{"count": -1}]
        assert not services(CPU_ONLY, engine)[name].get("gpus")
    images = {service["image"] for name, service in services(CPU_ONLY, engine).items() if name != "redis"}
    assert images == {"pdq:cpu"}


@pytest.mark.parametrize("files", [GPU_NODE, CPU_ONLY], ids=["gpu", "cpu"])
def test_only_the_api_is_published_and_only_on_this_host(files: tuple[str, ...], engine: dict[str, str]) -> None:
    published = {name: service["ports"] for name, service in services(files, engine).items() if "ports" in service}
    assert list(published) == ["api"]
    assert [(port["host_ip"], port["published"]) for port in published["api"]] == [("127.0.0.1", "8080")]


@pytest.mark.parametrize("files", [GPU_NODE, CPU_ONLY], ids=["gpu", "cpu"])
def test_every_container_is_hardened(files: tuple[str, ...], engine: dict[str, str]) -> None:
    for name, service in services(files, engine).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] == "10001:10001", name


@pytest.mark.parametrize("files", [GPU_NODE, CPU_ONLY], ids=["gpu", "cpu"])
def test_every_role_is_its_own_redis_user_and_sees_its_own_password(
    files: tuple[str, ...], engine: dict[str, str]
) -> None:
    seen = {
        name: {volume["source"]: volume["target"] for volume in service["volumes"] if volume["type"] == "volume"}
        for name, service in services(files, engine).items()
        if "volumes" in service
    }
    secrets = {name: {one for one in volumes if one.startswith("secrets-")} for name, volumes in seen.items()}
    makers = secrets.pop("secrets")
    assert secrets.pop("redis") == {"secrets-redis", "secrets-admin"}
    assert secrets == {"model": set(), **{role: {f"secrets-{role}"} for role in ("api", *WORKERS)}}
    assert makers == {
        "secrets-redis",
        "secrets-admin",
        "secrets-api",
        "secrets-prefill",
        "secrets-decode",
        "secrets-batch",
    }
    for role in ("api", *WORKERS):
        service = services(files, engine)[role]
        assert service["environment"]["PDQ_REDIS__USERNAME"] == role
        assert all(each.get("read_only") for each in service["volumes"] if each["source"].startswith("secrets-"))


def test_nobody_is_killed_before_the_drain_is_over(engine: dict[str, str]) -> None:
    drain_s = max(Settings().api.drain_s, Settings().queue.drain_s)
    for name in ("api", *WORKERS):
        grace = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", services(GPU_NODE, engine)[name]["stop_grace_period"])
        assert grace
        assert int(grace[1] or 0) * 60 + int(grace[2] or 0) > drain_s


@pytest.mark.parametrize("files", [GPU_NODE, CPU_ONLY], ids=["gpu", "cpu"])
def test_only_workers_see_what_handles_are_sealed_with(files: tuple[str, ...], engine: dict[str, str]) -> None:
    merged = services(files, engine)
    mounts = {name: {each["source"]: each for each in service.get("volumes", [])} for name, service in merged.items()}
    who = {name for name, sources in mounts.items() if "worker-secrets" in sources}
    assert who == {"secrets", *WORKERS}
    for name in WORKERS:
        place = merged[name]["environment"]["PDQ_KV_TRANSFER__SECRET_FILE"]
        assert place == f"{mounts[name]['worker-secrets']['target']}/kv_secret"
        assert mounts[name]["worker-secrets"]["read_only"] is True


def test_workers_on_a_cpu_map_one_file_of_packed_weights(engine: dict[str, str]) -> None:
    merged = services(CPU_ONLY, engine)
    for name in WORKERS:
        (mount,) = (each for each in merged[name]["volumes"] if each["source"] == "packed-weights")
        assert mount["target"] == merged[name]["environment"]["PDQ_MODEL__WEIGHTS_DIR"]
        assert not mount.get("read_only")
        assert merged[name]["environment"]["PDQ_MODEL__PATH"], "what the base file says is gone"
