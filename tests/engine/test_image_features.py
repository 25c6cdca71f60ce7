"""What was encoded of late is kept, within its bytes."""

import torch

from engine.image_features import FeatureCache


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(max_bytes=3 * 40)
    rows = {name: torch.full((2, 5), float(place)) for place, name in enumerate((b"a", b"b", b"c", b"d"))}
    for name in (b"a", b"b", b"c"):
        cache.put(name, rows[name])
    assert cache.num_bytes == 120 and cache.get(b"a") is rows[b"a"]
    cache.put(b"d", rows[b"d"])
    assert cache.get(b"b") is None and cache.num_bytes == 120
    assert [cache.get(name) is rows[name] for name in (b"a", b"c", b"d")] == [True] * 3
    cache.put(b"a", rows[b"a"])
    assert cache.num_bytes == 120, "one image is counted twice"


def test_what_is_larger_than_all_there_may_be_drives_nothing_out() -> None:
    cache = FeatureCache(max_bytes=100)
    cache.put(b"small", torch.zeros(2, 5))
    cache.put(b"large", torch.zeros(9, 5))
    assert cache.get(b"large") is None and cache.get(b"small") is not None
    FeatureCache(max_bytes=0).put(b"small", torch.zeros(2, 5))
