"""The C++ kernels of `kernels/cpu/` as one loaded library: compiled once per machine, kept, and found again.

The file's name holds a hash of sources and flags and one of the compiler, so that a changed source is another file and
nothing is ever rebuilt in place. Of two processes that want it at once one builds, and a finished file is renamed to
its place. Every function chooses its instruction set by a target pragma; no flag depends on the machine, so a library
built into an image (`python -m kernels.cpu_build DIRECTORY`) runs wherever `pdq_isa` says so. Knows no tensors.
"""

import ctypes
import fcntl
import functools
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Report = Callable[[str], None]

SOURCE_DIR = Path(__file__).parent / "cpu"
# A library that came with the installation; looked at first, never written while serving.
SHIPPED_DIR = SOURCE_DIR / "built"
DEFAULT_CACHE_DIR = Path("~/.cache/pdq")
FLAGS = ("-std=c++20", "-O3", "-pthread", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
COMPILERS = ("g++", "c++")
COMPILE_TIMEOUT_S = 120.0

_loaded: list[ctypes.CDLL | None] = []  # empty until the first load


def load(cache_dir: Path = DEFAULT_CACHE_DIR, report: Report = lambda line: None) -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be had or the CPU lacks what it needs.

    `report` is told that a build goes on, or why there is no library. The first call of a process decides.
    """
    if not _loaded:
        _loaded.append(_load(cache_dir.expanduser() / "kernels", report))
    return _loaded[0]


def loaded() -> ctypes.CDLL | None:
    """The library, if this process has loaded it."""
    return _loaded[0] if _loaded else None


def _load(directory: Path, report: Report) -> ctypes.CDLL | None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None  # the kernels are for x86-64; elsewhere torch's own are what there is
    try:
        path = _find(directory) or build(directory, report)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        report(f"CPU kernels are off, the plain ones are slower: {_first_line(error)}")
        return None
    if not library.pdq_isa():
        report("CPU kernels are off, the plain ones are slower: this CPU has no AVX2 with FMA and F16C")
        return None
    return library


def _find(directory: Path) -> Path | None:
    """A finished library of these sources, by this machine's compiler if it has one."""
    compiler = _compiler()
    wanted = "*" if compiler is None else _compiler_key(compiler)
    for place in (SHIPPED_DIR, directory):
        # What was shipped is right whoever compiled it.
        found = sorted(place.glob(f"pdq-cpu-{source_key()}-{'*' if place is SHIPPED_DIR else wanted}.so"))
        if found:
            return found[0]
    return None


def build(directory: Path, report: Report) -> Path:
    """Compile the sources into `directory`. Raises OSError, SubprocessError."""
    compiler = _compiler()
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: g++ is not on PATH")
    report("compiling the CPU kernels, once for this machine (about 5 s)")
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"pdq-cpu-{source_key()}-{_compiler_key(compiler)}.so"
    with (directory / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="build-", dir=directory) as made:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when we die
        if not target.is_file():
            _compile(compiler, Path(made), target)
    return target


def _compile(compiler: str, work: Path, target: Path) -> None:
    sources = _sources(".cpp")
    objects = [work / f"{source.stem}.o" for source in sources]

    def run(arguments: list[str]) -> None:
        done = subprocess.run([compiler, *FLAGS, *arguments], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        if done.returncode:
            raise OSError(done.stderr.strip() or f"{compiler} failed")

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, (["-c", str(source), "-o", str(to)] for source, to in zip(sources, objects, strict=True))))
    finished = work / target.name
    run(["-shared", *map(str, objects), "-o", str(finished)])
    finished.rename(target)


@functools.cache
def source_key() -> str:
    """Hash of everything that is compiled and how."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in _sources(".cpp") + _sources(".h"):
        digest.update(f"\0{source.name}\0".encode() + source.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _compiler_key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=COMPILE_TIMEOUT_S)
    return hashlib.sha256(version.stdout).hexdigest()[:8]


def _compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _sources(suffix: str) -> list[Path]:
    return sorted(SOURCE_DIR.glob(f"*{suffix}"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    build(Path(sys.argv[1]), lambda line: None)
