"""Ways to break the protocol, each of which the simulation must notice: a test of the test.

A mutant changes the text of a script or of a method, for as long as its context lasts. Each breaks one sentence of
docs/lifecycle.md; where a mutant is not found, the simulation looks away.
"""

import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from broker.intake import Intake
from broker.offer_watch import OfferWatch
from broker.scripts import load_script
from decode_worker.admission import Admission
from decode_worker.departures import Departures
from decode_worker.local_prefill import LocalPrefill
from decode_worker.pull import Pull
from decode_worker.worker import DecodeWorker
from kv_transfer.mapped_puller import MappedPuller
from kv_transfer.offers import Offers
from prefill_worker.handoff import Handoff

Broken = Callable[[], Any]  # -> a context manager


@dataclass(frozen=True)
class Mutant:
    """`broken()` is a context in which the protocol is broken as `what` says."""

    name: str
    what: str
    broken: Broken


def _script(name: str, *changes: tuple[str, str]) -> Broken:
    @contextmanager
    def broken() -> Iterator[None]:
        script = load_script(name)
        source = script.source
        for old, new in changes:
            assert old in source, f"{name}.lua has no {old!r} any more"
            source = source.replace(old, new)
        sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        with patch.object(script, "source", source), patch.object(script, "sha1", sha1):
            yield

    return broken


def _code(owner: type, name: str, *changes: tuple[str, str]) -> Broken:
    """The method's own text, changed."""

    def broken() -> Any:
        method = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(method))
        for old, new in changes:
            assert old in source, f"{owner.__name__}.{name} has no {old!r} any more"
            source = source.replace(old, new)
        names: dict[str, Any] = {}
        exec(source, sys.modules[owner.__module__].__dict__, names)
        return patch.object(owner, name, names[name])

    return broken


def _close_forgets_to_withdraw() -> Any:
    def close(self: Any, transfer_id: str) -> bool:
        offer = self._open.pop(transfer_id, None)
        if offer is not None:
            self._sender._slots.pop(transfer_id)
            self._sender.standing.pop(transfer_id)
            self._free(offer.handle.block_ids)
        return offer is not None

    return patch.object(Offers, "close", close)


_EPOCH_CHECK = ("if state[1] == epoch then", "if state[1] then")

MUTANTS = (
    Mutant("append_any_epoch", "append.lua does not ask for the epoch", _script("append", _EPOCH_CHECK)),
    Mutant(
        "take_same_epoch",
        "take.lua does not raise the epoch",
        _script(
            "take",
            (
                "redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)",
                "tonumber(redis.call('HGET', KEYS[1], 'epoch:' .. choice))",
            ),
        ),
    ),
    Mutant(
        "take_old_hop",
        "take.lua takes a job of an older hop",
        _script("take", (" or tonumber(ARGV[3]) < tonumber(state[2])", "")),
    ),
    Mutant(
        "take_finished",
        "take.lua takes a choice that has ended",
        _script("take", (" or state[3] or", " or")),
    ),
    Mutant(
        "finish_same_epoch",
        "finish.lua does not raise the epoch",
        _script("finish", ("redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)\n", "")),
    ),
    Mutant(
        "cancel_same_epoch",
        "cancel.lua does not raise the epoch",
        _script("cancel", ("redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1) --", "--")),
    ),
    Mutant(
        "put_back_loses",
        "put_back.lua takes the entry away and puts it nowhere",
        _script("put_back", ("redis.call('XADD', KEYS[1], '*', unpack(entries[1][2]))", "")),
    ),
    Mutant(
        "hand_over_not_fenced",
        "hand_over.lua lets its giver go on writing",
        _script("hand_over", ("redis.call('HINCRBY', KEYS[1], 'epoch:' .. choice, 1)\n", "")),
    ),
    Mutant(
        "hand_over_any_epoch",
        "hand_over.lua does not ask for the epoch",
        _script("hand_over", ("if state[1] == ARGV[4] and", "if state[1] and")),
    ),
    Mutant(
        "hand_over_refused_acks",
        "hand_over.lua acknowledges the entry of a refused giver whose job still stands",
        _script("hand_over", ("if stale then", "if true then")),
    ),
    Mutant(
        "ack_before_hand_over",
        "the job is acknowledged before the next one is put",
        _code(
            Intake,
            "hand_over",
            ("    self._heartbeat.drop(claim.entry)\n", "    await self._let_go(claim.entry)\n"),
        ),
    ),
    Mutant(
        "lost_acks",
        "a fenced worker acknowledges an entry that another holds",
        _code(Intake, "lost", ("    self._heartbeat.drop(claim.entry)\n", "    await self._let_go(claim.entry)\n")),
    ),
    Mutant(
        "renews_others",
        "heartbeat.lua renews entries that are no longer the worker's",
        _script("heartbeat", ("if own.err or #own == 0 then", "if own.err then")),
    ),
    Mutant(
        "claims_not_held",
        "claims are not renewed",
        _code(Intake, "_hold", ("self._heartbeat.hold(entry)", "pass")),
    ),
    Mutant(
        "never_reclaims",
        "what dead workers held is left",
        _code(Intake, "_reclaim_if_due", ("if time.monotonic() >= self._reclaim_at", "if False")),
    ),
    Mutant(
        "free_before_withdraw",
        "blocks are freed while they are on offer",
        _code(
            Offers,
            "close",
            ("    self._sender.withdraw(transfer_id)", "    self._free(offer.handle.block_ids)"),
            (
                "    self._free(offer.handle.block_ids)\n    return True",
                "    self._sender.withdraw(transfer_id)\n    return True",
            ),
        ),
    ),
    Mutant("no_withdraw", "an offer is closed and its generation is left", _close_forgets_to_withdraw),
    Mutant(
        "pull_checks_once",
        "the generation is not checked after the copy",
        _code(MappedPuller, "pull", ("check_still_offered(handle, mapping.head)", "pass")),
    ),
    Mutant(
        "freed_at_hand_over",
        "blocks are freed when they are handed over",
        _code(
            Handoff,
            "publish",
            (
                "self.note_offer(offer, took_s)\n",
                "self.note_offer(offer, took_s); self.batch.space.free(offer.handle.block_ids)\n",
            ),
        ),
    ),
    Mutant(
        "failed_pull_leaks",
        "the blocks of a failed pull are not freed",
        _code(Pull, "end", ("    self._batch.free_blocks(self.keep())\n", "")),
    ),
    Mutant(
        "old_kv",
        "KV older than the published tokens is taken",
        _code(Admission, "admit", ("if sequence.num_tokens != job.kv_handle.num_tokens + 1:", "if False:")),
    ),
    Mutant(
        "preempted_is_lost",
        "a preempted sequence is acknowledged and goes nowhere",
        _code(
            Departures,
            "preempt",
            (
                "await self.intake.hand_over(one.claim, one.prefill_job(one.claim.job.hop + 1), Phase.PREFILL_QUEUED)",
                "await self.intake.done(one.claim)",
            ),
        ),
    ),
    Mutant(
        "freed_while_computed",
        "who is refused gives its blocks back while a step still writes into them",
        _code(
            DecodeWorker,
            "step",
            ("self.publisher.publish()", "self.publisher.publish(); self.departures.retire(refused)"),
        ),
    ),
    Mutant(
        "failed_pull_is_done",
        "a sequence whose pull failed is acknowledged and goes nowhere",
        _code(
            Admission,
            "admit",
            ("await self.send_back(claim, attempt=claim.attempt)", "await self.intake.done(claim)"),
        ),
    ),
    Mutant(
        "taken_back_from_its_taker",
        "a stopping worker takes back what another has taken",
        _code(
            Intake,
            "take_back",
            (
                "    return await self._broker",
                "    epoch = (await self._broker.request_reader.states([claim.key]))[0].epoch\n"
                "    return await self._broker",
            ),
        ),
    ),
    Mutant(
        "sought_is_lost",
        "seek.lua takes a job out of the prefill queue and puts it nowhere",
        _script("seek", ("    redis.call('XADD', KEYS[2 + num_classes + class], '*', unpack(entry[2]))\n", "")),
    ),
    Mutant(
        "passed_on_is_lost",
        "a decode worker acknowledges a prompt that it will not prefill",
        _code(
            LocalPrefill,
            "pass_on",
            ("await self.intake.hand_over(claim, again, Phase.PREFILL_QUEUED)", "await self.intake.done(claim)"),
        ),
    ),
    Mutant(
        "local_acked_early",
        "a prompt that is prefilled locally is acknowledged before its sequence has ended",
        _code(
            LocalPrefill,
            "publish",
            (
                "        self.batch.join(one)\n",
                "        self.batch.join(one)\n        await self.intake.done(one.claim)\n",
            ),
        ),
    ),
    Mutant(
        "cached_blocks_freed_twice",
        "a prompt that is passed on gives back more than its cached blocks",
        _code(LocalPrefill, "admit", ("    self.space.free(cached)\n", "    self.space.free(cached + cached)\n")),
    ),
    Mutant(
        "offers_stay",
        "nobody looks what became of an offer",
        _code(OfferWatch, "follow_sequences", ("if state.finished or state.hop > offer.hop:", "if False:")),
    ),
)
