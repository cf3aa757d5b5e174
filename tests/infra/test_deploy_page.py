"""docs/deploy.md, held to the module and the command line: its commands run here where they can."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.command_line import parsed
from tests.infra.terraform import MODULE, ROOT, Plan, Workspace, calling, command

PAGE = (ROOT / "docs/deploy.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(program: str) -> list[list[str]]:
    """All that the page tells to type of a program, in blocks and in the text."""
    spoken = re.findall(rf"`({program} [^`]+)`", PAGE)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True)[1:] for line in lines + spoken]


@pytest.mark.parametrize("words", [w for w in commands("pollux") if w[0] in ("keys", "tokens")], ids=" ".join)
def test_commands_of_pollux_are_understood(words: list[str]) -> None:
    parsed(words)


def test_the_page_names_all_that_is_needed_of_the_command_line() -> None:
    said = {tuple(words[:2]) for words in commands("pollux")}
    assert {("keys", "add"), ("keys", "rotate"), ("tokens", "add"), ("tokens", "revoke"), ("deploy", "check")} <= said


def test_the_walk_prints_what_the_page_says(module: Path, tmp_path: Path) -> None:
    """From init to destroy, as typed, but for the answers that Terraform asks for; a second plan is empty."""
    walk = next(block for block in blocks("sh") if "terraform init" in block)
    folder = re.search(r"^cd (\S+)$", walk, re.MULTILINE)
    variables = re.findall(r"^export TF_VAR_(\w+)=(\S+)$", walk, re.MULTILINE)
    assert folder
    assert (variables, re.findall(r"^terraform (.*)$", walk, re.MULTILINE)) == (
        [("project", "my-project")],
        ["init", "apply"],
    )
    checkout = tmp_path / "checkout"
    shutil.copytree(module.parents[1], checkout)
    workspace = Workspace(checkout / folder[1])
    given = [f"-var={name}={value}" for name, value in variables]
    done = workspace.run("apply", "-no-color", "-input=false", "-auto-approve", *given)
    url = workspace.run("output", "-raw", "url").stdout
    [shown] = [block for block in blocks("text") if block.startswith("Apply complete!")]
    assert shown.replace("URL", url).strip() in done.stdout
    again = workspace.run("plan", "-detailed-exitcode", "-no-color", "-input=false", *given)
    assert "No changes" in again.stdout
    typed = workspace.run("output", "-raw", "next_commands").stdout
    for line in section("The first answer").partition("```sh\n")[2].partition("```")[0].splitlines():
        start = line.partition(" --")[0]
        assert any(other.startswith(start) for other in typed.splitlines()), line
    workspace.run("destroy", "-no-color", "-input=false", "-auto-approve", *given)
    assert json.loads((workspace.folder / "terraform.tfstate").read_text())["resources"] == []


def test_the_configuration_of_the_page_is_planned(module: Path, tmp_path: Path) -> None:
    [call] = [block for block in blocks("hcl") if block.startswith("module")]
    workspace = calling(tmp_path / "caller", module)
    (workspace.folder / "main.tf.json").unlink()
    source = re.search(r'source +(= ".*")', call)
    assert source
    here = os.path.relpath(module, workspace.folder)
    (workspace.folder / "main.tf").write_text(call.replace(source[1], f'= "{here}"'))
    workspace.run("init", "-backend=false", "-input=false")
    plan = workspace.plan()
    named = {found["values"]["secret_id"] for found in plan.resources("google_secret_manager_secret")}
    assert {"pollux-key-alice", "pollux-key-bob", "pollux-token-batch", "pollux-token-web"} <= named


def test_the_backend_of_the_page_is_valid(tmp_path: Path) -> None:
    [backend] = [block for block in blocks("hcl") if "backend" in block]
    done = subprocess.run([command(), "fmt", "-"], input=backend, capture_output=True, text=True, check=True)
    assert done.stdout == backend


def test_every_variable_and_output_that_the_page_names_exists() -> None:
    sources = "".join(path.read_text() for path in MODULE.glob("*.tf"))
    variables = set(re.findall(r'^variable "(\w+)"', sources, re.MULTILINE))
    tables = section("A configuration of your own")
    named = set(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE))
    named |= set(re.findall(r"`(\w+) = [\[{\"]", PAGE))
    assert named - {"source"} <= variables
    assert len(named) >= 8
    outputs = set(re.findall(r'^output "(\w+)"', sources, re.MULTILINE))
    typed = set(re.findall(r"terraform output (?:-raw )?(\w+)", PAGE))
    assert typed | {"domain_address"} <= outputs
    examples = "".join(path.read_text() for path in (MODULE / "examples").glob("*/main.tf"))
    assert typed <= set(re.findall(r'^output "(\w+)"', examples, re.MULTILINE)), "the walk is in an example's folder"


def test_gcloud_knows_who_asks_before_it_is_asked_for_anything() -> None:
    first, *others = commands("gcloud")
    assert first[:2] == ["auth", "login"]
    assert "--update-adc" in first, "Terraform and the command pollux take the application-default credentials"
    assert ["services", "enable"] in [words[:2] for words in others]


def test_services_agents_are_there_before_the_key_is_granted_to_them() -> None:
    """An API makes its agent with its roles when it is turned on; an agent that is only asked for has none."""
    [loop] = [block for block in blocks("sh") if "services identity create" in block]
    assert loop.index("gcloud services enable") < loop.index("services identity create")
    named = re.search(r"^for api in (.*); do$", loop, re.MULTILINE)
    assert named
    agents = (MODULE / "encryption.tf").read_text().partition("agents = {")[2].partition("}")[0]
    wanted = {"functions": "cloudfunctions"}
    assert {wanted.get(name, name) for name in re.findall(r"(\w+) +=", agents)} - {"storage"} == set(named[1].split())


def test_the_table_of_roles_is_that_of_the_plan(function_plan: Plan) -> None:
    from tests.infra.test_privileges import BUILD, RUN, grants

    said = set(re.findall(r"`(roles/[\w.]+)`", section("A configuration of your own").partition("### The operator")[0]))
    assert said == {role for _, role, member, _ in grants(function_plan) if member in (RUN, BUILD) and "/" in role}


def test_what_the_page_says_of_the_defaults_is_so(function_plan: Plan) -> None:
    service = function_plan.one("google_cloudfunctions2_function")["service_config"][0]
    said = f"{service['min_instance_count']} to {service['max_instance_count']} instances, "
    said += f"{service['max_instance_request_concurrency']} requests at once on {service['available_cpu']} CPU and "
    said += f"{service['available_memory']}, {service['timeout_seconds']} s"
    assert said in PAGE
    assert function_plan.one("time_sleep")["create_duration"] == "90s"
