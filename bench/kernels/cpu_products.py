"""The CPU's products with panels beside what the machine reads and oneDNN multiplies, per kind and instruction set.

    python -m bench.kernels.cpu_products [--threads 1]

All linears of a model one after the other, so that none is in a cache when its turn comes. Rounds of every case in
turn, the best of them: other processes only ever slow one down.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.markdown import markdown_table
from kernels import cpu_build
from kernels.cores import use_cores
from kernels.cpu_linear import PanelLinear
from kernels.packed_linear import has_bfloat16_units
from kernels.panel_memory import PanelMemory
from kernels.panels import Kind, PanelMatrix, panel_bytes

ISAS = {5: "AMX", 4: "AVX512-BF16", 3: "AVX512-VNNI", 2: "AVX512", 1: "AVX2"}
# [ins, outs] of a layer, layers, and the head.
SHAPES = {
    "SmolLM2-135M": ([(576, 960), (576, 576), (576, 3072), (1536, 576)], 30, (576, 49152)),
    "Qwen2.5-0.5B": ([(896, 1152), (896, 896), (896, 9728), (4864, 896)], 24, (896, 151936)),
}
FEW_ROWS, MANY_ROWS = (1, 4, 16), (128, 512)
MANY_ROWS_LAYERS = 2


def matrices_of(kind: Kind, model: str, memory: PanelMemory) -> list[PanelMatrix]:
    """What lies in them does not matter to the time, as long as it is there and finite."""
    layer, num_layers, head = SHAPES[model]
    made = []
    for ins, outs in [*layer * num_layers, head]:
        made.append(PanelMatrix(memory.take(panel_bytes(kind, ins, outs)).fill_(0x30), kind, ins, outs))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels.cpu_products")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = cpu_build.load()
    if library is None:
        raise SystemExit("there are no CPU kernels here")
    best = library.pdq_isa()
    use_cores(library, options.threads, None)
    linears = PanelLinear(library)
    for model in SHAPES:
        cases: dict[tuple[str, str], dict[int, Callable[[], None]]] = {}
        sizes: dict[Kind, tuple[float, float]] = {}
        for kind in Kind:
            matrices = matrices_of(kind, model, PanelMemory())
            many = matrices[: 4 * MANY_ROWS_LAYERS]
            sizes[kind] = float(sum(m.panels.numel() for m in matrices)), float(sum(m.ins * m.outs for m in many))
            for isa in range(best, 0, -1):
                case = cases.setdefault((kind.name.lower(), ISAS[isa]), {})
                for rows in FEW_ROWS + MANY_ROWS:
                    case[rows] = _case(linears, library.pdq_use_isa, isa, matrices if rows in FEW_ROWS else many, rows)
        if has_bfloat16_units(torch.bfloat16):
            cases["bf16", "oneDNN, packed"] = _onednn(model)
        read = torch.ones(64 << 20)
        seconds: dict[tuple[str, str, int], float] = {}
        read_s = float("inf")
        for _ in range(options.rounds):
            read_s = min(read_s, _timed(read.sum))
            for (kind_name, isa_name), case in cases.items():
                for rows, run in case.items():
                    key = (kind_name, isa_name, rows)
                    seconds[key] = min(seconds.get(key, float("inf")), _timed(run))
        library.pdq_use_isa(-1)
        table = []
        for kind_name, isa_name in cases:
            num_bytes, products = sizes[Kind[kind_name.upper()]]
            few = [f"{num_bytes / seconds[kind_name, isa_name, rows] / 1e9:.1f}" for rows in FEW_ROWS]
            lots = [f"{2 * products * rows / seconds[kind_name, isa_name, rows] / 1e9:.0f}" for rows in MANY_ROWS]
            table.append([kind_name, isa_name, *few, *lots])
        header = ["weights", "with", *[f"GB/s at {n}" for n in FEW_ROWS], *[f"GFLOP/s at {n}" for n in MANY_ROWS]]
        print(f"{model}, {options.threads} threads; torch sums {read.nbytes / read_s / 1e9:.1f} GB/s\n")
        print(markdown_table(header, table), "\n", flush=True)


def _timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _case(
    linears: PanelLinear, use_isa: Callable[[int], int], isa: int, matrices: list[PanelMatrix], rows: int
) -> Callable[[], None]:
    xs = {matrix.ins: torch.ones(rows, matrix.ins).bfloat16() for matrix in matrices}

    def run() -> None:
        use_isa(isa)
        for matrix in matrices:
            linears.linear(xs[matrix.ins], matrix, None)

    return run


def _onednn(model: str) -> dict[int, Callable[[], None]]:
    layer, num_layers, head = SHAPES[model]
    weights = [
        (ins, torch.ops.mkldnn._reorder_linear_weight(torch.ones(outs, ins).bfloat16(), None))
        for ins, outs in [*layer * num_layers, head]
    ]

    def case(of: list[tuple[int, Tensor]], rows: int) -> Callable[[], None]:
        xs = {ins: torch.ones(rows, ins).bfloat16() for ins, _ in of}

        def run() -> None:
            for ins, weight in of:
                torch.ops.mkldnn._linear_pointwise(xs[ins], weight, None, "none", [], "")

        return run

    few = {rows: case(weights, rows) for rows in FEW_ROWS}
    return few | {rows: case(weights[: 4 * MANY_ROWS_LAYERS], rows) for rows in MANY_ROWS}


if __name__ == "__main__":
    with torch.inference_mode():
        main()
