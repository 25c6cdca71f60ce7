"""The receiver's choice among its transports: fallbacks, what failed is left alone for a while, and what is counted."""

from collections.abc import Sequence

import pytest
import structlog.testing
import torch

from errors import KVTransferFailed
from kv_transfer.offer_check import OfferGone
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from messages.kv_transfer import KVHandle, PoolExport, TransferCount

HANDLE = KVHandle("t", "prefill-1", "pdq-far", 7, 0, 1, "layout", 20, [0, 1])
EXPORT = PoolExport("prefill-1", "pdq-far", 7, "far", "cpu", 8, 4, {"nixl": b"", "gloo": b""})


class Scripted:
    """A puller that fails as long as `error` is set."""

    def __init__(self, kind: str, error: Exception | None = None) -> None:
        self.kind, self.error, self.calls = kind, error, 0

    def pull(self, export: PoolExport, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        into[block_ids] = 1

    def prune(self) -> int:
        return 0

    def close(self) -> None:
        pass


def receiver_of(*pullers: Scripted, require: str | None = None) -> KVReceiver:
    return KVReceiver("layout", 8, network=pullers, place=Place("here"), require=require)


def pull(receiver: KVReceiver) -> None:
    receiver.pull(HANDLE, torch.zeros(4, 8, dtype=torch.uint8), [2, 3], EXPORT, "r-1")


def test_what_fails_is_passed_over_for_a_while() -> None:
    first, second = Scripted("nixl", KVTransferFailed("no route")), Scripted("gloo")
    receiver = receiver_of(first, second)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            pull(receiver)
    (failed,) = (line for line in logs if line["event"] == "kv_transport_failed")
    assert (failed["request_id"], failed["kind"], failed["reason"]) == ("r-1", "nixl", "no route")
    assert (first.calls, second.calls) == (1, 3)
    assert receiver.counts["nixl"] == TransferCount(failures=1)
    assert receiver.counts["gloo"] == TransferCount(pulls=3, num_bytes=48)


def test_when_all_have_failed_all_are_tried_again() -> None:
    first, second = Scripted("nixl", KVTransferFailed("no route")), Scripted("gloo", KVTransferFailed("refused"))
    receiver = receiver_of(first, second)
    with pytest.raises(KVTransferFailed, match="refused"):
        pull(receiver)
    first.error = None
    pull(receiver)
    assert receiver.counts["nixl"] == TransferCount(pulls=1, num_bytes=16, failures=1)


def test_an_offer_that_is_gone_is_gone_on_every_way() -> None:
    first, second = Scripted("nixl", OfferGone("withdrawn")), Scripted("gloo")
    receiver = receiver_of(first, second)
    with pytest.raises(OfferGone):
        pull(receiver)
    first.error = None
    pull(receiver)
    assert (first.calls, second.calls) == (2, 0)


def test_only_what_is_required() -> None:
    first, second = Scripted("nixl", KVTransferFailed("no route")), Scripted("gloo")
    with pytest.raises(KVTransferFailed, match="no route"):
        pull(receiver_of(first, second, require="nixl"))
    assert second.calls == 0
    with pytest.raises(KVTransferFailed, match="pool pdq-far on far cannot be reached by shared_memory alone"):
        pull(receiver_of(first, second, require="shared_memory"))


def test_an_export_of_another_epoch_says_nothing_of_this_handle() -> None:
    """Then the pool can only be one of this host's, where there is none of that name."""
    network = Scripted("nixl")
    receiver = receiver_of(network)
    stale = PoolExport("prefill-1", "pdq-far", 6, "far", "cpu", 8, 4, {"nixl": b""})
    with pytest.raises(KVTransferFailed):
        receiver.pull(HANDLE, torch.zeros(4, 8, dtype=torch.uint8), [2, 3], stale)
    assert network.calls == 0
