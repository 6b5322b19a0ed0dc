import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.http_errors import TooManyRequests
from kvasir_router.limits import InflightLimit


def test_streams_beyond_the_limit_are_refused_until_others_end() -> None:
    limit = InflightLimit(3)
    with limit.admitted(2):
        with pytest.raises(TooManyRequests, match="2 streams are in flight, of at most 3"), limit.admitted(2):
            pass
        with limit.admitted(1):
            assert limit.num_streams == 3
    assert limit.num_streams == 0


def test_request_that_can_never_fit_is_invalid() -> None:
    with pytest.raises(InvalidRequest, match="make 4 streams"), InflightLimit(3).admitted(4):
        pass


def test_failed_request_makes_room() -> None:
    limit = InflightLimit(1)
    with pytest.raises(ZeroDivisionError), limit.admitted(1):
        raise ZeroDivisionError
    assert limit.num_streams == 0
