"""What can go wrong in the KV handoff, a function per fault, applied to one handoff that is about to happen.

Knows both ends of the handoff (handoff.py); what becomes of a fault is counted by handoff_damage.py.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from bench.chaos.handoff import BLOCK_BYTES, LAYOUT, MAX_OFFERS, NUM_BLOCKS, Handoff, Job
from kv_transfer.seal import Seal
from messages.kv_transfer import PoolExport
from settings.kv import TransportKind

_WILD = (-1, -(2**63), NUM_BLOCKS, MAX_OFFERS + 2**20, 2**31, 2**32, 2**63, 2**64 - 1)


@dataclass(slots=True)
class Scene:
    """One handoff, about to go wrong. A fault changes what it has to."""

    handoff: Handoff
    chance: random.Random
    job: Job
    export: PoolExport | None
    kv: torch.Tensor  # of the request: uint8 [blocks, block_bytes]
    cleanup: Callable[[], object] = lambda: None  # after the pull

    @property
    def block_ids(self) -> list[int]:
        """Of the owner."""
        return self.job.handle.block_ids

    def lie(self, **fields: object) -> None:
        """The owner itself says this, and seals it."""
        handle = msgspec.structs.replace(self.job.handle, **fields)
        self.job = self.handoff.sealed(Job(handle, self.job.request_id, self.job.choice, self.job.hop))

    def withdraw(self) -> None:
        """The owner ends the offer, writes into the blocks and, often, offers them again in the same slot."""
        sender = self.handoff.owner.sender
        sender.withdraw(self.job.handle.transfer_id)
        self.handoff.owner.fill(self.block_ids)
        if self.chance.random() < 0.7:
            for _ in range(MAX_OFFERS):  # slots are used in turn
                again = self.handoff.offer(self.block_ids)
                if again.handle.slot == self.job.handle.slot:
                    break
                sender.withdraw(again.handle.transfer_id)


# -- handles that are not the owner's ------------------------------------------------------------------------------


def replayed_handle(scene: Scene) -> None:
    """Another request's, which stands and is sealed, comes with this job."""
    free = [block for block in range(NUM_BLOCKS) if block not in scene.block_ids]
    other = scene.handoff.offer(scene.chance.sample(free, len(scene.block_ids)))
    scene.job = Job(other.handle, scene.job.request_id, scene.job.choice, scene.job.hop)


def replayed_hop(scene: Scene) -> None:
    """The handle of an earlier hop, or of another choice, of the same request."""
    choice, hop = scene.chance.choice([(0, 2), (1, 1), (0, 0)])
    scene.job = Job(scene.job.handle, scene.job.request_id, choice, hop)


def forged_field(scene: Scene) -> None:
    """Somebody without the secret changed a field."""
    handle = scene.job.handle
    field, value = scene.chance.choice(
        [
            ("block_ids", scene.block_ids[::-1] + [0]),
            ("generation", handle.generation + 2),
            ("slot", handle.slot + 1),
            ("pool", "pdq-chaos-0123456789abcdef"),
            ("pool_epoch", handle.pool_epoch + 1),
            ("num_tokens", handle.num_tokens + 1),
            ("is_summed", False),
            ("worker_id", "somebody"),
            ("transfer_id", "another"),
            ("mac", handle.mac[:-1]),
            ("mac", b""),
        ]
    )
    forged = msgspec.structs.replace(handle, **{field: value})
    scene.job = Job(forged, scene.job.request_id, scene.job.choice, scene.job.hop)


def forged_handle(scene: Scene) -> None:
    """Somebody without the secret made one, of blocks and an offer that are there."""
    free = [block for block in range(NUM_BLOCKS) if block not in scene.block_ids]
    other = scene.handoff.offer(scene.chance.sample(free, len(scene.block_ids)))
    job = scene.job
    forged = Seal(b"another secret of 16").seal_handle(other.handle, job.request_id, job.choice, job.hop)
    scene.job = Job(forged, job.request_id, job.choice, job.hop)


def forged_export(scene: Scene) -> None:
    """The registry names another pool, or another place, for the handle's."""
    export = scene.handoff.export
    changes: list[dict[str, Any]] = [
        {"host_id": "elsewhere"},
        {"device": "GPU-0"},
        {"block_bytes": 1},
        {"mac": b""},
        {"addresses": {"nixl": b""}},
    ]
    changes += [{"pool": "pdq-chaos-0123456789abcdef"}, {"pool_epoch": export.pool_epoch + 1}]
    scene.export = msgspec.structs.replace(export, **scene.chance.choice(changes))


# -- owners that say something wrong -------------------------------------------------------------------------------


def stale_epoch(scene: Scene) -> None:
    """The handle is of another pool of that name; sometimes the export too."""
    epoch = scene.job.handle.pool_epoch + scene.chance.choice([-1, 1])
    scene.lie(pool_epoch=epoch)
    if scene.chance.random() < 0.5:
        scene.export = scene.handoff.seal.seal_export(msgspec.structs.replace(scene.handoff.export, pool_epoch=epoch))


def stale_generation(scene: Scene) -> None:
    """The offer has ended before the pull begins."""
    scene.withdraw()


def wrong_generation(scene: Scene) -> None:
    """One that never stood, or not yet."""
    generation = scene.job.handle.generation
    scene.lie(generation=scene.chance.choice([generation + 1, generation + 2, 0, *_WILD]))


def swapped_ids(scene: Scene) -> None:
    """The blocks in another order."""
    scene.lie(block_ids=scene.block_ids[1:] + scene.block_ids[:1])


def repeated_id(scene: Scene) -> None:
    """One block twice."""
    scene.lie(block_ids=[scene.block_ids[0]] * len(scene.block_ids))


def other_count(scene: Scene) -> None:
    """More blocks than the sequence has, or fewer."""
    scene.lie(block_ids=scene.chance.choice([[], scene.block_ids[1:], scene.block_ids * 2, scene.block_ids * 500]))


def id_out_of_range(scene: Scene) -> None:
    """A block that the pool does not have."""
    scene.lie(block_ids=[*scene.block_ids[:-1], scene.chance.choice(_WILD)])


def slot_out_of_range(scene: Scene) -> None:
    """A slot that the pool does not have."""
    scene.lie(slot=scene.chance.choice([MAX_OFFERS, *_WILD]))


def wrong_layout(scene: Scene) -> None:
    """The handle says another model, shape or dtype."""
    scene.lie(layout_hash="another layout")


def wrong_dtype(scene: Scene) -> None:
    """The handle says ours, and the pool it names is of another type: other bytes per block, or another meaning."""
    layout, block_bytes = scene.chance.choice([("float32", BLOCK_BYTES), ("float32", 2 * BLOCK_BYTES)])
    owner = scene.handoff.new_owner(layout, block_bytes)
    scene.job = scene.handoff.offer(scene.block_ids, owner)
    scene.lie(layout_hash=LAYOUT)
    said = owner.export(scene.handoff.device)
    if scene.chance.random() < 0.5:
        said = msgspec.structs.replace(said, block_bytes=BLOCK_BYTES)
    scene.export = scene.handoff.seal.seal_export(said)
    scene.cleanup = owner.close


def restart(scene: Scene) -> None:
    """The owner is gone, and another process has its worker id; its old export or the new one is known."""
    old = scene.handoff.export
    scene.handoff.owner.close()
    scene.handoff.start_owner()
    scene.handoff.offer(scene.block_ids)
    scene.export = scene.chance.choice([old, scene.handoff.export, None])


def reused_name(scene: Scene) -> None:
    """A pool of another owner has the name of the handle's, and an offer like it: all but the epoch is the same."""
    directory, old = scene.handoff.driver.directory, scene.handoff.owner
    old.close()
    if scene.chance.random() < 0.5:
        scene.handoff.receiver.prune()  # or else the old pool is still mapped
    scene.handoff.start_owner()
    new = scene.handoff.owner.sender
    handle = scene.job.handle
    while (again := new.offer(handle.transfer_id, scene.block_ids, handle.num_tokens)).slot != handle.slot:
        new.withdraw(handle.transfer_id)
    path = directory / old.sender.pool
    path.write_bytes((directory / new.pool).read_bytes())
    path.chmod(0o600)
    scene.lie(generation=again.generation)
    scene.export = None

    def remove() -> None:
        path.unlink()
        new.withdraw(handle.transfer_id)

    scene.cleanup = remove


def cut_pool(scene: Scene) -> None:
    """The pool's file is shorter than its head says."""
    path = scene.handoff.driver.directory / scene.handoff.owner.sender.pool
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(whole) - scene.chance.choice([1, BLOCK_BYTES, NUM_BLOCKS * BLOCK_BYTES, len(whole) - 512]))

    def mend() -> None:
        with path.open("r+b") as file:
            file.write(whole)

    scene.cleanup = mend


def epoch_during_copy(scene: Scene) -> None:
    """The pool becomes another one while it is read: its head has another epoch when the copy is over."""
    words = memoryview(scene.handoff.owner.sender.head[0])[:64].cast("Q")

    def change() -> None:
        words[2] ^= 1

    scene.handoff.mischief.after = change
    scene.cleanup = change


# -- bytes that go wrong on the way --------------------------------------------------------------------------------


def swapped_blocks(scene: Scene) -> None:
    """Blocks arrive in each other's place."""
    mischief = scene.handoff.mischief
    if scene.handoff.kind == "gloo":
        mischief.spoil = lambda staging: staging.copy_(staging.view(-1, BLOCK_BYTES).roll(1, 0).flatten())
    else:
        mischief.choose = lambda theirs, ours: ([*theirs[1:], theirs[0]], ours)


def cut_copy(scene: Scene) -> None:
    """The last blocks, or the last bytes, do not arrive."""
    mischief = scene.handoff.mischief
    scene.handoff.pool.zero_()
    if scene.handoff.is_mapped:
        mischief.choose = lambda theirs, ours: (theirs[:-1], ours[:-1])
    else:
        num_bytes = scene.chance.randint(1, BLOCK_BYTES)
        mischief.spoil = lambda staging: staging[-num_bytes:].zero_()


def flipped_byte(scene: Scene) -> None:
    """One bit of one byte changes between the offer and our pool."""
    bit = 1 << scene.chance.randrange(8)
    owner, place = scene.handoff.owner, scene.chance.randrange(BLOCK_BYTES)
    if scene.handoff.is_mapped:
        scene.handoff.mischief.before = lambda: owner.blocks[scene.block_ids[0], place].bitwise_xor_(bit)
    else:
        scene.handoff.mischief.spoil = lambda staging: staging[place].bitwise_xor_(bit)


def late_write(scene: Scene) -> None:
    """The owner writes into blocks that it still offers."""
    some = scene.block_ids[: scene.chance.randint(1, len(scene.block_ids))]
    scene.handoff.mischief.before = lambda: scene.handoff.owner.fill(some)


def withdrawn_before_copy(scene: Scene) -> None:
    """The owner ends the offer and reuses the blocks, after we found that it stands."""
    scene.handoff.mischief.before = scene.withdraw


def withdrawn_after_copy(scene: Scene) -> None:
    """The same when everything was copied: nobody can tell whether in time."""
    scene.handoff.mischief.after = scene.withdraw


Fault = Callable[[Scene], None]
_EVERYWHERE: tuple[Fault, ...] = (
    replayed_handle,
    replayed_hop,
    forged_field,
    forged_handle,
    forged_export,
    stale_epoch,
    stale_generation,
    wrong_generation,
    swapped_ids,
    repeated_id,
    other_count,
    id_out_of_range,
    slot_out_of_range,
    wrong_layout,
    wrong_dtype,
    restart,
    swapped_blocks,
    cut_copy,
    flipped_byte,
    late_write,
    withdrawn_before_copy,
    withdrawn_after_copy,
)
_MAPPED: tuple[Fault, ...] = (reused_name, epoch_during_copy)
_SHARED_MEMORY: tuple[Fault, ...] = (cut_pool,)


def faults_of(kind: TransportKind) -> list[Fault]:
    """What can go wrong with a transport."""
    mapped = _MAPPED if kind in ("shared_memory", "cuda_ipc") else ()
    return [*_EVERYWHERE, *mapped, *(_SHARED_MEMORY if kind == "shared_memory" else ())]
