"""What `pdq doctor` checks on any machine: what `pdq serve` needs, and what to do where it is missing.

Holds torch only once it runs.
"""

import asyncio
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import partial

from bench.doctor.check import Check, Finding, Verdict
from broker.client import display_url, open_broker
from cli.embedded_redis import find_redis_server
from cli.gpu_inventory import list_gpus
from cli.health import is_api_here
from cli.listen_port import reserve_port
from cli.shm_room import SHM, are_pools_in_shm, shm_room
from errors import ConfigError
from messages.worker_status import Role
from settings.loading import Settings


def host_checks(settings: Settings) -> Mapping[str, Check]:
    """By title, in the order in which they are run."""
    return {
        "Python": python,
        "torch": torch_and_gpus,
        "Redis": partial(redis, settings),
        "shared memory": partial(shared_memory, settings),
        "CPU kernels": partial(cpu_kernels, settings),
        "model": partial(model, settings),
        "port": partial(port, settings),
    }


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
        asyncio.run(_connect(settings))  # raises what to do
        yield Finding("Redis", Verdict.OK, f"{display_url(settings.redis.url)} answers")
    else:
        yield Finding("Redis", Verdict.OK, f"`pdq serve` starts {find_redis_server()}")


async def _connect(settings: Settings) -> None:
    async with open_broker(settings.redis, settings.queue, settings.stream):
        pass


def shared_memory(settings: Settings) -> Iterator[Finding]:
    """Whether KV gets through shared memory, and whether a pool has room there."""
    from kv_transfer.self_test import self_test

    self_test()
    room = shm_room()
    said = f"the transport's self-test passes; {room}"
    figures = {"free_bytes": float(room.free_bytes), "total_bytes": float(room.total_bytes)}
    lacking = room.lacks_for(settings, {Role.PREFILL: 1, Role.DECODE: 1}) if are_pools_in_shm(settings) else None
    more = "lower PDQ_KV__POOL_BYTES, or raise the container's shm_size"
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
        yield Finding("CPU kernels", Verdict.OK, f"{built}, and this CPU can run them")
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
    """Whether the API could listen."""
    host, number = settings.api.host, settings.api.port
    try:
        reserve_port(host, number)
    except ConfigError as error:
        if is_api_here(host, number):
            yield Finding("port", Verdict.WARN, f"{number} on {host} is taken, maybe by a running pdq", str(error))
        else:
            yield Finding("port", Verdict.FAIL, f"{number} on {host} cannot be had", str(error))
    else:
        yield Finding("port", Verdict.OK, f"{host}:{number} can be listened on")
