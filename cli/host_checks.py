"""What `pdq doctor` checks on any machine: what `pdq serve` needs, and what to do where it is missing.

Holds torch only once it runs.
"""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial

from bench.doctor.check import Check, Finding, Verdict
from cli.contradictions import contradictions
from cli.embedded_redis import find_redis_server
from cli.gpu_inventory import list_gpus
from cli.health import is_api_here
from cli.listen_port import reserve_port
from cli.machine_checks import disk, huge_pages, open_files, processor
from cli.redis_checks import redis_findings
from cli.shm_room import SHM, are_pools_in_shm, shm_room
from errors import ConfigError
from messages.worker_status import Role
from settings.loading import Settings

VERSION_TIMEOUT_S = 10.0


def host_checks(settings: Settings) -> Mapping[str, Check]:
    """By title, in the order in which they are run."""
    return {
        "settings": partial(together, settings),
        "Python": python,
        "torch": torch_and_gpus,
        "processor": processor,
        "CPU kernels": partial(cpu_kernels, settings),
        "huge pages": huge_pages,
        "shared memory": partial(shared_memory, settings),
        "open files": partial(open_files, settings),
        "disk": partial(disk, settings),
        "Redis": partial(redis, settings),
        "model": partial(model, settings),
        "port": partial(port, settings),
    }


def together(settings: Settings) -> Iterator[Finding]:
    """Whether the settings go together."""
    found = list(contradictions(settings))
    for one in found:
        verdict = Verdict.FAIL if one.is_fatal else Verdict.WARN
        yield Finding("settings", verdict, one.text, "`pdq config show --changed` says what is set and where")
    if not found:
        yield Finding("settings", Verdict.OK, "they go together")


def python() -> Iterator[Finding]:
    """The interpreter and the system."""
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if sys.platform != "linux":
        yield Finding("Python", Verdict.FAIL, said, f"run pdq on Linux: it needs {SHM} and /proc")
    else:
        yield Finding("Python", Verdict.OK, said)


def torch_and_gpus() -> Iterator[Finding]:
    """Whether torch loads, and uses the GPUs that the driver has."""
    import torch

    said = f"{torch.__version__}, {torch.get_num_threads()} threads"
    gpus = list_gpus()
    if not gpus:
        yield Finding("torch", Verdict.OK, f"{said}; no GPU, so the CPU computes")
    elif not torch.cuda.is_available():
        remedy = "install a torch that is built for CUDA: TORCH_INDEX=URL make install"
        yield Finding("torch", Verdict.WARN, f"{said}; sees none of {len(gpus)} GPUs", remedy)
    else:
        names = ", ".join(gpu.name for gpu in gpus)
        yield Finding("torch", Verdict.OK, f"{said}; {names}: `pdq doctor --gpu` checks them")


def redis(settings: Settings) -> Iterator[Finding]:
    """The Redis that is named, or the one that `pdq serve` starts."""
    if "url" in settings.redis.model_fields_set:
        yield from asyncio.run(redis_findings(settings))  # raises what to do
        return
    binary = find_redis_server()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S)
    said = f"`pdq serve` starts {binary}: {' '.join(version.stdout.split()[:3]) or version.stderr.strip()}"
    if version.returncode:
        yield Finding(
            "Redis", Verdict.FAIL, said, "it does not run here: install another, or name one with --redis-url"
        )
    else:
        yield Finding("Redis", Verdict.OK, said)


def shared_memory(settings: Settings) -> Iterator[Finding]:
    """Whether KV gets through shared memory, and whether a pool has room there."""
    from kv_transfer.self_test import self_test

    self_test()
    room = shm_room()
    said = f"the transport's self-test passes; {room}"
    figures = {"free_bytes": float(room.free_bytes), "total_bytes": float(room.total_bytes)}
    lacking = room.lacks_for(settings, {Role.PREFILL: 1, Role.DECODE: 1}) if are_pools_in_shm(settings) else None
    more = room.remedy(settings, {Role.PREFILL: 1, Role.DECODE: 1})
    pool = f"{settings.kv.pool_bytes / 2**30:.1f} GiB"
    if lacking is Role.PREFILL:
        yield Finding("shared memory", Verdict.FAIL, said, f"a prefill worker takes {pool}: {more}", figures)
    elif lacking is Role.DECODE:
        remedy = f"a decode worker that is to pass its KV on when it stops takes {pool} besides: {more}"
        yield Finding("shared memory", Verdict.WARN, said, remedy, figures)
    else:
        yield Finding("shared memory", Verdict.OK, said, figures=figures)


def cpu_kernels(settings: Settings) -> Iterator[Finding]:
    """Whether the C++ kernels are there; they are built if they are not yet."""
    from kernels import cpu_build

    lines: list[str] = []
    library = cpu_build.load(settings.model.cache_dir, lines.append)
    if library is not None:
        built = "built just now" if lines else "there already"
        compiler = shutil.which("g++") or shutil.which("c++") or "none, and none is needed"
        yield Finding("CPU kernels", Verdict.OK, f"{built}, and this CPU can run them; compiler: {compiler}")
        return
    said = lines[-1] if lines else f"there are none for {platform.machine()}, torch's own are used"
    yield Finding("CPU kernels", Verdict.WARN, said, "install g++; on a CPU that cannot run them nothing helps")


def model(settings: Settings) -> Iterator[Finding]:
    """Whether the model is on this machine; nothing is fetched."""
    from engine.model_files import DEMO_PACKAGE, resolve_here

    path = settings.model.path
    found = resolve_here(settings.model)
    if found is not None:
        yield Finding("model", Verdict.OK, f"{path} is in {found}")
        return
    source = f"the package index ({DEMO_PACKAGE}, 93 MB)" if path == "demo" else "where it is, or from the model hub"
    if path.endswith(".gguf"):
        source = "that file, by converting it"
    said = f"{path} is not in {settings.model.cache_dir} yet; the first start takes it from {source}"
    yield Finding("model", Verdict.WARN, said, "to do it before: `pdq model fetch`")


def port(settings: Settings) -> Iterator[Finding]:
    """Whether the API could listen, and the first worker's metrics."""
    yield _port("port", settings.api.host, settings.api.port)
    if settings.metrics.port:
        yield _port("metrics port", settings.metrics.host, settings.metrics.port)


def _port(subject: str, host: str, number: int) -> Finding:
    try:
        reserve_port(host, number)
    except ConfigError as error:
        remedy = str(error) if subject == "port" else f"choose another with PDQ_METRICS__PORT: {error}"
        if is_api_here(host, number):
            return Finding(subject, Verdict.WARN, f"{number} on {host} is taken, maybe by a running pdq", remedy)
        return Finding(subject, Verdict.FAIL, f"{number} on {host} cannot be had", remedy)
    return Finding(subject, Verdict.OK, f"{host}:{number} can be listened on")
