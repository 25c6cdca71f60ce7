"""Blocks of token prefixes whose KV is known, kept for the next prompt that starts the same.

Full blocks form a tree. A block's key is the sha256 of its parent's key and its own tokens, so one lookup stands for
the whole prefix; tokens are compared on a hit all the same. Where tokens stand for an image, its digest is part of the
key, for images of one size have the same tokens. The cache holds its blocks in the allocator like any sequence does;
blocks that nobody else holds are evicted when room is needed, least recently used leaves first. Knows no tensor and no
sequence.
"""

import heapq
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from engine.block_allocator import BlockAllocator
from messages import ImageRef


@dataclass(frozen=True, slots=True)
class _Content:
    """What one full block holds the KV of."""

    tokens: tuple[int, ...]
    images: tuple[ImageRef, ...]  # that some of these tokens stand for


@dataclass(slots=True, eq=False)
class _Node:
    """One cached block. It is pinned while someone else holds it or a child is pinned; only leaves are evicted."""

    key: bytes
    parent: "_Node | None"  # None: the first block of a prompt
    content: "_Content"
    block_id: int
    is_held: bool  # by someone besides the cache
    last_used: int
    num_children: int = 0
    num_pinned_children: int = 0
    is_cached: bool = True

    @property
    def is_pinned(self) -> bool:
        return self.is_held or self.num_pinned_children > 0

    @property
    def is_evictable_leaf(self) -> bool:
        return self.is_cached and not self.is_held and self.num_children == 0


class PrefixCache:
    """Blocks by prefix. `num_evictable` blocks would be free after evicting all that can be."""

    def __init__(self, allocator: BlockAllocator, block_size: int) -> None:
        self.block_size = block_size
        self._allocator = allocator
        self._nodes: dict[bytes, _Node] = {}
        self._by_block: dict[int, _Node] = {}
        self._num_pinned = 0
        self._clock = 0
        self._leaves: list[tuple[int, int, _Node]] = []  # heap of (last_used, push number, leaf); may be outdated
        self._num_pushed = 0
        allocator.watch(self._on_hold_change)

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache."""
        return len(self._nodes)

    @property
    def num_evictable(self) -> int:
        """Blocks that `evict` can free."""
        return len(self._nodes) - self._num_pinned

    def match(self, token_ids: Sequence[int], max_tokens: int, images: Sequence[ImageRef] = ()) -> list[int]:
        """Blocks of the longest cached prefix of at most `max_tokens` tokens, shared for the caller, who frees them."""
        matched: list[_Node] = []
        parent: _Node | None = None
        for content in self._full_blocks(token_ids[:max_tokens], images):
            node = self._nodes.get(_key(parent, content))
            if node is None or node.content != content or node.parent is not parent:
                break
            matched.append(node)
            parent = node
        block_ids = [node.block_id for node in matched]
        self._allocator.share(block_ids)
        for node in matched:
            self._touch(node)
        return block_ids

    def insert(self, token_ids: Sequence[int], block_ids: Sequence[int], images: Sequence[ImageRef] = ()) -> int:
        """Remembers the full blocks of `token_ids`, whose KV lies computed in `block_ids`; returns how many are new.

        A prefix that is cached already keeps its block; the caller's own block is then not taken.
        """
        parent: _Node | None = None
        num_new = 0
        for content, block_id in zip(self._full_blocks(token_ids, images), block_ids, strict=False):
            key = _key(parent, content)
            node = self._nodes.get(key)
            if node is None:
                assert block_id not in self._by_block, f"block {block_id} is cached under another prefix"
                node = self._add(key, parent, content, block_id)
                num_new += 1
            elif node.content != content or node.parent is not parent:
                break  # two prefixes of one sha256: the first one stays
            self._touch(node)
            parent = node
        return num_new

    def evict(self, num_blocks: int) -> int:
        """Frees up to that many blocks nobody else holds, least recently used leaves first; returns how many."""
        num_freed = 0
        while num_freed < num_blocks and self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            if node.is_evictable_leaf and node.last_used == last_used:
                self._remove(node)
                num_freed += 1
        return num_freed

    def clear(self) -> None:
        """Forgets everything; blocks that others hold stay theirs."""
        block_ids = list(self._by_block)
        for node in self._nodes.values():
            node.is_cached = False
        self._nodes.clear()
        self._by_block.clear()
        self._leaves.clear()
        self._num_pinned = 0
        self._allocator.free(block_ids)

    def check_integrity(self) -> None:
        """The tree, its counters and the allocator agree. Raises AssertionError."""
        assert {node.block_id: node for node in self._nodes.values()} == self._by_block, "block index differs"
        assert len(self._by_block) == len(self._nodes), "a block is cached twice"
        children: dict[_Node, list[_Node]] = {node: [] for node in self._nodes.values()}
        for key, node in self._nodes.items():
            assert node.is_cached and node.key == key == _key(node.parent, node.content), "key differs"
            if node.parent is not None:
                assert node.parent in children, "a block's parent is gone"
                children[node.parent].append(node)
            count = self._allocator.ref_count(node.block_id)
            assert count >= 1 and node.is_held == (count > 1), f"block {node.block_id} has {count} holders"
        for node, below in children.items():
            assert node.num_children == len(below), "children miscounted"
            assert node.num_pinned_children == sum(child.is_pinned for child in below), "pinned children miscounted"
        assert self._num_pinned == sum(node.is_pinned for node in children), "pinned blocks miscounted"
        live = {node for last_used, _, node in self._leaves if last_used == node.last_used}
        assert all(node in live for node in children if node.is_evictable_leaf), "a leaf cannot be evicted"

    def _full_blocks(self, token_ids: Sequence[int], images: Sequence[ImageRef]) -> list[_Content]:
        size = self.block_size
        return [
            _Content(
                tuple(token_ids[start : start + size]),
                tuple(image for image in images if image.first < start + size and image.end > start),
            )
            for start in range(0, len(token_ids) - size + 1, size)
        ]

    def _add(self, key: bytes, parent: _Node | None, content: _Content, block_id: int) -> _Node:
        self._allocator.share([block_id])  # not cached yet, so the watcher passes over it
        node = _Node(key, parent, content, block_id, is_held=True, last_used=self._clock)
        self._nodes[key] = node
        self._by_block[block_id] = node
        if parent is not None:
            parent.num_children += 1
        self._num_pinned += 1
        self._pin_parent(node, 1)
        return node

    def _remove(self, node: _Node) -> None:
        """Takes out a leaf nobody else holds."""
        node.is_cached = False
        del self._nodes[node.key]
        del self._by_block[node.block_id]
        if node.parent is not None:
            node.parent.num_children -= 1
            self._offer_leaf(node.parent)
        self._allocator.free([node.block_id])

    def _on_hold_change(self, block_id: int) -> None:
        node = self._by_block.get(block_id)
        if node is None:
            return
        was_pinned = node.is_pinned
        node.is_held = self._allocator.ref_count(block_id) > 1
        if node.is_pinned != was_pinned:
            change = 1 if node.is_pinned else -1
            self._num_pinned += change
            self._pin_parent(node, change)
        if not node.is_held:
            self._touch(node)

    def _pin_parent(self, node: _Node, change: int) -> None:
        """`node` became pinned (+1) or not (-1): tells the ancestors, as far as that changes them."""
        parent = node.parent
        while parent is not None:
            was_pinned = parent.is_pinned
            parent.num_pinned_children += change
            if parent.is_pinned == was_pinned:
                return
            self._num_pinned += change
            parent = parent.parent

    def _touch(self, node: _Node) -> None:
        self._clock += 1
        node.last_used = self._clock
        self._offer_leaf(node)

    def _offer_leaf(self, node: _Node) -> None:
        if not node.is_evictable_leaf:
            return
        self._num_pushed += 1  # orders equal entries
        heapq.heappush(self._leaves, (node.last_used, self._num_pushed, node))
        if len(self._leaves) > 2 * len(self._nodes) + 64:  # mostly outdated entries
            current = {id(entry[2]): entry for entry in self._leaves if entry[0] == entry[2].last_used}
            self._leaves = [entry for entry in current.values() if entry[2].is_evictable_leaf]
            heapq.heapify(self._leaves)


def _key(parent: _Node | None, content: _Content) -> bytes:
    """All blocks have equally many tokens, so what follows them is never taken for one."""
    said = [parent.key if parent else b"", struct.pack(f"<{len(content.tokens)}q", *content.tokens)]
    said += [image.digest + struct.pack("<q", image.first) for image in content.images]
    return sha256(b"".join(said)).digest()
