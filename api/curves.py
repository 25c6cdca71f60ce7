"""The last minutes as curves: latencies, tokens per second, what waits and runs, one point every two seconds.

Pure. Latencies are percentiles of the requests that came to this API process, read off its histograms over a window and
interpolated within a bucket, so that they are as fine as the catalogue's bounds.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from api.meters import ApiMeters

EVERY_S = 2.0
NUM_POINTS = 150  # five minutes
WINDOW_POINTS = 5  # over which a percentile is taken: ten seconds
MINUTE_POINTS = 30


class Point(msgspec.Struct, frozen=True):
    """None: there was nothing to measure."""

    at_ms: int  # Unix time
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    tokens_per_s: float
    num_waiting: int | None
    num_running: int | None


class LastMinute(msgspec.Struct, frozen=True):
    """The last minute as a whole, or the time since the start. None: there was nothing to measure."""

    num_first_tokens: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    itl_p99_ms: float | None
    tokens_per_s: float


class Curves:
    """One per API process."""

    def __init__(self, meters: ApiMeters) -> None:
        self._meters = meters
        self._points: deque[Point] = deque(maxlen=NUM_POINTS)
        self._seen: deque[tuple[list[int], list[int], int, int]] = deque(maxlen=MINUTE_POINTS + 1)
        self._remember(0)

    def sample(self, now_ms: int, num_waiting: int | None, num_running: int | None) -> None:
        """One more point."""
        first, inter = self._meters.first_token, self._meters.inter_token
        old_first, old_inter, _, _ = self._seen[max(0, len(self._seen) - WINDOW_POINTS)]
        *_, last_tokens, last_ms = self._seen[-1]
        took_s = (now_ms - last_ms) / 1000 if last_ms else EVERY_S
        ttft = _grown(old_first, first.counts())
        itl = _grown(old_inter, inter.counts())
        self._points.append(
            Point(
                now_ms,
                ttft_p50_ms=percentile_ms(first.metric.bounds, ttft, 0.5),
                ttft_p95_ms=percentile_ms(first.metric.bounds, ttft, 0.95),
                itl_p50_ms=percentile_ms(inter.metric.bounds, itl, 0.5),
                itl_p95_ms=percentile_ms(inter.metric.bounds, itl, 0.95),
                tokens_per_s=round((self._meters.num_tokens - last_tokens) / max(took_s, 0.001), 2),
                num_waiting=num_waiting,
                num_running=num_running,
            )
        )
        self._remember(now_ms)

    def points(self) -> list[Point]:
        """All that is kept, in order."""
        return list(self._points)

    def last_minute(self) -> LastMinute:
        """As of the last sample."""
        (old_first, old_inter, old_tokens, began_ms), (first, inter, num_tokens, now_ms) = self._seen[0], self._seen[-1]
        ttft, itl = _grown(old_first, first), _grown(old_inter, inter)
        bounds, inter_bounds = self._meters.first_token.metric.bounds, self._meters.inter_token.metric.bounds
        took_s = (now_ms - began_ms) / 1000 if began_ms else max(EVERY_S, (len(self._seen) - 1) * EVERY_S)
        return LastMinute(
            num_first_tokens=sum(ttft),
            ttft_p50_ms=percentile_ms(bounds, ttft, 0.5),
            ttft_p95_ms=percentile_ms(bounds, ttft, 0.95),
            ttft_p99_ms=percentile_ms(bounds, ttft, 0.99),
            itl_p50_ms=percentile_ms(inter_bounds, itl, 0.5),
            itl_p95_ms=percentile_ms(inter_bounds, itl, 0.95),
            itl_p99_ms=percentile_ms(inter_bounds, itl, 0.99),
            tokens_per_s=round((num_tokens - old_tokens) / max(took_s, 0.001), 2),
        )

    def _remember(self, now_ms: int) -> None:
        meters = self._meters
        self._seen.append((meters.first_token.counts(), meters.inter_token.counts(), meters.num_tokens, now_ms))


def percentile_ms(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value (ms) below which `share` of the observations lie, `counts` of which are in each bucket up to `bounds`
    (seconds) and beyond; linear within a bucket, as Prometheus' histogram_quantile. None where there are none."""
    wanted = sum(counts) * share
    if not wanted:
        return None
    below, lower = 0, 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if below + count >= wanted:
            return round((lower + (upper - lower) * (wanted - below) / count) * 1000, 2)
        below, lower = below + count, upper
    return round(bounds[-1] * 1000, 2)


def _grown(before: Sequence[int], now: Sequence[int]) -> list[int]:
    return [new - old for old, new in zip(before, now, strict=True)]
