"""What the README says is so: its commands run, its rule graph is the workflow's, its paths exist."""

import re
import shlex

import pytest
from dry_runs import dry_run, make_clone
from helpers import REPO

clone = pytest.fixture(make_clone, scope="module")
README = (REPO / "README.md").read_text()


def commands():
    """The ``snakemake`` calls of the README's shell blocks, comments dropped, ``$cell`` filled in."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
    (cell,) = [line.removeprefix("cell=") for line in lines if line.startswith("cell=")]
    return [line.replace("$cell", cell) for line in lines if line.startswith("snakemake ")]


def edges(graph):
    """(rule, rule) of every arrow in a mermaid flow chart."""
    name = dict(re.findall(r"(id\d+)\[(\w+)\]", graph))
    return {(name[a], name[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", graph)}


@pytest.mark.parametrize("command", commands())
def test_its_commands_work(clone, command):
    output, _ = dry_run(clone, *shlex.split(command, comments=True)[1:], "-n", "--quiet", "rules", "host")
    assert "total" in output


def test_its_rule_graph_is_the_workflows(clone):
    (shown,) = re.findall(r"```mermaid\n(.*?)```", README, re.S)
    real, _ = dry_run(clone, "--rulegraph", "mermaid-js", "--quiet", "all")
    assert edges(shown) == edges(real)


def test_it_starts_with_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.S)[1]
    assert re.findall(r"^make \w+", first, re.M) == ["make study", "make test"]
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.M), f"the README names 'make {target}'"


@pytest.mark.parametrize("page", ["README.md", "docs/newcomers.md"])
def test_paths_that_the_pages_name_exist(page):
    text = (REPO / page).read_text()
    named = re.findall(
        r"`((?:lib|rules|configs|profiles|schemas|tests|workflow_scripts|report|docs|\.ci)/[\w./-]+)`", text
    )
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):  # from where the page lies
        assert ((REPO / page).parent / link).exists(), f"{page} links to {link}"
    assert named
    for path in named:
        assert (REPO / path).exists(), f"{page} names {path}"
    # The newcomers' table names modules by their place in the library.
    for path in re.findall(
        r"`((?:data|tasks|training|generation|diffusion|metrics|cells|figures|analysis)/\w+\.py)`", text
    ):
        assert (REPO / "lib" / "ldmscale" / path).exists(), f"{page} names {path}"
