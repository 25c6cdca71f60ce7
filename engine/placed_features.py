"""Which tokens of a prefill step have an image's features in place of their embedding, and which features.

A chunk may begin and end anywhere in an image, and a step may have chunks of several sequences. Only prompt tokens that
belong to an image count: an image token that was generated is a token like any other.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.prefill_rows import PrefillChunk
from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Placed:
    """Features and the places of their tokens among the packed ones."""

    places: list[int]
    features: Tensor  # [len(places), hidden]


def placed_features(chunks: Rows[PrefillChunk], image_token_id: int | None) -> Placed | None:
    """None where no token of the chunks stands for a feature."""
    places: list[int] = []
    parts: list[Tensor] = []
    begin = 0  # of the chunk among the packed tokens
    for chunk in chunks:
        if chunk.sequence.images:
            first = chunk.sequence.num_computed_tokens
            for position, feature in _features_of(chunk.sequence, first, first + chunk.num_tokens, image_token_id):
                places += range(begin + position - first, begin + position - first + len(feature))
                parts.append(feature)
        begin += chunk.num_tokens
    return Placed(places, torch.cat(parts)) if places else None


def _features_of(sequence: Sequence, first: int, end: int, image_token_id: int | None) -> list[tuple[int, Tensor]]:
    """(position of the first token, features) of each run of image tokens in [first, end)."""
    runs: list[tuple[int, Tensor]] = []
    for image in sequence.images:
        if image.end <= first or image.first >= end:
            continue
        assert sequence.image_features is not None, "an image is computed before it is encoded"
        features = sequence.image_features[image.digest]
        number = 0  # of the next image token of this image
        begun: int | None = None  # where the run began
        for position in range(image.first, min(image.end, end) + 1):
            is_feature = position < min(image.end, end) and sequence.token_ids[position] == image_token_id
            if is_feature and position >= first and begun is None:
                begun = position
            if not is_feature and begun is not None:
                runs.append((begun, features[number - (position - begun) : number]))
                begun = None
            number += is_feature
    return runs
