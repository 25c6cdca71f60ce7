"""`python -m bench.kernels compile --capability 90 [--family NAME]`: the machine code of every case, as JSON lines."""

import argparse
import json
from dataclasses import asdict

from bench.kernels.case import CAPABILITIES
from bench.kernels.compiled import compile_case, faults
from bench.kernels.families import FAMILIES, cases_of


def main() -> None:
    """Prints one JSON object per case: family, case, capability, kernels, faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["compile"])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, required=True)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    arguments = parser.parse_args()
    for family in arguments.family or FAMILIES:
        for case in cases_of(family):
            kernels = compile_case(case, arguments.capability)
            record = {
                "family": family,
                "case": case.name,
                "capability": arguments.capability,
                "kernels": [asdict(kernel) for kernel in kernels],
                "faults": faults(case, kernels),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
