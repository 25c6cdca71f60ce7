"""OpenVINO GenAI's continuous batching. It ships no server: `openvino_front.py` is a thin one of ours.

The model is exported once to OpenVINO's format with 16-bit weights; the precision it computes in is the plugin's choice
for this processor, and the front says at its start which it is.
"""

import os
import shutil
from pathlib import Path

from bench.peers.server import PORT, Server
from bench.peers.workshop import Report, Workshop

NAME = "openvino"
VERSION = "2026.4.0"
# The core's 2026.4.1 does not load these tokenizers' operations, so all of one version.
PACKAGES = (
    f"openvino=={VERSION}",
    f"openvino-genai=={VERSION}.0",
    f"openvino-tokenizers=={VERSION}.0",
    "optimum==2.3.0",
    "optimum-intel==2.2.0",
    "nncf==3.4.0",
    "transformers==5.5.4",
    "torch==2.13.0",
)
RECIPE = (*PACKAGES, "1")
FRONT = Path(__file__).with_name("openvino_front.py")
CACHE_GB = 2
MAX_BATCHED_TOKENS = 512
MAX_SEQUENCES = 32


def install(workshop: Workshop) -> None:
    """1.6 GB and about a minute. Raises PeerFailed."""
    workshop.make_venv()
    workshop.pip(f"installing OpenVINO {VERSION} and its exporter (1.6 GB, a minute)", "install", *PACKAGES)
    workshop.pip("removing what it has no use for", "uninstall", "-y", "torchvision")  # does not load beside this torch


def servers(workshop: Workshop, model_dir: Path, report: Report) -> list[Server]:
    """Exports the model the first time. Raises PeerFailed."""
    exported = workshop.folder / "models" / model_dir.name
    if not exported.exists():
        _export(workshop, model_dir, exported)
    # -P: beside the front lies this file, which Python would take for the package of its name.
    command = (
        *(str(workshop.python), "-P", str(FRONT), str(exported), PORT),
        *(str(CACHE_GB), str(MAX_BATCHED_TOKENS), str(MAX_SEQUENCES)),
    )
    return [
        Server(
            name="OpenVINO",
            weights="16-bit",
            command=command,
            style="openai",
            model_name="model",
            versions={"openvino-genai": VERSION},
        )
    ]


def _export(workshop: Workshop, model_dir: Path, target: Path) -> None:
    made = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.parent.mkdir(exist_ok=True)
    tools = workshop.folder / "venv" / "bin"
    options = ("--task", "text-generation-with-past", "--weight-format", "fp16")
    offline = {"HF_HUB_OFFLINE": "1", "PATH": f"{tools}:{os.environ.get('PATH', '')}"}
    command = (str(tools / "optimum-cli"), "export", "openvino", "-m", str(model_dir), *options, str(made))
    workshop.run("exporting the model", *command, env=offline)
    if not (made / "openvino_tokenizer.xml").exists():
        convert = (str(tools / "convert_tokenizer"), str(model_dir), "-o", str(made), "--with-detokenizer")
        workshop.run("converting its tokenizer", *convert, env=offline)
    made.rename(target)
