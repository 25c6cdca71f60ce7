"""Which kernel families there are, by the stem of their file in kernels/gpu/; each module here says its cases."""

from importlib import import_module

from bench.kernels.case import CAPABILITIES, KernelCase

FAMILIES = (
    "rms_norm",
    "rope",
    "silu_mul",
    "kv_write",
    "attention_decode",
    "attention_prefill",
    "block_copy",
    "sampling",
    "logits_bitmask",
    "split_k",
    "int4_linear",
    "fp8_linear",
)


def cases_of(family: str) -> list[KernelCase]:
    """The production shapes of one family: what is compiled, timed and checked on a GPU."""
    cases: list[KernelCase] = import_module(f"bench.kernels.{family}").cases()
    return cases


def compiled_for(family: str, capability: int, is_half: bool = False) -> list[KernelCase]:
    """The cases of one family that a capability runs.

    Half of it, for a test that may not take the two minutes of all: the first case, which is on every capability, and
    of the others every second, so that each is on two of the four.
    """
    place = CAPABILITIES.index(capability)
    return [
        case
        for index, case in enumerate(cases_of(family))
        if capability in case.capabilities and not (is_half and index and (index + place) % 2)
    ]


def small_cases_of(family: str) -> list[KernelCase]:
    """A few small shapes of one family: what is run under the interpreter."""
    cases: list[KernelCase] = import_module(f"bench.kernels.{family}").small_cases()
    return cases
