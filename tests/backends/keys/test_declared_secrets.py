"""Secrets that Terraform declares, without a value: the command line puts the first one there."""

import pytest

from pollux.backends.keys.records import VERSION
from tests.cli import test_keys_in_secret_manager, test_tokens
from tests.cli.test_keys_in_secret_manager import MASKED, A, B

TERRAFORM = {"managed-by": "terraform"}

keys_shell = test_keys_in_secret_manager.shell
tokens_shell = test_tokens.shell


def test_the_first_value_of_a_declared_key_is_put_there_by_rotate(
    keys_shell: test_keys_in_secret_manager.Shell,
) -> None:
    google = keys_shell.google
    for key_id in ("a", "b"):
        google.put_described(f"pollux-key-{key_id}", (), {**TERRAFORM, "tier": "free"}, {})
    code, out, err = keys_shell("rotate", "a", stdin=f"{A}\n")
    assert (code, out, err) == (0, f"rotated a ({MASKED}) in secret pollux-key-a of pool: version 1\n", "")
    assert google.values("pollux-key-a") == [A]
    assert google.secrets["pollux-key-a"].labels == {**TERRAFORM, "tier": "free"}
    assert google.secrets["pollux-key-a"].annotations == {VERSION: "1"}


def test_adding_a_declared_key_says_how_to_put_its_value(keys_shell: test_keys_in_secret_manager.Shell) -> None:
    keys_shell.google.put_described("pollux-key-a", (), TERRAFORM, {})
    code, out, err = keys_shell("add", "a", stdin=f"{A}\n")
    assert (code, out) == (2, "")
    assert "has no value yet; add one with: pollux keys rotate a" in err
    assert keys_shell.google.values("pollux-key-a") == []


def test_what_is_there_with_a_value_is_still_taken(keys_shell: test_keys_in_secret_manager.Shell) -> None:
    keys_shell.google.put_described("pollux-key-a", (A,), TERRAFORM, {})
    assert "is taken, by secret pollux-key-a" in keys_shell("add", "a", stdin=f"{B}\n")[2]


@pytest.mark.parametrize(("words", "name"), [(["web"], "pollux-token-web"), (["--admin"], "pollux-admin-token")])
def test_a_declared_token_gets_its_first_value_by_add_and_stays_when_that_is_revoked(
    tokens_shell: test_tokens.Shell, words: list[str], name: str
) -> None:
    tokens_shell.google.put_described(name, (), TERRAFORM, {})
    code, _, err = tokens_shell("add", *words)
    assert code == 0
    assert f"version 1 of secret {name}" in err
    assert "beside" not in err
    assert tokens_shell("revoke", *words, "--all", "--yes")[0] == 0
    assert tokens_shell.google.secrets[name].labels == TERRAFORM
    assert [version.state for version in tokens_shell.google.secrets[name].versions] == ["DESTROYED"]
