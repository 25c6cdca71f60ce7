"""Workers of a simulated cluster: the rooms' own loops, offers, heartbeats and transfers, over a toy model.

Knows how a worker is put together, as the rooms' `work` does, how it dies, and what must hold inside it.
"""

from pathlib import Path
from typing import Any

from bench.chaos.protocol.connections import open_blocking
from bench.chaos.protocol.oracle import Violation
from bench.chaos.protocol.process import Job, Process
from bench.chaos.protocol.shape import Shape
from bench.chaos.protocol.toy_model import MODEL_HASH, ToyRunner, layout
from bench.chaos.protocol.watched import (
    FiberHeartbeat,
    Offered,
    PausingDriver,
    WatchedReceiver,
    WatchedSender,
    WatchedSpace,
)
from broker.client import Broker
from broker.status_board import StatusBoard
from decode_worker.worker import DecodeWorker
from engine.kv_pool import KVPool
from kv_transfer.checksum import BlockSummer
from kv_transfer.host import host_id
from kv_transfer.offers import Offer
from kv_transfer.seal import Seal
from kv_transfer.segment import sweep_segments
from messages.job import DecodeJob
from messages.worker_status import Role
from prefill_worker.worker import PrefillWorker
from settings.loading import Settings

HOST_ID = host_id()


class SimulatedWorker:
    """A worker process."""

    def __init__(
        self,
        role: Role,
        process: Process,
        broker: Broker,
        settings: Settings,
        shape: Shape,
        directory: Path,
        offered: Offered,
    ) -> None:
        self.role, self.process, self.settings = role, process, settings
        num_blocks = shape.prefill_blocks if role is Role.PREFILL else shape.decode_blocks
        self.is_draining = False
        self.has_stalled = False
        self.board = StatusBoard(role)
        self.board.worker_id = process.name
        self.heartbeat = FiberHeartbeat(
            settings.redis,
            settings.queue,
            process.name,
            role,
            self.board.read,
            num_rounds=self.board.num_rounds,
            on_stall=self._note_stall,
        )
        self.heartbeat._redis = open_blocking(process)
        self.heartbeat.before_beat = self._note_claims
        self.heartbeat.on_tick.append(lambda: sweep_segments(directory))
        has_cache = settings.kv.prefix_cache and (role is Role.PREFILL or shape.local_prefill != "never")
        self.space = WatchedSpace(num_blocks, settings.kv.block_size, has_cache)
        blocks = layout(settings.kv.block_size)
        layout_hash = blocks.hash(MODEL_HASH)
        driver = PausingDriver(directory)
        seal, summer = Seal(shape.secret), BlockSummer() if shape.checksums else None
        pool = KVPool.allocate(blocks, num_blocks)
        self.sender: WatchedSender | None = None
        self.receiver: WatchedReceiver | None = None
        if role is Role.PREFILL or shape.decode_exports:
            max_offers = settings.kv_transfer.max_offers if role is Role.PREFILL else settings.decode.max_running
            self.sender = WatchedSender.create(
                process.name, num_blocks, blocks.block_bytes, layout_hash, max_offers, driver, summer
            )  # type: ignore[assignment]
            assert self.sender is not None
            self.sender.offered, self.sender.standing = offered, {}
            self.space.on_free = self._check_freed
            self.board.export = seal.seal_export(self.sender.export(HOST_ID))
            pool = KVPool.over(blocks, self.sender.buffer)
        runner: Any = ToyRunner(pool)
        parts = settings, broker, self.board, self.heartbeat, runner
        self.worker: PrefillWorker | DecodeWorker
        if role is Role.PREFILL:
            assert self.sender is not None
            self.worker = PrefillWorker(*parts, self.space, self.sender, seal)
        else:
            self.receiver = WatchedReceiver(layout_hash, blocks.block_bytes, driver, summer=summer)
            self.receiver.offered = offered
            self.heartbeat.on_tick.append(self.receiver.prune)
            self.worker = DecodeWorker(*parts, pool, self.space, self.receiver, seal, self.sender)
            self.board.max_running = settings.decode.max_running
            for num_tokens in (1, 5):  # as it measures at its start
                self.worker.local.pace.note(num_tokens, 0.001 * num_tokens)
        self.board.ready(model_hash=MODEL_HASH, block_size=settings.kv.block_size, num_blocks=num_blocks)
        process.start_thread(
            "heartbeat", lambda: self.heartbeat.begin(process.redis.clock), self._note_end_of_heartbeat
        )
        process.main = process.run(self.worker.run())

    def __str__(self) -> str:
        return self.process.name

    @property
    def next_beat_s(self) -> float | None:
        """When the heartbeat's thread wakes up; None while it does not sleep."""
        return min((job.fiber.paused_for.until_s for job in self.process.sleeping_jobs), default=None)

    def beat(self) -> None:
        """The heartbeat's thread wakes up."""
        for job in list(self.process.sleeping_jobs):
            self.process.wake_up(job)

    def _note_end_of_heartbeat(self, job: Job) -> None:
        if not self.has_stalled:
            raise Violation(f"{self.process}: the heartbeat ended") from job.fiber.error

    def _note_stall(self) -> None:
        self.has_stalled = True

    def drain(self) -> None:
        """SIGTERM."""
        self.is_draining = True
        self.process.call(self.worker.stopping.set)

    def retire(self) -> None:
        """The loop has ended by itself: what the room and the process do last."""
        if self.sender is not None:
            self.sender.close()
        if self.receiver is not None:
            self.receiver.close()

    def crash(self, *, keeps_segment: bool) -> None:
        """SIGKILL. Its pool's name stays until somebody sweeps it, or goes with its container."""
        head = b"" if self.sender is None else bytes(self.sender.head[0][: self.sender.head[1]])
        self.process.kill()
        if self.sender is not None:
            assert head == bytes(self.sender.head[0][: self.sender.head[1]]), "the simulation let a dead worker write"
            segment = self.sender._segment
            segment.close() if keeps_segment else segment.remove()
        if self.receiver is not None:
            self.receiver.close()

    @property
    def num_offers(self) -> int:
        """Open offers."""
        return len(self.offers)

    @property
    def offers(self) -> list[Offer]:
        """What it offers: prefill its prompts, decode what it hands on when it stops."""
        offers = self.worker.offers if isinstance(self.worker, PrefillWorker) else self.worker.drain._offers
        return [] if offers is None else list(offers)

    @property
    def has_sequences(self) -> bool:
        """Whether it works on anything."""
        worker = self.worker
        if isinstance(worker, PrefillWorker):
            return bool(worker.running or worker.waiting)
        return bool(worker.admission.num_claimed or worker.publisher.unpublished)

    def has_decoded_from(self, owner: str) -> bool:
        """Whether a sequence that it pulled from that worker has got on since."""
        worker = self.worker
        return isinstance(worker, DecodeWorker) and any(
            isinstance(job := one.claim.job, DecodeJob)
            and job.kv_handle.worker_id == owner
            and one.sequence.num_tokens > job.kv_handle.num_tokens + 1
            for one in worker.running
        )

    @property
    def is_decoding(self) -> bool:
        """Whether it has a batch."""
        return isinstance(self.worker, DecodeWorker) and bool(self.worker.running)

    @property
    def is_pulling(self) -> bool:
        """Whether a pull is half done."""
        return any(job.name == "pull" for job in self.process.jobs)

    @property
    def is_idle(self) -> bool:
        """Whether it holds no sequence, no offer and no block."""
        return not self.has_sequences and self.num_offers == 0 and self.space.num_used == 0

    def check(self) -> None:
        """Blocks and offers, after every step of the process. Raises AssertionError."""
        self.space.check_integrity()
        worker = self.worker
        if isinstance(worker, PrefillWorker) and self.sender is not None and not self.process.is_dead:
            assert self.sender.num_offers == len(worker.offers), (
                "an offer is not known to the sender, or to nobody else"
            )
            for offer in worker.offers:
                for block_id in offer.handle.block_ids:
                    assert self.space.holders(block_id) > 0, f"block {block_id} is on offer and free"

    def _note_claims(self) -> None:
        worker = self.worker
        if worker.stopping.is_set():  # it hands on what it has, and renews no longer what is on its way
            self.process.renewing = frozenset()
            return
        if isinstance(worker, PrefillWorker):
            held: list[Any] = [*worker.batch.claimed]
        else:
            held = [*worker.batch.here, *(output.one for output in worker.publisher.unpublished)]
        self.process.renewing = frozenset(
            (self.heartbeat._keys.queue(one.claim.entry.queue, one.claim.priority), one.claim.entry.entry_id)
            for one in held
            if worker.intake.is_ours(one.claim)  # or it has given up the lease, and waits for a step's end to drop it
        )

    def _check_freed(self, block_ids: list[int]) -> None:
        assert self.sender is not None
        freed = set(block_ids)
        for handle in self.sender.standing.values():
            if freed.intersection(handle.block_ids):
                raise Violation(f"{self.process}: blocks of {handle.transfer_id} were freed while it was on offer")
