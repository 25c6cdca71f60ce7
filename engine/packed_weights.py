"""Packed weights in a file that every worker of a host maps: in memory once, however many workers there are.

The first worker packs a model and writes what it got, the others and every later start map that: nothing is read, cut
or laid out again. A file is named by the model, its files, the layout and the part of the model, and appears under that
name only when it is whole. Where it cannot be kept the weights are private memory, and a warning says so.

A file is a magic word, the header's length and sha256, the header (JSON: which tensors lie where, and the tree of
weights they make up), and the tensors. Mapped read-only, so that a stray write is SIGSEGV and no wrong token. What is
read whole in every step is mapped at once, in pages of 2 MB where the file system has them (ext4 and xfs of recent
kernels); of the embedding only the rows that occur are ever in memory. Memory that runs short may cost pages
of it, which are read again from disk.

The newest `FILES_KEPT` files stay, by when they were last mapped; one that is removed lives on in who maps it.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import mmap
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from io import FileIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import torch
from torch import Tensor

from engine.feed_forward import Experts, Linear, Mlp
from engine.model import LayerWeights, ModelWeights
from kernels.ops import LinearWeight
from telemetry import get_logger

log = get_logger()

FORMAT = 2  # raise it when the same header means something else
FILES_KEPT = 4
MAGIC = b"pdq packed weights\n"
ALIGNMENT = 64  # bytes; what the kernels load at once
HUGE_PAGE = 2 << 20
WRITE_BYTES = 8 << 20  # whole large pages, or the page cache keeps small ones
SMALLEST_BYTES = 32 << 20  # of a checkpoint; below, a copy per worker is less than torch's own
MADV_POPULATE_READ = 22
LONGEST_HEADER_BYTES = 64 << 20

TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (ModelWeights, LayerWeights, Mlp, Experts, Linear, *get_args(LinearWeight))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "uint8", "int8", "int32", "int64")}
_PREFIX = struct.Struct(f"<{len(MAGIC)}sQ32s")  # magic word, length of the header, its sha256


class Place(msgspec.Struct, frozen=True):
    """Where a tensor lies."""

    dtype: str
    shape: list[int]
    offset: int  # bytes from the start of the file


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    key: str
    num_bytes: int  # of the whole file
    hot_bytes: int  # up to here every step reads all of it
    tensors: list[Place]
    tree: Any  # as `_tree_of` makes it


class PackedWeights:
    """The files of one directory. `report` is told what takes time."""

    def __init__(self, directory: Path, report: Callable[[str], None]) -> None:
        self._directory, self._report = directory, report

    def get(self, key: str, make: Callable[[], ModelWeights]) -> ModelWeights:
        """The weights that `key` stands for, mapped; `make` is asked where nobody has written them yet."""
        key = f"{FORMAT} {key}"
        path = self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.weights"
        mapped = _mapped(path, key)
        if mapped is not None:
            return mapped
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._locked():
                mapped = _mapped(path, key)  # somebody else wrote it while we waited
                if mapped is not None:
                    return mapped
                made = make()
                self._report("writing the packed weights, once for this model")
                try:
                    _write(path, key, made)
                except OSError as error:
                    _warn(self._directory, error)
                    return made
                self._remove_old()
        except OSError as error:
            _warn(self._directory, error)
            return make()
        return _mapped(path, key) or made

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._report("waiting for another worker that packs the weights")
                fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when we die
            yield

    def _remove_old(self) -> None:
        for left_over in self._directory.glob("*.tmp"):
            left_over.unlink()  # we hold the lock: its maker is dead
        by_age = sorted(self._directory.glob("*.weights"), key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[:-FILES_KEPT]:
            path.unlink()


def _warn(directory: Path, error: OSError) -> None:
    log.warning("weights_not_shared", directory=str(directory), reason=str(error), then="this worker has its own copy")


def _mapped(path: Path, key: str) -> ModelWeights | None:
    """None where there is no such file, or none that is whole."""
    try:
        with path.open("rb") as file:
            header = _read_header(file.read(_PREFIX.size), file.read)
            if header is None or header.key != key or os.fstat(file.fileno()).st_size != header.num_bytes:
                log.warning("packed_weights_broken", path=str(path), then="they are made anew")
                return None
            mapping = mmap.mmap(file.fileno(), header.num_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
            with contextlib.suppress(OSError):
                os.utime(file.fileno())  # the newest ones are kept
    except OSError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is read-only, as it should be
        whole = torch.frombuffer(mapping, dtype=torch.uint8)
    _fetch(mapping, whole.data_ptr(), header.hot_bytes)
    tensors = []
    for place in header.tensors:
        dtype = DTYPES[place.dtype]
        size = dtype.itemsize * int(torch.Size(place.shape).numel())
        tensors.append(whole[place.offset : place.offset + size].view(dtype).view(place.shape))
    weights = _made_of(header.tree, tensors)
    assert isinstance(weights, ModelWeights)
    return weights


def _read_header(prefix: bytes, read: Callable[[int], bytes]) -> Header | None:
    if len(prefix) < _PREFIX.size:
        return None
    magic, num_bytes, digest = _PREFIX.unpack(prefix)
    if magic != MAGIC or num_bytes > LONGEST_HEADER_BYTES:
        return None
    text = read(num_bytes)
    if hashlib.sha256(text).digest() != digest:
        return None
    try:
        return msgspec.json.decode(text, type=Header)
    except msgspec.DecodeError:
        return None


def _fetch(mapping: mmap.mmap, address: int, num_bytes: int) -> None:
    """Have these bytes mapped before the first step reads them, in large pages where that can be."""
    for advice in (mmap.MADV_HUGEPAGE, MADV_POPULATE_READ):
        # Older kernels know not all of it; a step then faults its pages in.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), ctypes.c_int(advice))


def _write(path: Path, key: str, weights: ModelWeights) -> None:
    tensors: list[Tensor] = []
    tree = _tree_of(weights, tensors)
    places: list[Place] = []
    hot, offset = 0, HUGE_PAGE
    # The embedding, which is the first, lies last: it is read by rows.
    for tensor in (*tensors[1:], tensors[0]):
        if tensor is tensors[0]:
            hot, offset = offset, _rounded(offset, HUGE_PAGE)
        places.append(Place(str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset))
        offset = _rounded(offset + tensor.nbytes, ALIGNMENT)
    places.insert(0, places.pop())
    header = msgspec.json.encode(Header(key, offset, hot, places, tree))
    if _PREFIX.size + len(header) > HUGE_PAGE:
        raise OSError(f"a header of {len(header)} bytes has no room")
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, offset)  # no room is found here
            head = _PREFIX.pack(MAGIC, len(header), hashlib.sha256(header).digest()) + header
            parts = [(0, memoryview(head))]
            parts += [(place.offset, _bytes_of(tensor)) for tensor, place in zip(tensors, places, strict=True)]
            _write_parts(file, parts, offset)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write_parts(file: FileIO, parts: list[tuple[int, memoryview]], num_bytes: int) -> None:
    """Write a file of `num_bytes`: each part at its offset, zeros between them.

    In whole large pages, as the page cache keeps what it got by one write in one piece.
    """
    buffer = bytearray(WRITE_BYTES)
    parts = sorted(parts, key=lambda part: part[0])
    for start in range(0, num_bytes, WRITE_BYTES):
        end = min(start + WRITE_BYTES, num_bytes)
        buffer[:] = bytes(WRITE_BYTES)
        for offset, content in parts:
            first, last = max(offset, start), min(offset + len(content), end)
            if first < last:
                buffer[first - start : last - start] = content[first - offset : last - offset]
        left = memoryview(buffer)[: end - start]
        while left:
            left = left[file.write(left) :]


def _tree_of(node: Any, tensors: list[Tensor]) -> Any:
    """`node` as JSON; its tensors are put on the list and stand there as their places on it."""
    if isinstance(node, Tensor):
        tensors.append(node)
        return {"tensor": len(tensors) - 1}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_tree_of(part, tensors) for part in node]}
    if dataclasses.is_dataclass(node):
        name = type(node).__name__
        assert TYPES[name] is type(node)
        fields = {field.name: _tree_of(getattr(node, field.name), tensors) for field in dataclasses.fields(node)}
        return {"type": name, "fields": fields}
    if isinstance(node, Enum):
        return node.value
    assert node is None or type(node) in (int, str), f"{node!r} cannot be kept in a file"
    return node


def _made_of(tree: Any, tensors: list[Tensor]) -> Any:
    """What `_tree_of` was given."""
    match tree:
        case {"tensor": index}:
            return tensors[index]
        case {"list": parts}:
            return [_made_of(part, tensors) for part in parts]
        case {"tuple": parts}:
            return tuple(_made_of(part, tensors) for part in parts)
        case {"type": name, "fields": fields}:
            made = {field: _made_of(part, tensors) for field, part in fields.items()}
            for field, wanted in get_type_hints(TYPES[name]).items():
                if isinstance(wanted, type) and issubclass(wanted, Enum):
                    made[field] = wanted(made[field])
            return TYPES[name](**made)
    return tree


def _rounded(num_bytes: int, multiple: int) -> int:
    return -(-num_bytes // multiple) * multiple
