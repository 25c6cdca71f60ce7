"""One request as its API process measures it."""

from api.measurement import Measurement
from api.meters import ApiMeters
from tests.broker.samples import make_request


def test_tokens_that_come_together_are_counted_each() -> None:
    meters = ApiMeters()
    measurement = Measurement(meters, None, make_request("r", n=2), "m")
    measurement.created(measurement.request)
    measurement.came(0, 1, 100.0)
    measurement.came(0, 3, 100.25)
    measurement.came(1, 4, 101.0)  # of another choice, whose first token this is
    measurement.relayed(8, 101.0)
    assert meters.first_token.count == 2
    assert (meters.inter_token.count, meters.inter_token.total) == (6, 0.25)
    assert meters.num_tokens == meters.relay.count == 8
    measurement.ended(0, "length")
    measurement.closed("abort")
    measurement.closed("abort")  # a repeat is harmless
    assert meters.ended == {"length": 1, "abort": 1}
    assert (meters.output_tokens.count, meters.output_tokens.total) == (1, 4)


def test_nothing_is_counted_of_what_was_never_created() -> None:
    meters = ApiMeters()
    Measurement(meters, None, make_request("r"), "m").closed("abort")
    assert not meters.ended and not any(histogram.count for histogram in meters.histograms())
