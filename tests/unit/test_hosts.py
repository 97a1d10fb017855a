"""What a job knows of its other processes, and that the first alone leaves files."""

import os
import subprocess
import sys

import pytest

from ldmscale import hosts, provenance
from ldmscale.errors import UserError

TOLD = (hosts.HOSTS, hosts.HOST, hosts.COORDINATOR, hosts.LAUNCHED)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)

    def tell(*values):
        for name, value in zip(TOLD, values, strict=False):
            if value is not None:
                monkeypatch.setenv(name, value)

    return tell


def test_a_job_alone_imports_no_jax():
    code = (
        "import sys; from ldmscale import hosts; hosts.connect(); hosts.barrier('here'); "
        "assert hosts.agreed([True]) == [True]; assert 'jax' not in sys.modules; "
        "print(hosts.index(), hosts.count(), hosts.writes())"
    )
    for more in ({}, {hosts.HOSTS: "1"}):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "0 1 True\n"), done.stderr


@pytest.mark.parametrize("values", [("2", "2", "a:1"), ("2", None, "a:1"), ("two", "0", "a:1"), ("2", "1"), ("0", "0")])
def test_half_of_what_is_needed_is_a_sentence(told, values):
    told(*values)
    with pytest.raises(UserError, match="LDMSCALE_HOSTS is .*; these must be how many processes there are"):
        hosts.connect()
    assert (hosts.index(), hosts.count()) == (0, 1)


@pytest.mark.parametrize("launched", [True, False])
def test_processes_that_do_not_meet_are_a_sentence(told, monkeypatch, launched):
    import jax

    def refuse(**arguments):
        raise RuntimeError("no coordinator\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    told(*(None, None, None, "1") if launched else ("2", "1", "a:1"))
    with pytest.raises(UserError, match="cannot find each other .no coordinator.: ") as caught:
        hosts.connect()
    assert ("srun" if launched else "a:1") in str(caught.value)


def test_what_the_environment_says_reaches_jax(told, monkeypatch):
    import jax

    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: seen.append(arguments))
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "_place", (0, 1))
    told("3", "2", "a:1")
    hosts.connect()
    assert seen == [{"num_processes": 3, "process_id": 2, "coordinator_address": "a:1"}]
    assert (hosts.index(), hosts.count(), hosts.writes()) == (2, 3, False)
    hosts.connect()
    assert len(seen) == 1


def test_another_host_leaves_no_file(monkeypatch, tmp_path):
    path = tmp_path / "made" / "file.json"
    monkeypatch.setattr(hosts, "_place", (1, 2))
    with provenance.atomic_path(path) as temporary:
        temporary.write_text("second")
        assert temporary.suffix == ".json" and temporary.parent != path.parent
    assert not temporary.exists() and not path.parent.exists()
    monkeypatch.setattr(hosts, "_place", (0, 2))
    with provenance.atomic_path(path) as temporary:
        temporary.write_text("first")
    assert path.read_text() == "first"
