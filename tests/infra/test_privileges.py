"""Who may do what: the exact list of roles, members and conditions over a whole plan."""

from tests.infra.terraform import Plan

RUN = "serviceAccount:pollux-run@my-project.iam.gserviceaccount.com"
BUILD = "serviceAccount:pollux-build@my-project.iam.gserviceaccount.com"
NOTHING_KNOWN = None
"""A condition that holds the project's number, which is read: see `test_conditions_with_the_number`."""

OF_THE_GATEWAY = {
    ("project", "roles/datastore.user", RUN, 'resource.name == "projects/my-project/databases/pollux"'),
    ("project", "custom: list secrets", RUN, ""),
    ("project", "roles/secretmanager.secretAccessor", RUN, 'startsWith("projects/NUMBER/secrets/pollux-")'),
}
OF_THE_BUILD = {
    ("project", "roles/logging.logWriter", BUILD, ""),
    ("repository pollux", "roles/artifactregistry.writer", BUILD, ""),
    ("bucket my-project-pollux-source", "roles/storage.objectViewer", BUILD, ""),
    (
        "project",
        "roles/storage.objectViewer",
        BUILD,
        'startsWith("projects/_/buckets/gcf-v2-sources-NUMBER-us-central1")',
    ),
}


def grants(plan: Plan) -> list[tuple[str, str, str, str]]:
    """(on what, role, member, condition) of everything in a plan that grants something, whatever its type."""
    found = []
    number = plan_number(plan)
    for resource in plan.resources():
        kind, values = resource["type"], resource["values"]
        if "_iam_" not in kind or kind == "google_project_iam_custom_role":
            continue
        where = {
            "google_project_iam_member": "project",
            "google_artifact_registry_repository_iam_member": f"repository {values.get('repository')}",
            "google_storage_bucket_iam_member": f"bucket {values.get('bucket')}",
            "google_cloud_run_v2_service_iam_member": f"service {values.get('name')}",
            "google_kms_crypto_key_iam_member": "key",
        }[kind]
        condition = values["condition"][0]["expression"] if values.get("condition") else ""
        short = condition.removeprefix("resource.name.").replace(number, "NUMBER")
        member = values["member"].replace(number, "NUMBER")
        found.append((where, values.get("role") or "custom: list secrets", member, short))
    return found


def plan_number(plan: Plan) -> str:
    """The project's number, as this plan read it."""
    modules = plan.shown["prior_state"]["values"]["root_module"]["child_modules"]
    [number] = [
        found["values"]["number"]
        for module in modules
        for found in module["resources"]
        if found["type"] == "google_project"
    ]
    return str(number)


def test_a_function_is_granted_exactly_this(function_plan: Plan) -> None:
    public = {("service pollux", "roles/run.invoker", "allUsers", "")}
    found = grants(function_plan)
    assert len(found) == len(set(found))
    assert set(found) == OF_THE_GATEWAY | OF_THE_BUILD | public


def test_a_private_image_with_a_key_is_granted_exactly_this(full_plan: Plan) -> None:
    callers = {("service pollux", "roles/run.invoker", "group:users@example.com", "")}
    agents = {
        (
            "key",
            "roles/cloudkms.cryptoKeyEncrypterDecrypter",
            f"serviceAccount:service-NUMBER@{name}.iam.gserviceaccount.com",
            "",
        )
        for name in (
            "gcp-sa-artifactregistry",
            "gcp-sa-firestore",
            "gcp-sa-secretmanager",
            "gs-project-accounts",
            "serverless-robot-prod",
        )
    }
    files = {("bucket my-project-pollux-files", "roles/storage.objectUser", RUN, "")}
    assert set(grants(full_plan)) == OF_THE_GATEWAY | callers | agents | files


def test_listing_is_all_that_has_no_condition(function_plan: Plan) -> None:
    role = function_plan.one("google_project_iam_custom_role")
    assert role["permissions"] == ["secretmanager.secrets.list", "secretmanager.versions.list"]
    unconditional = {
        (role, member)
        for where, role, member, condition in grants(function_plan)
        if where == "project" and not condition
    }
    assert unconditional == {("custom: list secrets", RUN), ("roles/logging.logWriter", BUILD)}


def test_the_gateway_asks_for_no_more_than_it_is_granted() -> None:
    """A new call to Secret Manager while the gateway serves needs a permission here."""
    import re

    from tests.infra.terraform import ROOT

    serving = "".join(path.read_text() for path in (ROOT / "function/pollux/backends/keys").glob("secret*.py"))
    called = set(re.findall(r"_api\.(\w+)\(", serving)) - {"close"}
    assert called == {"secrets", "versions", "access"}
    asked = {re.search(rf"async def {name}\(.*?\"(\w+)\", ", serving, re.DOTALL)[1] for name in called}  # type: ignore[index]
    assert asked == {"list_secrets", "list_secret_versions", "access_secret_version"}


def test_accounts_are_our_own_and_have_no_key(function_plan: Plan, full_plan: Plan) -> None:
    def accounts(plan: Plan) -> list[str]:
        return sorted(found["values"]["account_id"] for found in plan.resources("google_service_account"))

    assert accounts(function_plan) == ["pollux-build", "pollux-run"]
    assert accounts(full_plan) == ["pollux-run"]
    assert not list(function_plan.resources("google_service_account_key"))
