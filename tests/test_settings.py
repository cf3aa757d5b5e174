"""Settings: one list, read from the environment, each mistake named; and the page made from it."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from pollux import settings as module
from pollux.backends.blobs import gcs_calls
from pollux.backends.keys import files, secrets_api
from pollux.gemini.guard import GUARDS
from pollux.settings import Proxy, Settings, SettingsError, data_folder, describe, proxy_for
from tools import tables

PAGE = Path(__file__).parent.parent / "docs/settings.md"


def read(**environ: str) -> Settings:
    return Settings.from_env(environ)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TOKEN", "one, name=two,,", ("one", "name=two")),
        ("KEYS", "one, two,,", ("one", "two")),
        ("ADMIN_TOKEN", " secret-value ", "secret-value"),
        ("UPSTREAM", "http://127.0.0.1:3146/", "http://127.0.0.1:3146"),
        ("STORE", "memory://", "memory://"),
        ("STORE", "", ""),
        ("FILES", "pooled", "pooled"),
        ("BLOBS", "gs://bucket/some/prefix", "gs://bucket/some/prefix"),
        ("BLOBS", "", ""),
        ("STRATEGY", "most_available", "most_available"),
        ("WINDOW", "minute", "minute"),
        ("MAX_WAIT", "0", 0.0),
        ("MAX_WAIT", "1.5", 1.5),
        ("FALLBACK_AFTER", "", None),
        ("FALLBACK_AFTER", "0", 0.0),
        ("MAX_ATTEMPTS", "2", 2),
        ("STICKY", "OFF", False),
        ("QUERY_TOKEN", "yes", True),
        ("ALLOW_PATHS", "webhooks,files:register", ("webhooks", "files:register")),
        ("MAX_BODY", "1000", 1000),
        ("MAX_BODY", "1.5k", 1536),
        ("BODY_MEMORY", "64MiB", 64 * 2**20),
        ("BODY_MEMORY", "1 GB", 2**30),
    ],
)
def test_values_are_read_as_they_are_meant(name: str, text: str, value: Any) -> None:
    assert getattr(read(**{f"POLLUX_{name}": text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("UPSTREAM", "gemini.example", "expected a URL"),
        ("UPSTREAM", "https://", "expected a URL"),
        ("STORE", "postgres://x", "sqlite:///PATH, memory:// or firestore://"),
        ("FILES", "off", "expected one of own, pooled"),
        ("BLOBS", "/var/blobs", "file:///PATH or gs://BUCKET"),
        ("BLOBS", "file://blobs", "file:///PATH or gs://BUCKET"),
        ("STRATEGY", "fastest", "expected one of earliest, round_robin"),
        ("MODE", "cheap", "expected one of both, pro_only"),
        ("WINDOW", "hour", "sliding, minute"),
        ("MAX_WAIT", "-1", "0 or more"),
        ("MAX_WAIT", "nan", "0 or more"),
        ("MAX_WAIT", "inf", "0 or more"),
        ("MAX_WAIT", "soon", "number, 0 or more"),
        ("FALLBACK_AFTER", "soon", "number, 0 or more"),
        ("MAX_ATTEMPTS", "0", "1 or more"),
        ("MAX_ATTEMPTS", "4.5", "whole number, 1 or more"),
        ("STICKY", "maybe", "on or off"),
        ("MAX_BODY", "big", "32MiB"),
        ("MAX_BODY", "-5", "32MiB"),
        ("MAX_BODY", "nan", "32MiB"),
        ("MAX_BODY", "1e400", "32MiB"),
        ("LOG_LEVEL", "loud", "debug, info"),
    ],
)
def test_a_value_without_sense_names_the_setting_the_value_and_what_was_expected(
    name: str, text: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(**{f"POLLUX_{name}": text})
    assert str(caught.value).startswith(f"POLLUX_{name}={text}: ")
    assert said in str(caught.value)
    assert "could not convert" not in str(caught.value), "in our words, not in Python's"
    assert "invalid literal" not in str(caught.value)


def test_a_misspelt_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="POLLUX_MAX_WIAT is not a setting; did you mean POLLUX_MAX_WAIT"):
        read(POLLUX_MAX_WIAT="5")
    with pytest.raises(SettingsError, match=r"docs/settings\.md"):
        read(POLLUX_QQQQQQQQQQ="5")


def test_other_variables_are_not_read() -> None:
    assert read(MAX_WAIT="5", pollux_max_wait="5", GEMINI_API_KEY="x").max_wait == 65.0


def test_arguments_come_before_the_environment() -> None:
    assert Settings.from_env({"POLLUX_MAX_WAIT": "5"}, max_wait=7.0).max_wait == 7.0


def test_no_repr_shows_a_token() -> None:
    shown = repr(
        read(POLLUX_TOKEN="secret-of-a-client", POLLUX_ADMIN_TOKEN="secret-of-the-admin", POLLUX_KEYS="secret")
    )
    assert "secret" not in shown.replace("secrets=", "")


def test_the_store_lies_in_the_data_folder_unless_it_is_named(tmp_path: Path) -> None:
    assert Settings(data=str(tmp_path)).store_url == f"sqlite:///{tmp_path}/pollux.db"
    assert Settings(store="memory://").store_url == "memory://"


def test_the_data_folder_follows_the_users_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POLLUX_DATA", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".local/share/pollux"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert data_folder() == tmp_path / "xdg/pollux"
    monkeypatch.setenv("POLLUX_DATA", str(tmp_path / "own"))
    assert Settings().data == str(tmp_path / "own")


def test_a_token_in_the_query_is_off_in_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("K_SERVICE", raising=False)
    assert Settings().query_token
    monkeypatch.setenv("K_SERVICE", "pollux")
    assert not Settings().query_token


def test_logs_are_json_in_the_cloud_and_text_elsewhere_unless_the_setting_says_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("K_SERVICE", raising=False)
    assert (Settings().log_form, Settings(log="json").log_form) == ("text", "json")
    monkeypatch.setenv("K_SERVICE", "pollux")
    assert (Settings().log_form, Settings(log="text").log_form) == ("json", "text")


def test_how_many_instances_there_are_at_most() -> None:
    assert Settings().most_instances == 1
    shared = {"POLLUX_STORE": "firestore://a-project"}
    assert Settings.from_env(shared).most_instances == 10
    assert Settings.from_env(shared | {"POLLUX_MAX_INSTANCES": "3"}).most_instances == 3
    with pytest.raises(SettingsError, match="POLLUX_MAX_INSTANCES=0: expected a whole number, 1 or more"):
        Settings.from_env({"POLLUX_MAX_INSTANCES": "0"})


@pytest.mark.parametrize(("limit", "memory"), [("536870912", 2**28), ("max", 2**29), (None, 2**29), ("9" * 18, 2**29)])
def test_bodies_get_half_of_the_containers_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, memory: int
) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit + "\n")
    monkeypatch.setattr(module, "CONTAINER_LIMITS", (str(file),))
    assert Settings().body_memory == memory


# --- the list and its page -------------------------------------------------------------------------------------------


def test_the_page_is_the_code() -> None:
    assert tables.settings_table() in PAGE.read_text(), "run python -m tools.tables"


def test_the_list_is_the_same_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = describe()
    monkeypatch.setenv("K_SERVICE", "pollux")
    monkeypatch.setenv("POLLUX_DATA", str(tmp_path))
    monkeypatch.setattr(module, "CONTAINER_LIMITS", ())
    assert describe() == before


def test_every_setting_is_explained_in_a_sentence() -> None:
    for name, _, text in describe():
        assert name.startswith("POLLUX_")
        assert text[0].isupper()
        assert text.endswith(".")


def test_every_guard_is_named_where_it_can_be_opened() -> None:
    text = next(text for name, _, text in describe() if name == "POLLUX_ALLOW_PATHS")
    assert set(text.partition(": ")[2].rstrip(".").split(", ")) == set(GUARDS)


def test_a_guard_that_is_not_one_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"POLLUX_ALLOW_PATHS=webhook: expected .*webhooks"):
        read(POLLUX_ALLOW_PATHS="webhook")


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://host:99999999",
        "http://host:0",
        "http://",
        "ftp://host",
        "http://me:pw@host",
        "http://a b",
    ],
)
def test_an_upstream_that_is_no_address_is_named_in_one_line(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^POLLUX_UPSTREAM=.*expected a URL"):
        Settings.from_env({"POLLUX_UPSTREAM": url})


@pytest.mark.parametrize("size", ["inf", "nan", "-5", "1e400", "many"])
def test_a_size_that_is_none_is_named_in_one_line(size: str) -> None:
    with pytest.raises(SettingsError, match=r"^POLLUX_MAX_BODY=.*expected a size"):
        Settings.from_env({"POLLUX_MAX_BODY": size})


def test_the_contents_of_files_lie_in_the_data_folder_unless_said_otherwise(tmp_path: Path) -> None:
    assert read(POLLUX_DATA=str(tmp_path)).blobs_url == f"file://{tmp_path}/blobs"
    assert read(POLLUX_DATA="here").blobs_url == f"file://{Path.cwd()}/here/blobs"
    assert read(POLLUX_BLOBS="gs://bucket").blobs_url == "gs://bucket"


def test_in_the_cloud_pooled_files_need_a_place_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(POLLUX_FILES="pooled").files == "pooled"
    monkeypatch.setenv("K_SERVICE", "gateway")
    assert read().files == "own"
    assert read(POLLUX_FILES="pooled", POLLUX_BLOBS="gs://bucket").blobs == "gs://bucket"
    with pytest.raises(SettingsError, match="POLLUX_FILES=pooled needs POLLUX_BLOBS=gs://BUCKET"):
        read(POLLUX_FILES="pooled")


# --- the environment -------------------------------------------------------------------------------------------------


PACKAGE = Path(module.__file__).parent


def uses_the_environment(source: str) -> bool:
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "expandvars"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path"):
            if names & {name.name for name in node.names}:
                return True
        elif isinstance(node, ast.Import) and any(name.name == "os" and name.asname for name in node.names):
            return True  # under another name its attributes would not be seen
        elif isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) in ("os", "os.path"):
            return True
    return "K_SERVICE" in source


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['HOME']",
        "import os\nos.environb",
        "import os\nos.getenv('HOME')",
        "import os\nos.path.expandvars('$HOME')",
        "from os import (\n    environ,\n)",
        "from os import getenv as read",
        "import os as system",
        "in_cloud = 'K_SERVICE' in variables",
    ],
)
def test_a_use_of_the_environment_is_seen(source: str) -> None:
    assert uses_the_environment(source)
    assert not uses_the_environment("import os\nfrom os import fspath\nos.getpid()\nsettings.environ['HOME']")


def test_only_settings_uses_the_environment() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if uses_the_environment(path.read_text())}
    assert users == {"settings.py"}


def test_the_page_lists_every_other_variable_that_is_read() -> None:
    read = {
        "SSL_CERT_FILE",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        secrets_api.EMULATOR,
        gcs_calls.EMULATOR,
    }
    read |= {*files.VARIABLES, files.ROOT}
    for path in PACKAGE.rglob("*.py"):
        found = re.findall(
            r"""environ(?:\.get\(|\.setdefault\(|\[)"(\w+)"|"(\w+)" in environ""", path.read_text(), re.IGNORECASE
        )
        read |= {name.upper() for pair in found for name in pair if name}
    assert {"NO_COLOR", "IDENTITY_TOKEN", "FIRESTORE_EMULATOR_HOST", "K_SERVICE", "XDG_DATA_HOME"} <= read
    assert sorted(name for name in read if f"`{name}`" not in PAGE.read_text()) == []


def test_what_else_the_environment_says_is_no_setting_and_no_repr_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test-value-of-nobody")
    monkeypatch.setenv("K_SERVICE", "pollux")
    settings = Settings()
    assert (settings.in_cloud, settings.environ["GEMINI_API_KEY"]) == (True, "AQ.test-value-of-nobody")
    assert "AQ." not in repr(settings)
    for name in ("POLLUX_IN_CLOUD", "POLLUX_ENVIRON"):
        with pytest.raises(SettingsError, match="not a setting"):
            read(**{name: "1"})


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "base", "url"),
    [
        ({}, "https://gemini.example", ""),
        ({"HTTPS_PROXY": "http://p.example:3128"}, "https://gemini.example", "http://p.example:3128"),
        ({"https_proxy": "p.example:3128/"}, "https://gemini.example", "http://p.example:3128"),
        (
            {"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:1"},
            "https://gemini.example",
            "http://lower:1",
        ),
        ({"ALL_PROXY": "https://p.example"}, "https://gemini.example", "https://p.example:443"),
        ({"all_proxy": "http://p.example"}, "http://gemini.example", "http://p.example:80"),
        ({"HTTPS_PROXY": "http://one:1", "ALL_PROXY": "http://two:2"}, "https://gemini.example", "http://one:1"),
        ({"HTTPS_PROXY": "http://one:1"}, "http://gemini.example", ""),
        ({"HTTP_PROXY": "http://one:1"}, "http://gemini.example", "http://one:1"),
        ({"HTTPS_PROXY": "http://[2001:db8::1]:3128"}, "https://gemini.example", "http://[2001:db8::1]:3128"),
        ({"HTTPS_PROXY": ""}, "https://gemini.example", ""),
        ({"HTTP_PROXY": "http://one:1"}, "http://localhost:3146", ""),
        ({"HTTP_PROXY": "http://one:1"}, "http://127.0.0.7:3146", ""),
        ({"HTTP_PROXY": "http://one:1"}, "http://[::1]:3146", ""),
    ],
)
def test_the_proxy_of_an_address(environ: dict[str, str], base: str, url: str) -> None:
    found = proxy_for(base, environ)
    assert ("" if found is None else found.url) == url


@pytest.mark.parametrize(
    ("exempt", "past"),
    [
        ("*", True),
        ("gemini.example", True),
        ("example", True),
        (".example", True),
        ("*.example", True),
        ("EXAMPLE", True),
        ("other.example, gemini.example", True),
        ("other.example gemini.example", True),
        ("gemini.example:443", True),
        ("gemini.example:8443", False),
        ("mini.example", False),
        ("other.gemini.example", False),
        (",", False),
        (".", False),
        ("", False),
    ],
)
def test_no_proxy_leaves_out_names_and_those_below_them(exempt: str, past: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        found = proxy_for("https://gemini.example", {"HTTPS_PROXY": "http://p:1", name: exempt})
        assert (found is None) is past


@pytest.mark.parametrize(
    ("exempt", "past"),
    [
        ("10.1.2.3", True),
        ("10.0.0.0/8", True),
        ("10.1.2.3:8443", True),
        ("10.1.2.3:443", False),
        ("11.0.0.0/8", False),
        ("2001:db8::/32", False),
        ("10.1.2", False),
    ],
)
def test_no_proxy_leaves_out_addresses_and_networks(exempt: str, past: bool) -> None:
    found = proxy_for("https://10.1.2.3:8443", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": exempt})
    assert (found is None) is past


def test_no_proxy_knows_ipv6() -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "2001:db8::/32,[fd00::1]:443"}
    assert proxy_for("https://[2001:db8::5]", environ) is None
    assert proxy_for("https://[fd00::1]", environ) is None
    assert proxy_for("https://[fd00::1]:8443", environ) is not None


@pytest.mark.parametrize("text", ["socks5://s:a-password@p:1", "http://", "http://s:a-password@p:port", "ftp://p:1"])
def test_a_proxy_that_is_none_is_named_without_its_password(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^HTTPS_PROXY: ") as caught:
        proxy_for("https://gemini.example", {"HTTPS_PROXY": text})
    assert "a-password" not in str(caught.value)


def test_a_proxys_credentials_are_known_and_not_shown() -> None:
    found = proxy_for("https://gemini.example", {"HTTPS_PROXY": "http://some%40one:a-pass%3Aword@p:1"})
    assert found == Proxy("http://p:1", "some@one", "a-pass:word", "HTTPS_PROXY")
    assert "word" not in repr(found)
    assert "some" not in repr(found)
