"""infra/terraform: formatted, valid, tested with mocks, free of values.

Applied, planned again and destroyed it is in test_deploy_page, as docs/deploy.md says it.
"""

import json
import re
import subprocess
from pathlib import Path

from tests.infra.terraform import MODULE, ROOT, Plan, Workspace, command


def test_it_is_formatted_as_terraform_does_it() -> None:
    done = subprocess.run(
        [command(), f"-chdir={MODULE}", "fmt", "-check", "-recursive", "-diff"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_suites_hold(module: Path) -> None:
    """All in one go: each start of Terraform reads the provider's schema again."""
    done = Workspace(module).run("test", "-no-color", codes=(0, 1))
    assert done.returncode == 0, done.stdout
    passed = set(re.findall(r"^tests/(\w+)\.tftest\.hcl\.\.\. pass$", done.stdout, re.MULTILINE))
    assert passed == {"defaults", "examples", "options"}
    runs = "".join(path.read_text() for path in (MODULE / "tests").glob("*.tftest.hcl")).count('\nrun "')
    assert f"Success! {runs} passed, 0 failed" in done.stdout


def test_an_image_behind_a_domain_is_reached_through_the_load_balancer_alone(full_plan: Plan) -> None:
    assert full_plan.one("google_cloud_run_v2_service")["ingress"] == "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"


def test_a_budget_that_tells_nobody_else_has_no_rule_of_its_own(full_plan: Plan) -> None:
    """The provider refuses an empty one; the billing account's admins are told anyway."""
    assert full_plan.one("google_billing_budget")["all_updates_rule"] == []


def test_every_assertion_says_why() -> None:
    for path in (MODULE / "tests").glob("*.tftest.hcl"):
        text = path.read_text()
        assert (
            text.count("assert {")
            == text.count("error_message =")
            == len(re.findall(r'error_message = ".{20,}"', text))
        )


def test_no_value_of_a_secret_is_in_a_plan_or_can_be(function_plan: Plan, full_plan: Plan) -> None:
    for plan in (function_plan, full_plan):
        kinds = {found["type"] for found in plan.resources()}
        assert "google_secret_manager_secret" in kinds
        assert not {kind for kind in kinds if "secret_version" in kind or kind.startswith("random_")}
        assert not re.search(r"AIza|AQ\.[A-Za-z0-9_-]{8}|pollux-[A-Za-z0-9_-]{32}\b|BEGIN [A-Z ]*PRIVATE", plan.text)
        named = {found["values"]["secret_id"] for found in plan.resources("google_secret_manager_secret")}
        environment = json.dumps([found["values"] for found in plan.resources() if found["name"] == "gateway"])
        assert "POLLUX_TOKEN" not in environment
        assert "POLLUX_ADMIN_TOKEN" not in environment
        assert not [name for name in named if name in environment]
    sources = "".join(path.read_text() for path in MODULE.rglob("*.tf"))
    assert not re.search(r"google_secret_manager_secret_version|random_password|secret_data", sources)


def test_every_resource_names_its_project_or_belongs_to_one_that_does(function_plan: Plan, full_plan: Plan) -> None:
    """The module has no provider of its own, so that a caller's default project must not decide."""
    of_others = {"google_storage_bucket_object", "google_storage_bucket_iam_member", "google_kms_crypto_key_iam_member"}
    for plan in (function_plan, full_plan):
        for found in plan.resources():
            kind = found["type"]
            if kind.startswith("google_") and kind not in of_others | {"google_billing_budget", "google_project"}:
                assert found["values"]["project"] == "my-project", found["address"]
    assert not [path for path in MODULE.glob("*.tf") if re.search(r"^provider ", path.read_text(), re.MULTILINE)]


def test_variables_and_outputs_are_in_alphabetical_order_and_described() -> None:
    for path in (*MODULE.glob("variables*.tf"), MODULE / "outputs.tf"):
        block, text = path.stem.partition("-")[0].removesuffix("s"), path.read_text()
        names = re.findall(rf'^{block} "(\w+)"', text, re.MULTILINE)
        assert names == sorted(names)
        assert len(re.findall(r'^  description = "', text, re.MULTILINE)) == len(names) > 2


def test_every_file_says_in_its_first_line_what_lives_there() -> None:
    files = [*MODULE.rglob("*.tf"), *MODULE.rglob("*.tftest.hcl")]
    assert len(files) > 20
    for path in files:
        text = path.read_text()
        assert text.startswith("# "), path
        assert text.count("\n") < 300, path


def test_the_stand_in_and_its_place_are_no_part_of_what_is_published() -> None:
    for path in [*MODULE.rglob("*.tf"), *MODULE.rglob("*.hcl"), ROOT / "docs/deploy.md"]:
        assert "offline" not in path.read_text(), path
