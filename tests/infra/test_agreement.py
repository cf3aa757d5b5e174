"""What Terraform says of settings, ids, names and documents, held to the code that reads them."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pollux.backends.keys import entries, records
from pollux.backends.keys.contract import Key
from pollux.backends.keys.secrets_api import SecretInfo
from pollux.backends.store import firestore_documents
from pollux.gemini.catalog import tier_name
from pollux.settings import Settings, SettingsError
from tests.infra.terraform import MODULE, Plan, calling

NOT_SETTABLE = {
    "data": "a folder for what is local; in the cloud nothing is",
    "keys": "as keys_file, and values would stand in Terraform's state",
    "keys_file": "keys are in Secret Manager",
    "url": "where commands find a gateway; a gateway does not read it",
    "secrets": "set by the module: the project itself",
    "store": "set by the module: its own database",
    "token": "a token in a variable would stand in Terraform's state and in the service's description",
    "admin_token": "as token",
    "max_instances": "set by the module: service.max_instances, the number that Cloud Run keeps to",
    "files": "set by the module: pooled_files",
    "blobs": "as files: the bucket that comes with it",
    "log": "json in the cloud by itself; metrics and alerts read it",
}
NAMES = {field.name for field in fields(Settings) if field.metadata}
VARIABLES = (MODULE / "variables.tf").read_text()

SETTINGS: dict[str, Any] = {
    "allow_paths": ["webhooks", "batch"],
    "body_memory": "256MiB",
    "catalog": "/etc/pollux/catalog.toml",
    "connect_timeout": 2.5,
    "cors_origins": ["https://a.example", "https://b.example"],
    "fallback_after": 7,
    "http": "httpx",
    "log_level": "debug",
    "max_attempts": 3,
    "max_body": "16MiB",
    "max_concurrent": 500,
    "max_wait": 0,
    "mode": "flash_only",
    "never_below": ["gemini-3.6-flash", "gemini-2.5-flash"],
    "public_url": "https://pollux.example.com/gemini",
    "query_token": False,
    "sticky": False,
    "store_down": "closed",
    "strategy": "most_available",
    "timeout": 90,
    "upstream": "https://gemini.example.com",
    "window": "minute",
}
KEYS: dict[str, Any] = {
    "alice": {"project": "team-a", "tier": "tier1"},
    "bob": {"project": "example.com:Team-B", "limits": {"*": {"rpm": 5}}, "enabled": False},
    "carol": {},
}


@pytest.fixture(scope="module")
def filled_plan(module: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """An image with every setting and with keys."""
    folder = tmp_path_factory.mktemp("filled") / "caller"
    image = "us-central1-docker.pkg.dev/my-project/pollux/pollux:1"
    service = {"max_instances": 4}
    return calling(folder, module, settings=SETTINGS, keys=KEYS, tokens=["web"], image=image, service=service).plan()


def variable(name: str) -> str:
    return VARIABLES.partition(f'\nvariable "{name}" {{')[2].partition("\n}\n")[0]


def patterns(name: str) -> list[str]:
    return re.findall(r'regex\("\^(.*?)\$"', variable(name))


def environments(plan: Plan) -> list[dict[str, str]]:
    found = [
        r["values"]["service_config"][0]["environment_variables"]
        for r in plan.resources("google_cloudfunctions2_function")
    ]
    for resource in plan.resources("google_cloud_run_v2_service"):
        found.append({env["name"]: env["value"] for env in resource["values"]["template"][0]["containers"][0]["env"]})
    return found


def test_each_setting_can_be_set_or_there_is_a_reason() -> None:
    settable = set(re.findall(r"^    (\w+) += optional\(", variable("settings"), re.MULTILINE))
    assert settable | set(NOT_SETTABLE) == NAMES
    assert not settable & set(NOT_SETTABLE)


def test_what_is_set_is_read_by_the_gateway_as_it_was_meant(function_plan: Plan, full_plan: Plan) -> None:
    for plan in (function_plan, full_plan):
        [environment] = environments(plan)
        asgi = environment.pop("FUNCTION_USE_ASGI", None)
        assert asgi == ("1" if plan is function_plan else None)
        assert {name.removeprefix("POLLUX_").lower() for name in environment} <= NAMES
        settings = Settings.from_env(environment)
        assert settings.store == "firestore://my-project/pollux"
        assert settings.secrets == "my-project"
        assert settings.most_instances == 10
        pooled = plan is full_plan
        assert settings.files == ("pooled" if pooled else "own")
        assert settings.blobs == ("gs://my-project-pollux-files" if pooled else "")


def test_every_setting_of_the_module_is_read_by_the_gateway(filled_plan: Plan) -> None:
    assert set(SETTINGS) == NAMES - set(NOT_SETTABLE)
    [environment] = environments(filled_plan)
    read = Settings.from_env(environment)
    assert read.max_instances == 4
    for name, value in SETTINGS.items():
        found = getattr(read, name)
        expected = {"body_memory": 256 * 2**20, "max_body": 16 * 2**20}.get(name, value)
        assert (list(found) if isinstance(found, tuple) else found) == expected, name
        assert found != getattr(Settings(), name), f"{name}: a default would prove nothing"


@pytest.mark.parametrize("name", ["http", "mode", "store_down", "strategy", "window"])
def test_words_are_those_that_the_gateway_knows(name: str) -> None:
    told = re.search(rf"var\.settings\.{name} == null \? true : contains\(\[(.*?)\]", variable("settings"))
    assert told
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({f"POLLUX_{name.upper()}": "no-such-word"})
    words = ", ".join(re.findall(r'"(\w+)"', told[1]))
    assert str(refused.value).endswith(f"expected one of {words}")


def test_ids_and_names_have_the_patterns_of_the_code() -> None:
    key_id, project = patterns("keys")
    assert key_id == entries.ID.pattern.replace(" ", ""), "ids with spaces are mapped by `pollux keys add`"
    assert project == entries.PROJECT.pattern
    assert patterns("tokens") == [records.TOKEN_NAME.pattern]
    tiers = re.findall(r'"(\w+)"', variable("keys").partition("contains([")[2].partition("]")[0])
    assert [tier_name(tier) for tier in tiers] == tiers
    assert len(tiers) == 4
    limits = re.findall(r'"(\w+)"', variable("keys").rpartition("contains([")[2].partition("]")[0])
    assert set(limits) == set(entries.LIMITS)
    assert f'regex("^{records._LABEL.pattern}$"' in (MODULE / "secrets.tf").read_text()


def test_declared_keys_are_those_that_the_gateway_reads(filled_plan: Plan) -> None:
    infos = [
        SecretInfo(values["secret_id"], values["labels"] or {}, values["annotations"] or {}, 0.0, "")
        for values in (found["values"] for found in filled_plan.resources("google_secret_manager_secret"))
    ]
    keys = [records.key_of(info) for info in infos if info.name.startswith(records.KEY)]
    assert sorted(keys, key=str) == sorted(
        [
            Key("alice", "team-a", "tier1", {}, True, 0),
            Key("bob", "example.com:Team-B", None, {"*": {"rpm": 5}}, False, 0),
            Key("carol", "carol", None, {}, True, 0),
        ],
        key=str,
    )
    assert {records.token_name(info) for info in infos} - {None} == {"", "web"}
    assert all(records.foreign(info) for info in infos), "or the command line would delete what Terraform makes again"


def test_the_index_and_the_ttl_are_on_the_documents_of_the_store(function_plan: Plan) -> None:
    found = {
        values["field"]: values for values in (r["values"] for r in function_plan.resources("google_firestore_field"))
    }
    assert set(found) == {"*", "expires_at"}
    assert {values["collection"] for values in found.values()} == {firestore_documents.COLLECTION}

    class Fields(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            from google.cloud.firestore_v1.types import Value

            self[name] = Value()._pb
            return self[name]

    written = Fields()
    firestore_documents.fill(written, "{}", {"expires": 1.0}, "n")
    assert set(written) == {"v", "json", "nonce", "expires_at"}
    assert found["expires_at"]["ttl_config"]
