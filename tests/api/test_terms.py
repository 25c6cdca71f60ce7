"""X-Priority and X-Request-Timeout: what they may say."""

import pytest

from api.terms import read_priority, read_timeout_s
from errors import InvalidRequest
from messages.request import Priority
from settings.api import ApiSettings

SETTINGS = ApiSettings(max_request_timeout_s=60)


def test_without_headers_the_settings_hold() -> None:
    assert read_priority({}) is Priority.NORMAL
    assert read_timeout_s({}, SETTINGS) is None
    assert read_timeout_s({}, ApiSettings(request_timeout_s=5)) == 5


def test_what_is_given_is_taken() -> None:
    assert [read_priority({"X-Priority": given}) for given in ("high", " Low ", "NORMAL")] == ["high", "low", "normal"]
    assert read_timeout_s({"X-Request-Timeout": "2.5"}, ApiSettings(request_timeout_s=5)) == 2.5
    assert read_timeout_s({"X-Request-Timeout": "60"}, SETTINGS) == 60


@pytest.mark.parametrize("given", ["", "urgent", "1"])
def test_a_class_that_is_none_is_named(given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^X-Priority must be one of high, normal, low, got {given!r}$"):
        read_priority({"X-Priority": given})


@pytest.mark.parametrize("given", ["soon", "", "5s", "1,5"])
def test_a_timeout_that_is_no_number_is_named(given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^X-Request-Timeout must be a number of seconds, got {given!r}$"):
        read_timeout_s({"X-Request-Timeout": given}, SETTINGS)


@pytest.mark.parametrize("given", ["0", "-1", "60.1", "inf", "nan"])
def test_a_timeout_out_of_bounds_is_named(given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^X-Request-Timeout must be above 0 and at most 60 s, got {given!r}$"):
        read_timeout_s({"X-Request-Timeout": given}, SETTINGS)
