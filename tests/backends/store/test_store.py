"""Which store a URL names."""

import os
from pathlib import Path

import pytest

from pollux.backends.store.contract import StoreError
from pollux.backends.store.firestore import FirestoreStore
from pollux.backends.store.memory import MemoryStore
from pollux.backends.store.opening import open_store
from pollux.backends.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/pollux.db", "/var/lib/pollux.db"),
        ("sqlite:///pollux.db", "{cwd}/pollux.db"),
        ("sqlite:///tmp/pollux.db", "{cwd}/tmp/pollux.db"),
        ("sqlite:///~/pollux.db", "{home}/pollux.db"),
        ("sqlite:////a/b%20c?d#e", "/a/b%20c?d#e"),
    ],
)
def test_a_url_names_a_file(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert str(store.path) == path.format(cwd=tmp_path, home=tmp_path / "home")


@pytest.mark.parametrize(
    ("url", "project", "database"),
    [
        ("firestore://project", "project", "(default)"),
        ("firestore://project/(default)", "project", "(default)"),
        ("firestore://project/other-one", "project", "other-one"),
        ("firestore://example.com:old-project", "example.com:old-project", "(default)"),
    ],
)
def test_a_url_names_a_database(url: str, project: str, database: str) -> None:
    store = open_store(url)
    assert isinstance(store, FirestoreStore)
    assert (store.project, store.database) == (project, database)


def test_grpc_is_told_to_be_silent_unless_somebody_wants_to_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    open_store("firestore://project")
    assert os.environ["GRPC_VERBOSITY"] == "debug"
    monkeypatch.delenv("GRPC_VERBOSITY")
    open_store("firestore://project")
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"


def test_a_url_for_memory() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "use sqlite:///PATH, or memory://"),
        ("sqlite://pollux.db", "is not known"),
        ("sqlite:////a\0b", "is not known"),
        ("sqlite:///~nobody-of-this-name/x.db", "write the whole path"),
        ("memory://x", "is not known"),
        ("postgres://host/db", "is not known"),
        ("", "is not known"),
        ("firestore://", "'' is not a project id; use firestore://PROJECT"),
        ("firestore://My_Project", "'My_Project' is not a project id"),
        ("firestore://project/", "'' is not a database id"),
        ("firestore://project/data base", "'data base' is not a database id"),
        ("firestore://project/(default)/x", "is not a database id"),
    ],
)
def test_a_url_that_names_no_store(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        open_store(url)
