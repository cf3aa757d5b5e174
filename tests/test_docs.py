"""The pages of docs/ and what is beside them, held to the code: modules, dependencies, faults, links, the image."""

import ast
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pollux.gemini.names import COLLECTIONS
from pollux.resources.ownership import DAY, KEPT_ELSE, KEPT_FOR
from tests.cli.command_line import parsed

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "function/pollux"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
CLOUD = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["cloud"]]
DEVELOPMENT = [Requirement(line) for group in PROJECT["dependency-groups"].values() for line in group]
COMPILED = (ROOT / "function/requirements.txt").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`|]+)` \|", text, re.MULTILINE)


# --- architecture ----------------------------------------------------------------------------------------------------


def test_the_architecture_names_every_module_once_and_no_others() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    modules = sorted(path.relative_to(PACKAGE).as_posix() for path in paths)
    assert sorted(first_cells(section(page("architecture.md"), "The modules"))) == modules


def test_the_tests_of_every_module_have_its_path_or_are_named() -> None:
    rows = re.findall(
        r"^\| (`[\w/]+\.py`[^|]*) \| ([^|]*`tests/[^|]*) \|$", section(page("architecture.md"), "The tests"), re.M
    )
    named = {module: re.findall(r"`([^`]+)`", tests) for row, tests in rows for module in re.findall(r"`([^`]+)`", row)}
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    mirrored = {str(path) for path in paths if (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()}
    assert sorted(named) == sorted({str(path) for path in paths} - mirrored)
    assert [path for tests in named.values() for path in tests if not (ROOT / path).is_file()] == []


# `path.py: name` on a page: a file below function/pollux, or from the root of the checkout, and what is in it
NAMED_THERE = re.findall(r"`([\w/]+\.py): ([\w.]+)`", page("architecture.md"))


def found_at(path: str) -> Path | None:
    return next((folder / path for folder in (PACKAGE, ROOT) if (folder / path).is_file()), None)


@lru_cache
def names_in(path: Path) -> set[str]:
    """Functions, classes and constants of a module; members of its classes as `Class.member`."""
    return set(_names(ast.parse(path.read_text()).body))


def _names(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.ClassDef(name=name, body=members):
                yield within + name
                yield from _names(members, f"{within}{name}.")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield within + name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield within + name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from (within + node.id for node in ast.walk(target) if isinstance(node, ast.Name))


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED_THERE)), ids=str)
def test_every_function_that_the_architecture_names_exists(path: str, name: str) -> None:
    file = found_at(path)
    assert file is not None, f"there is no {path}"
    assert name in names_in(file), f"{path} has no {name}"


def test_the_questions_and_each_step_of_a_request_name_a_function() -> None:
    text = page("architecture.md")
    for title in ("Where to look", "The way of a request"):
        rows = re.findall(r"^\| (.+) \|$", section(text, title), re.MULTILINE)
        assert len(rows) > 20
        assert [row for row in rows if not re.search(r"`[\w/]+\.py(?:: [\w.]+)?`|\| where$", row)] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda path: path.name)
def test_every_module_that_a_page_names_exists(path: Path) -> None:
    for named in re.findall(r"`([\w/]+\.(?:py|toml))(?:: [\w.]+)?`", path.read_text()):
        assert "/" not in named or found_at(named), named


def test_every_module_says_in_its_first_line_what_lives_there() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().startswith('"""'), path


def test_the_diagram_shows_the_packages_in_their_column() -> None:
    chart = page("architecture.md").partition("```mermaid\nflowchart")[2].partition("```")[0]
    arrows = re.findall(r"^ +(\w+)\S* --> (\w+)", chart, re.MULTILINE)
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    column = next(
        contract["layers"] for contract in PROJECT["tool"]["importlinter"]["contracts"] if "layers" in contract
    )
    order = [name.removeprefix("pollux.") for name in column]
    assert set(order) == packages
    within = [(upper, lower) for upper, lower in arrows if {upper, lower} <= packages]
    assert within == list(itertools.pairwise(order))


# --- dependencies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "declared"),
    [("At run time", RUNTIME), ("In the cloud", CLOUD), ("For development", DEVELOPMENT)],
    ids=["run time", "cloud", "development"],
)
def test_every_dependency_has_its_reason(title: str, declared: list[Requirement]) -> None:
    assert sorted(first_cells(section(page("dependencies.md"), title))) == sorted(r.name for r in declared)


def compiled() -> dict[str, Requirement]:
    lines = [line for line in COMPILED.splitlines() if line.strip() and not line.startswith("#")]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def versions(requirement: Requirement) -> str:
    exact = [specifier for specifier in requirement.specifier if specifier.operator == "=="]
    assert len(exact) == len(requirement.specifier) == 1, f"{requirement} is not one exact version"
    return exact[0].version


def test_what_is_deployed_is_exact_and_within_the_ranges() -> None:
    found = compiled()
    for requirement in found.values():
        versions(requirement)
    for declared in (*RUNTIME, *CLOUD):
        exact = found[canonicalize_name(declared.name)]
        assert declared.specifier.contains(versions(exact)), f"{exact} is not within {declared}"
        assert str(exact.marker or "") == str(declared.marker or "")


def reached(*, here: bool) -> set[str]:
    """What is deployed and all that it brings along: `here` by this machine's markers, else under any."""
    rest = [r for r in (*RUNTIME, *CLOUD) if not here or r.marker is None or r.marker.evaluate()]
    seen = set[tuple[str, str]]()
    while rest:
        wanted = rest.pop()
        name = canonicalize_name(wanted.name)
        for extra in {(name, each) for each in ("", *wanted.extras)} - seen:
            seen.add(extra)
            rest += [needed for needed in _needed(name) if _applies(needed, extra[1], here=here)]
    return {name for name, _ in seen}


def _needed(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:  # of another platform
        return []


def _applies(needed: Requirement, extra: str, *, here: bool) -> bool:
    if needed.marker is None:
        return not extra
    if here:
        return needed.marker.evaluate({"extra": extra})
    named = re.findall(r'extra == "([^"]+)"', str(needed.marker))
    return extra in named if named else not extra


def test_what_is_deployed_is_all_that_is_needed_and_nothing_else() -> None:
    assert reached(here=True) <= set(compiled()) <= reached(here=False)


def test_the_compiled_file_names_no_index_and_no_host() -> None:
    assert not re.search(r"://|--|@", COMPILED)


def test_the_code_imports_nothing_that_is_not_deployed() -> None:
    ours = {
        "pollux",
        "gemini_simulator",
        "click",
        "httptools",
        "httpx2",
        "rich",
        "starlette",
        "uvicorn",
        "uvloop",
        "functions_framework",
    }
    brought = {"google", "grpc", "httpcore2"}  # by the two clients of the cloud extra, and by httpx2
    imported = {
        name
        for path in (ROOT / "function").rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) ([a-z_]\w*)", path.read_text(), re.MULTILINE)
    }
    third = {name for name in imported if not _standard(name)}
    assert third <= ours | brought
    assert {canonicalize_name(name) for name in ours - {"pollux", "gemini_simulator"}} <= set(compiled())


def test_google_s_clients_are_imported_where_they_are_used_and_nowhere_else() -> None:
    """Each costs a quarter of a second of the first request."""
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^(?:from|import) (?:google|grpc)", path.read_text(), re.MULTILINE)
    }
    assert importers
    assert all(name.startswith(("backends/store/firestore", "backends/keys/secret")) for name in importers), importers


def _standard(name: str) -> bool:
    import sys

    return name in sys.stdlib_module_names


# --- faults ----------------------------------------------------------------------------------------------------------


def fault_rows() -> list[str]:
    rows = [line for line in page("faults.md").splitlines() if line.startswith("| ") and "| held by |" not in line]
    assert len(rows) > 25
    return rows


TESTS = {path.relative_to(ROOT / "tests").as_posix(): path for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("row", fault_rows(), ids=lambda row: row.split("|")[1].strip().replace("`", ""))
def test_every_line_about_faults_is_held_by_tests_that_exist(row: str) -> None:
    held = re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", row.rpartition("|")[0].rpartition("|")[2])
    assert held, "no test is named"
    for file, name in held:
        assert f"def {name}(" in TESTS[file].read_text(), f"{file} has no {name}"


def test_every_error_of_ours_that_speaks_of_a_fault_is_a_known_one() -> None:
    from pollux.gemini.errors import ERRORS

    named = set(re.findall(r"\d{3} `([A-Z_]+)`", page("faults.md")))
    assert named <= set(ERRORS)
    assert len(named) >= 8


# --- links, tables, the image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_every_link_into_a_page_leads_to_a_heading(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", path.read_text()):
        assert anchor in anchors((path.parent / target if target else path).read_text()), f"{target}#{anchor}"


def test_every_setting_that_a_page_names_exists() -> None:
    from pollux.settings import describe

    known = {name for name, _, _ in describe()} | {"POLLUX_CLIENT_TOKEN"}  # of the examples, a shell's own
    for path in [ROOT / "README.md", *PAGES]:
        assert set(re.findall(r"\bPOLLUX_[A-Z_]+\b", path.read_text())) <= known, path.name


def test_the_image_runs_a_command_that_exists_and_not_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    command = next(line for line in lines if line.startswith("CMD"))
    words = shlex.split(re.findall(r'"((?:[^"\\]|\\.)*)"', command)[-1].replace('\\"', '"'))
    assert words[:4] == ["exec", "python", "-m", "pollux"]
    port = next(line for line in lines if line.startswith("ENV")).split("PORT=")[1].split()[0]
    arguments = [word.replace("$PORT", port) for word in words[4:]]
    assert parsed(arguments) == ("pollux serve", {"host": "0.0.0.0", "port": 8080, "demo": False})  # noqa: S104
    assert lines.index("USER pollux") < lines.index(command)
    assert re.search(r"^FROM python:3\.\d+-slim$", "\n".join(lines), re.MULTILINE)
    assert "COPY function/requirements.txt ." in lines


def test_the_page_of_resources_has_a_row_for_each_kind_and_the_days_that_it_is_remembered() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|[^|]*\| ([^|]*) \|", page("resources.md"), re.MULTILINE)
    days: dict[str, int] = {}
    for kinds, remembered in rows:
        named = re.findall(r"`(\w+)`", kinds)
        special = re.findall(r"(\d+) days for `(\w+)`", remembered)
        own = {kind: int(count) for count, kind in special}
        rest = re.findall(r"\d+", remembered)[-1]
        days |= {kind: own.get(kind, int(rest)) for kind in named}
    assert days == {kind: round(KEPT_FOR.get(kind, KEPT_ELSE) / DAY) for kind in COLLECTIONS}
