"""A multipart body, cut into pieces anywhere."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.errors import GatewayError
from pollux.gemini.multipart import Part, boundary_of, parts

BOUNDARY = b"=_b"


def read(pieces: Sequence[bytes], boundary: bytes = BOUNDARY) -> list[tuple[dict[str, str], bytes]]:
    async def came() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def scene() -> list[tuple[dict[str, str], bytes]]:
        found: list[tuple[dict[str, str], bytes]] = []
        async for item in parts(came(), boundary):
            if isinstance(item, Part):
                found.append((item.headers, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + item)
        return found

    return asyncio.run(scene())


def written(contents: Sequence[bytes]) -> bytes:
    head = b"--" + BOUNDARY + b"\r\nContent-Type: text/plain; n=%d\r\n\r\n"
    return b"".join(head % n + content + b"\r\n" for n, content in enumerate(contents)) + b"--" + BOUNDARY + b"--\r\n"


NEARLY = st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY, b"x", b"\r", b"\n--=_", b"\0"]), max_size=12).map(b"".join)


@given(
    st.lists(NEARLY.filter(lambda data: b"\r\n--" + BOUNDARY not in b"\r\n" + data), min_size=1, max_size=3), st.data()
)
def test_contents_come_as_they_were_however_the_body_is_cut(contents: list[bytes], data: st.DataObject) -> None:
    body = written(contents)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=8)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(pieces) == [({"content-type": f"text/plain; n={n}"}, content) for n, content in enumerate(contents)]


@pytest.mark.parametrize("cut", range(1, 70, 7))
def test_a_body_that_ends_too_early_is_an_error(cut: int) -> None:
    body = written([b"first", b"second"])
    with pytest.raises(GatewayError, match="ends before its last boundary"):
        read([body[:-cut]] if cut > 4 else [body[: -cut - 4]])


def test_headers_have_an_end_and_what_is_before_the_first_part_means_nothing() -> None:
    assert read([b"preamble\r\n" * 5000, b"\r\n" + written([b"a"])]) == [({"content-type": "text/plain; n=0"}, b"a")]
    with pytest.raises(GatewayError, match="too long"):
        read([b"--" + BOUNDARY + b"\r\nX: " + b"y" * 20_000])


def test_what_a_content_type_says_of_the_boundary() -> None:
    assert boundary_of('multipart/related; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Form-Data; charset=x; boundary=ab;x=y") == b"ab"
    assert boundary_of("text/plain; boundary=ab") is None
    with pytest.raises(GatewayError, match="no boundary"):
        boundary_of("multipart/related")
