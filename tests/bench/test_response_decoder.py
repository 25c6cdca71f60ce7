"""HTTP responses cut at every possible place, with h11 as the oracle."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.response_decoder import BadResponse, ResponseDecoder

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-A: b\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\n005\r\nworld\r\n0\r\nTrailer: 1\r\n\r\n"
)
UNTIL_EOF = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhello world"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in zip(places, places[1:], strict=False)]


def h11_body(data: bytes) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
    return body


@given(st.sampled_from([LENGTH, CHUNKED, UNTIL_EOF, CONTINUED]), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_gives_h11s_body(response: bytes, cuts: list[int]) -> None:
    decoder = ResponseDecoder()
    body = b"".join(decoder.feed(piece) for piece in pieces_of(response, cuts))
    decoder.feed_eof()
    assert body == h11_body(response) == b"hello world"
    assert decoder.status == 200
    assert decoder.is_complete


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(0, 10_000), max_size=6))
def test_chunks_of_any_bytes(chunks: list[bytes], cuts: list[int]) -> None:
    coded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    response = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"
    decoder = ResponseDecoder()
    assert b"".join(decoder.feed(piece) for piece in pieces_of(response, cuts)) == b"".join(chunks)
    assert decoder.is_complete


@pytest.mark.parametrize("response", [LENGTH, CHUNKED])
def test_a_response_cut_anywhere_is_not_complete(response: bytes) -> None:
    for end in range(len(response)):
        decoder = ResponseDecoder()
        decoder.feed(response[:end])
        decoder.feed_eof()
        assert not decoder.is_complete


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 x OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_http_is_refused(response: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseDecoder().feed(response)
