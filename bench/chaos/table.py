"""What the parts found, as rows of one table: what, bound, measured. Pure."""

from bench.chaos.cancels import CancelsResult
from bench.chaos.cluster import LEASE_S
from bench.chaos.handoff_damage import Counts
from bench.chaos.matrix import CellResult
from bench.chaos.storm import GAP_LIMIT_S, StormResult, percentile
from bench.chaos.story import Difference

MOST_LISTED = 10  # problems that are spelt out

Row = tuple[str, str, str]


def storm_rows(result: StormResult) -> list[Row]:
    """The storm's part of the table."""
    killed = ", ".join(f"{count} {role}" for role, count in sorted(result.kills.items()))
    return [
        (
            f"{result.num_streams} streams, {result.kills.total()} SIGKILLs: streams that failed",
            "0",
            _listed(result.failures),
        ),
        ("tokens lost", "0", str(result.difference.lost)),
        ("tokens duplicated", "0", str(result.difference.duplicated)),
        ("tokens reordered", "0", str(result.difference.reordered)),
        ("tokens different", "0", str(result.difference.different)),
        (
            f"longest gap of a stream, p99 (lease {LEASE_S:g} s)",
            f"{GAP_LIMIT_S:g} s",
            f"{result.gap_p99_s:.2f} s (p50 {percentile(result.gaps_s, 50):.2f}, "
            f"undisturbed p99 {percentile(result.undisturbed_gaps_s, 99):.2f})",
        ),
        ("left behind", "nothing", "nothing" if result.census and result.census.is_clean else str(result.census)),
        ("killed; reconnects", "-", f"{killed}; {result.num_reconnects}"),
    ]


def matrix_rows(results: list[CellResult]) -> list[Row]:
    """The matrix's part of the table."""
    failed = [f"{result.cell}: {result.problem}" for result in results if result.problem]
    return [(f"fault matrix, {len(results)} cells: cells that failed", "0", _listed(failed))]


def handoff_rows(counts: dict[str, Counts]) -> list[Row]:
    """The handoff's part of the table."""
    total = Counts()
    for some in counts.values():
        total = total.plus(some)
    return [
        (f"{total.injected} faults in the handoff: wrong text", "0", str(total.wrong)),
        ("handoffs after a fault that did not work", "0", str(total.broken)),
        ("faults noticed; without effect on the bytes", "-", f"{total.noticed}; {total.harmless}"),
    ]


def cancels_rows(result: CancelsResult) -> list[Row]:
    """The cancels' part of the table."""
    return [
        (
            f"{result.num_cancels} cancels: waves that left something",
            "0",
            _listed([str(each) for each in result.dirty]),
        ),
        (
            f"{result.num_afterwards} requests afterwards that were not right",
            "0",
            _listed([*result.failures, *([] if result.difference == Difference() else [str(result.difference)])]),
        ),
    ]


def _listed(problems: list[str]) -> str:
    return "\n".join([str(len(problems)), *problems[:MOST_LISTED]])
