"""The GPUs of a node, through the real nvidia-ml-py on a library of our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json
from cli.gpu_inventory import list_gpus
print(json.dumps([[gpu.uuid, gpu.name, sorted(gpu.peers)] for gpu in list_gpus()]))
"""


def listed(library_dir: str, **variables: str) -> list[tuple[str, str, list[str]]]:
    env = {**os.environ, "LD_LIBRARY_PATH": library_dir, **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [tuple(gpu) for gpu in json.loads(done.stdout)]


def uuid(index: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{index:012d}"


def test_gpus_and_their_peers(fake_nvml: Path) -> None:
    gpus = listed(str(fake_nvml), FAKE_NVML_GPUS="6")
    assert [gpu[0] for gpu in gpus] == [uuid(index) for index in range(6)]
    assert gpus[1] == (uuid(1), "Fake GPU 1", [uuid(0), uuid(2), uuid(3)])
    assert gpus[5][2] == [uuid(4)]


def test_no_peer_access_at_all(fake_nvml: Path) -> None:
    assert [gpu[2] for gpu in listed(str(fake_nvml), FAKE_NVML_GPUS="2", FAKE_NVML_NO_P2P="1")] == [[], []]


def test_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert listed(str(tmp_path)) == []
