"""The base URL that clients are told, and the path below a prefix."""

from typing import Any

import pytest

from pollux.gemini.errors import GatewayError
from pollux.relay.address import inside, own_base


def scope(path: str = "/v1beta/files", *, root: str = "", scheme: str = "http", **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"path": path, "raw_path": path.encode(), "root_path": root, "scheme": scheme, "headers": raw}


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:3145", "pollux.example.com", "[::1]:3145", "a-b.example.com:8080"]
)
def test_the_request_says_it(host: str) -> None:
    assert own_base(scope(host=host), "", proxied=False) == f"http://{host}"
    assert own_base(scope(host=host, root="/gemini/"), "", proxied=False) == f"http://{host}/gemini"


def test_the_setting_comes_first() -> None:
    asked = scope(host="other.example", x_forwarded_host="another.example")
    for proxied in (False, True):
        assert own_base(asked, "https://pollux.example/x", proxied=proxied) == "https://pollux.example/x"


def test_a_proxys_word_counts_only_where_there_is_one() -> None:
    asked = scope(
        host="inner:8080",
        x_forwarded_host="pollux.example, inner",
        x_forwarded_proto="https,http",
        x_forwarded_prefix="/gemini/",
    )
    assert own_base(asked, "", proxied=True) == "https://pollux.example/gemini"
    assert own_base(asked, "", proxied=False) == "http://inner:8080"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a/b",
        "user@host",
        "a:b",
        "a?x",
        "a#x",
        "host\r\nx: y",
        "host:123456",
        "-a",
        "a\\b",
        "é.example",
        "[x]",
        '"',
    ],
)
def test_an_invalid_host_gives_no_address(host: str) -> None:
    with pytest.raises(GatewayError) as refused:
        own_base(scope(host=host), "", proxied=False)
    assert refused.value.code == "BAD_REQUEST"
    if host:
        with pytest.raises(GatewayError):
            own_base(scope(host="good.example", x_forwarded_host=host), "", proxied=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("x_forwarded_proto", "javascript"), ("x_forwarded_prefix", "/a?b"), ("x_forwarded_prefix", "//a"),
     ("x_forwarded_prefix", "a"), ("x_forwarded_prefix", "/a b"), ("x_forwarded_prefix", "/../a"),
     ("x_forwarded_prefix", "/a/.")],
)  # fmt: skip
def test_nothing_else_gets_into_it_either(name: str, value: str) -> None:
    with pytest.raises(GatewayError):
        own_base(scope(host="good.example", **{name: value}), "", proxied=True)


@pytest.mark.parametrize(
    ("path", "root", "public", "expected"),
    [
        ("/v1beta/files", "", "", "/v1beta/files"),
        ("/gemini/v1beta/files", "/gemini", "", "/v1beta/files"),
        ("/gemini/v1beta/files", "/gemini/", "", "/v1beta/files"),
        ("/v1beta/files", "/gemini", "", "/v1beta/files"),
        ("/gemini/v1beta/files", "", "https://x.example/gemini", "/v1beta/files"),
        ("/v1beta/files", "", "https://x.example/gemini", "/v1beta/files"),
        ("/gemini2/v1beta/files", "", "https://x.example/gemini", "/gemini2/v1beta/files"),
        ("/gemini", "/gemini", "", "/"),
        ("/v1beta/files", "", "https://x.example", "/v1beta/files"),
    ],
)
def test_the_path_below_the_prefix(path: str, root: str, public: str, expected: str) -> None:
    found = inside(scope(path, root=root), public)
    assert (found["path"], found["raw_path"]) == (expected, expected.encode())
