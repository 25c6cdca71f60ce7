"""`python -m bench.kernels compile [--capability 90] [--family NAME]`: machine code as JSON lines."""

import argparse
import json
from dataclasses import asdict

from bench.kernels.case import CAPABILITIES
from bench.kernels.compiled import compile_cases, faults
from bench.kernels.families import FAMILIES, cases_of


def main() -> None:
    """Prints one JSON object per case and capability: family, case, capability, kernels, faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["compile"])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, action="append")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    arguments = parser.parse_args()
    cases = [case for family in arguments.family or FAMILIES for case in cases_of(family)]
    for capability in arguments.capability or CAPABILITIES:
        able = [case for case in cases if capability in case.capabilities]
        for case, kernels in zip(able, compile_cases(able, capability), strict=True):
            record = {
                "family": case.family,
                "case": case.name,
                "capability": capability,
                "kernels": [asdict(kernel) for kernel in kernels],
                "faults": faults(case, kernels),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
