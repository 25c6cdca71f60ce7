"""`python -m bench.doctor TITLE [--device cuda:0]`: one GPU check, its findings as JSON lines. See child.py."""

import argparse
import os
from functools import partial

import msgspec
import torch

from bench.doctor.check import attempt
from bench.doctor.gpu_checks import GPU_CHECKS


def main() -> None:
    """Exit code 0 whatever was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("title", choices=GPU_CHECKS)
    parser.add_argument("--device", type=torch.device, default="cuda:0")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(arguments.device)  # Triton launches on the current one
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)  # what libraries print is no finding
        for finding in attempt(arguments.title, partial(GPU_CHECKS[arguments.title], arguments.device)):
            answers.write(msgspec.json.encode(finding) + b"\n")


if __name__ == "__main__":
    main()
