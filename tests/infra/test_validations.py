"""What the module refuses before anything is made: each rule of each variable, by one wrong value and its message.

All in one plan, of a module that is its variables alone: rules need no resource, and resources need seconds.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.infra.terraform import MODULE, command

KMS_KEY = "projects/my-project/locations/us-central1/keyRings/ring/cryptoKeys/key"
BUDGET: dict[str, Any] = {"amount": 5, "billing_account": "012345-6789AB-CDEF01"}
TAGGED = "us-central1-docker.pkg.dev/my-project/pollux/pollux:1"

# (what is wrong, the variables, how the message begins). What a rule is about is always given: a default has no place.
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a share above one", {"alerts": {"error_share": 5}}, "alerts.error_share"),
    ("no minutes", {"alerts": {"minutes": 0}}, "alerts.minutes"),
    ("a budget of nothing", {"budget": {**BUDGET, "amount": 0}}, "budget.amount"),
    ("a billing account by its name", {"budget": {**BUDGET, "billing_account": "ours"}}, "budget.billing_account"),
    ("a database with capitals", {"database": {"name": "Pollux"}}, "database.name"),
    ("a name that leaves its condition", {"database": {"name": 'a" || true || "'}}, "database.name"),
    ("backups for ever", {"database": {"backup_days": 99}}, "database.backup_days"),
    ("a database in a zone", {"database": {"location": "europe-west1-b"}}, "database.location"),
    ("a domain with a scheme", {"domain": {"names": ["https://gemini.example.com"]}}, "domain.names"),
    ("a domain without names", {"domain": {"names": []}}, "domain.names"),
    ("a rate of nothing", {"domain": {"names": ["a.example.com"], "requests_per_minute": 0}}, "domain.requests_per"),
    ("an image without a tag", {"image": TAGGED.removesuffix(":1")}, "image names"),
    ("public and private at once", {"invokers": ["user:a@example.com"]}, "A public gateway"),
    ("private for nobody", {"private": True, "invokers": []}, "private = true needs"),
    ("private for everybody", {"private": True, "invokers": ["allUsers"]}, "Each of invokers"),
    ("private for everybody with an account", {"private": True, "invokers": ["allAuthenticatedUsers"]}, "Each of"),
    ("everybody by the other name", {"private": True, "invokers": ["principalSet://goog/public:all"]}, "Each of"),
    ("a key id with a space", {"keys": {"alice b": {}}}, "The id of a key"),
    ("a key id that starts with a dash", {"keys": {"-a": {}}}, "The id of a key"),
    ("a key id that is too long", {"keys": {"a" * 64: {}}}, "The id of a key"),
    ("a key id with a line more", {"keys": {"a\nb": {}}}, "The id of a key"),
    ("a key of no project", {"keys": {"a": {"project": "team a"}}}, "The project of a key"),
    ("an unknown tier", {"keys": {"a": {"tier": "gold"}}}, "The tier of a key"),
    ("an unknown limit", {"keys": {"a": {"limits": {"*": {"rps": 1}}}}}, "The limits of a key"),
    ("half a request", {"keys": {"a": {"limits": {"*": {"rpm": 0.5}}}}}, "The limits of a key"),
    ("a key that is none", {"kms_key": "my-key"}, "kms_key is projects/"),
    ("a key in another region", {"kms_key": KMS_KEY, "region": "europe-west1"}, "kms_key, region"),
    (
        "a ring named as the region",
        {"kms_key": "projects/p/locations/global/keyRings/us-central1/cryptoKeys/key"},
        "kms_key, region",
    ),
    ("a label with capitals", {"labels": {"team": "Platform"}}, "labels are"),
    ("a label that starts with a digit", {"labels": {"1st": "a"}}, "labels are"),
    ("a name that ends in a dash", {"name": "pollux-"}, "name is"),
    ("a name too long for an account", {"name": "a" * 24}, "name is"),
    ("a name that leaves its filter", {"name": 'a" OR "b'}, "name is"),
    ("a channel by its address", {"notification_channels": ["oncall@example.com"]}, "Each of notification_channels"),
    ("a number is no project", {"project": "123456789012"}, "project is"),
    ("a zone is no region", {"region": "europe-west1-b"}, "region is"),
    ("a multi-region is no region", {"region": "eur3"}, "region is"),
    ("a nameless exclusion", {"request_log": {"other_exclusions": {"a b": "severity<INFO"}}}, "request_log.other"),
    ("an exclusion of all", {"request_log": {"other_exclusions": {"all": " "}}}, "request_log.other"),
    ("a maximum below the minimum", {"service": {"max_instances": 1, "min_instances": 2}}, "service.max_instances"),
    ("no instances at all", {"service": {"max_instances": 0}}, "service.max_instances"),
    ("more at once than cloud run allows", {"service": {"concurrency": 1001}}, "service.concurrency"),
    ("a longer timeout than cloud run allows", {"service": {"timeout_seconds": 3601}}, "service.timeout_seconds"),
    ("a memory that is no size", {"service": {"memory": "512"}}, "service.memory"),
    ("half a cpu", {"service": {"cpu": "0.5"}}, "service.cpu"),
    ("billing by instance for a function", {"service": {"instance_billing": True}}, "service.instance_billing"),
    ("a gateway that refuses what it is sent", {"settings": {"max_concurrent": 10}}, "settings.max_concurrent"),
    ("a catalog in a function", {"settings": {"catalog": "/etc/catalog.toml"}}, "settings.catalog"),
    ("a log without requests", {"settings": {"log_level": "error"}}, "settings.log_level"),
    ("an unknown strategy", {"settings": {"strategy": "fastest"}}, "settings.http"),
    ("an unknown window", {"settings": {"window": "hour"}}, "settings.http"),
    ("keys in the clear", {"settings": {"upstream": "http://gemini.example.com"}}, "settings.upstream"),
    ("tokens in the clear", {"settings": {"public_url": "http://gemini.example.com"}}, "settings.upstream"),
    ("a client whose name starts with a digit", {"tokens": ["1st"]}, "A client's name"),
    ("a client whose name is too long", {"tokens": ["a" * 33]}, "A client's name"),
    (
        "an uptime check of a private gateway",
        {"private": True, "invokers": ["user:a@b.c"], "uptime_check": True},
        "upt",
    ),
]

RIGHT: list[dict[str, Any]] = [
    {},
    {"database": {"name": "(default)", "location": "eur3"}},
    {"kms_key": KMS_KEY, "database": {"location": "us-central1"}},
    {"private": True, "invokers": ["principalSet://iam.googleapis.com/locations/global/workforcePools/p/*"]},
    {"labels": {"team": "platform", "tier": "", "cost-center": "42_a"}},
    {"settings": {"upstream": "https://gemini.example.com", "mode": "flash_only", "log_level": "debug"}},
    {"service": {"concurrency": 1000, "timeout_seconds": 3600, "min_instances": 1}},
    {"request_log": {"other_exclusions": {"noise": "severity<INFO"}}},
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each call, the messages of the rules that it breaks."""
    folder = tmp_path_factory.mktemp("validations")
    (folder / "variables").mkdir()
    for path in MODULE.glob("variables*.tf"):
        shutil.copy(path, folder / "variables")
    values = [given for _, given, _ in WRONG] + RIGHT
    left = {
        f"call_{number}": {"source": "./variables", "project": "my-project", **given}
        for number, given in enumerate(values)
    }
    found: dict[str, list[str]] = {name: [] for name in left}
    # Rules about one variable alone are checked first, and where one is broken, those about several are not.
    while broken := _planned(folder, left):
        for name, messages in broken.items():
            found[name] += messages
            del left[name]
    return found


def _planned(folder: Path, calls: dict[str, Any]) -> dict[str, list[str]]:
    (folder / "main.tf.json").write_text(json.dumps({"module": calls}, indent=1))
    found: dict[str, list[str]] = {}

    def run(*words: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run([command(), f"-chdir={folder}", *words], capture_output=True, text=True, check=False)
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    run("init", "-backend=false", "-input=false")
    for line in map(json.loads, run("plan", "-json", "-input=false", codes=(0, 1)).splitlines()):
        if line["type"] == "diagnostic" and line["diagnostic"]["severity"] == "error":
            diagnostic = line["diagnostic"]
            assert diagnostic["summary"] == "Invalid value for variable", diagnostic
            call = re.fullmatch(r"module\.(\w+)", diagnostic["snippet"]["context"])
            assert call, diagnostic["snippet"]
            found.setdefault(call[1], []).append(diagnostic["detail"])
    return found


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{next(iter(w[1]))}: {w[0]}" for w in WRONG])
def test_a_wrong_value_is_refused_with_its_rule(refused: dict[str, list[str]], number: int) -> None:
    messages = refused[f"call_{number}"]
    assert [m for m in messages if m.startswith(WRONG[number][2])] == messages != []


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_right_values_pass(refused: dict[str, list[str]], number: int) -> None:
    assert refused[f"call_{len(WRONG) + number}"] == []


def test_every_rule_is_broken_by_something(refused: dict[str, list[str]]) -> None:
    rules = [
        rule
        for path in MODULE.glob("variables*.tf")
        for rule in re.findall(r'error_message = "(.*)"', path.read_text())
    ]
    seen = {message.partition("\n")[0] for messages in refused.values() for message in messages}
    assert {rule.replace('\\"', '"') for rule in rules} == seen
