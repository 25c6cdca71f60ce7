"""What the vision tower makes of images, kept for the next prompt that has the same ones.

An image's features stand in place of the embeddings of its image tokens. A cache of them is bounded in bytes; what a
sequence holds stays while it needs it, whatever the cache drops. Knows no tower and no queue.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

ImageFeatures = Mapping[bytes, Tensor]  # digest -> [num_features, hidden]


class FeatureCache:
    """Features by digest, the least recently used dropped first. One thread at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of all features in it."""
        return self._num_bytes

    def get(self, digest: bytes) -> Tensor | None:
        """The features of that image, if they are there."""
        if digest in self._features:
            self._features.move_to_end(digest)
        return self._features.get(digest)

    def put(self, digest: bytes, features: Tensor) -> None:
        """Keep them, if they are not larger than all there may be."""
        if digest in self._features or features.nbytes > self._max_bytes:
            return
        self._features[digest] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self._num_bytes -= dropped.nbytes
