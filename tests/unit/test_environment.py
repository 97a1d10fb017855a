"""pyproject.toml, the lock files and environment.yml describe one environment."""

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest
import yaml
from helpers import REPO
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
TEST = [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
PROMISED = {"snakemake", "jax", "flax", "optax", "numpy", "pandas", "matplotlib", "clean-fid", "gcsfs"}
# Torch's own needs on Linux differ with the build: PyPI's brings CUDA along, the CPU one does not.
TORCHS_OWN = re.compile(r"nvidia-.*|cuda-.*|triton")


def pins(lines):
    """name -> version of ``name==version`` lines, each of which must be exactly that."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"'{line}' is not an exact pin of a public version"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = Version(match[2])
    return found


def read_lock(name):
    return pins([line for line in (REPO / name).read_text().splitlines() if line and not line.startswith("#")])


LOCK, TEST_LOCK = read_lock("requirements.lock"), read_lock("requirements-test.lock")
CONDA = yaml.safe_load((REPO / "environment.yml").read_text())


def conda_pip():
    """The pip section of environment.yml: (options, pins)."""
    (section,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    options = [line for line in section if line.startswith("-")]
    return options, pins([line for line in section if not line.startswith("-")])


def names(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def needed(requirements):
    """Every package that ``requirements`` lead to in the running environment, with its installed version."""
    found, todo, seen = {}, list(requirements), set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        if (name, extras) in seen or TORCHS_OWN.fullmatch(name):
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is needed and not installed: make env")
        found[name] = Version(package.version)
        for text in package.requires or ():
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append(child)
    return found


def imported(*folders):
    """Top-level modules that the Python files of ``folders`` import, those of Python and of the project left out."""
    found = set()
    for path in (path for folder in folders for path in (REPO / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    own = {"ldmscale", *(path.stem for name in ("tests", "benchmarks") for path in (REPO / name).rglob("*.py"))}
    return found - set(sys.stdlib_module_names) - own


def test_what_is_imported_is_declared():
    packages = packages_distributions()
    for folders, declared in [
        (("lib", "workflow_scripts"), names(RUNTIME)),
        (("tests",), names(RUNTIME) | names(TEST)),
    ]:
        for module in sorted(imported(*folders)):
            assert {canonicalize_name(name) for name in packages[module]} & declared, f"{folders} import {module}"


def test_what_was_promised_is_a_direct_dependency():
    assert names(RUNTIME) >= PROMISED
    assert not names(RUNTIME) & names(TEST)


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_the_lock_pins_each_dependency_within_its_range(requirement):
    name = canonicalize_name(requirement.name)
    assert name in LOCK
    assert LOCK[name] in requirement.specifier


@pytest.mark.parametrize("requirement", TEST, ids=str)
def test_the_locks_pin_what_tests_need_within_its_range(requirement):
    name = canonicalize_name(requirement.name)
    assert (LOCK | TEST_LOCK)[name] in requirement.specifier


def test_conda_installs_the_direct_dependencies_at_the_locked_versions():
    options, pinned = conda_pip()
    assert pinned == {name: (LOCK | TEST_LOCK)[name] for name in names(RUNTIME) | names(TEST)}
    # What these need in turn is held to the locks too, and the project itself is installed.
    assert options == ["--constraint requirements.lock", "--constraint requirements-test.lock", "--editable ."]


def test_conda_has_a_python_that_the_project_accepts():
    (python,) = [entry.partition("=")[2] for entry in CONDA["dependencies"] if str(entry).startswith("python=")]
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert CONDA["channels"][0] == "conda-forge" and CONDA["name"] == PROJECT["name"]


def test_a_package_is_locked_once():
    assert not set(LOCK) & set(TEST_LOCK)


def test_the_editable_install_has_its_build_backend_locked():
    build = tomllib.loads((REPO / "pyproject.toml").read_text())["build-system"]
    for requirement in map(Requirement, build["requires"]):
        assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the locks are of Python 3.11")
@pytest.mark.skipif(sys.platform != "linux", reason="the locks are of Linux")
def test_the_locks_are_complete_and_hold_nothing_stray():
    runtime, both = needed([*RUNTIME, Requirement("setuptools")]), needed([*RUNTIME, *TEST])
    assert set(LOCK) == set(runtime)
    assert set(TEST_LOCK) == set(both) - set(runtime)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the locks are of Python 3.11")
def test_what_runs_is_what_is_locked():
    for name, version in needed([*RUNTIME, *TEST]).items():
        # A build label such as torch's +cpu is not part of the version.
        assert Version(version.public) == (LOCK | TEST_LOCK)[name], f"{name} is {version}: make env"
