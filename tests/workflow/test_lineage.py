"""The chain behind every file of a finished study: none is of unknown origin, none of another config than it says."""

from folders import RESULTS, chain_of

from ldmscale.cells.lineage import Lineage
from ldmscale.cli.why import CURRENT, state

OTHERS = ("logs", "benchmarks", "config.yaml")  # what tells about jobs, and where every chain begins


def test_every_file_of_a_finished_study_has_a_whole_chain(study):
    folder, lineage = study / RESULTS, Lineage(chain_of())
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    made = [path for path in files if path.parts[0] not in OTHERS]
    assert len(made) > 300
    ends = {lineage.of(path.as_posix()).file: lineage.of(path.as_posix()) for path in made}
    found = {link.file: state(folder, link) for end in ends.values() for link in end.walk()}
    assert set(found.values()) == {CURRENT}, {file: what for file, what in found.items() if what != CURRENT}
    assert {path.as_posix() for path in made if path.name in ("generated.json", "scores.json")} <= set(found)
