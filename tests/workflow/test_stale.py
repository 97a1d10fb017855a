"""No silently stale figure: after an edit, a job that fails and a second run, results are right or refused.

Snakemake records a failed job's new parameters as if it had succeeded, so that a run after it can find "nothing to be
done" while figures still show the old config (snakemake/snakemake#3808). Here every way into that is tried.
"""

import re
import shutil

import pytest
from folders import RESULTS, Folder, chain_of
from helpers import own

from ldmscale.metrics.scores_file import read_scores
from ldmscale.provenance import read_json, read_manifest, write_checked, write_json

# A smaller set of cells over the smoke study's models: everything that these tests run again is run for real.
# Tasks that are finetuned for come by the same rules; what they alone have is tried at the end.
GONE = ("training", "samplers", "same_cost", "superres", "superres_training", "dreambooth", "codi",
        "codi_timesteps", "guided")  # fmt: skip
FEW = {
    "superres": None,
    "dreambooth": None,
    "codi": None,
    "guided": None,
    "experiments": {**dict.fromkeys(GONE), "grid": {"steps": [4]}},
    "figures": {f"fig{n:02}": None for n in (2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22)}
    | dict.fromkeys(("dreambooth", "families", "fits", "latency", "validation")),
}
FIG01, FIG09, TABLE = (RESULTS / name for name in ("figures/fig01.png", "figures/fig09.png", "tables/table1.md"))
DRAWN = (FIG01, FIG09, TABLE, RESULTS / "summary.md")
NOTHING = "Nothing to be done"
SLOW, FAST = own("f4", learning_rate=5.0e-4), own("f4", learning_rate=2.0e-3)


def edited(change):
    """The config with ``change`` made to it, as an overlay."""
    return {**FEW, **change}


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> Folder:
    """The study with fewer cells, finished. Not to be changed."""
    folder = study.copy(tmp_path_factory.mktemp("few") / "study")
    folder.run(*DRAWN, overlay=FEW)
    return folder


@pytest.fixture
def few(finished, tmp_path) -> Folder:
    return finished.copy(tmp_path / "study")


def damage(path):
    """Cut a file in half; returns what mends it."""
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[: len(whole) // 2])

    def mend():
        path.write_bytes(whole)
        shutil.os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return mend


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in DRAWN if (folder / name).exists()}


def assert_right(folder, change):
    """Everything that the figures were drawn from was made from this config, and was made anew."""
    chain = chain_of(FEW, change)
    for model in chain.study.models:
        read_manifest(
            folder / RESULTS / "models" / model / "pretrain.json", "pretrain", chain.pretrain(model)["digest"]
        )
    for cell in chain.plan.cells:
        read_manifest(folder / RESULTS / "cells" / cell.path / "sample.json", "generate", chain.cell(cell)["digest"])
    return read_scores(folder / RESULTS / "scores.parquet", chain.scores()["digest"])


def assert_refused(folder, named, *targets, overlay):
    """The run fails with a sentence about ``named``, leaves no old figure for a new one, and does not calm down."""
    before = {name: path.stat().st_mtime_ns for name in DRAWN if (path := folder / name).exists()}
    said = folder.refused(*targets, overlay=overlay)
    assert re.search(rf"error: .*{re.escape(named)}", said), said
    assert NOTHING not in said
    after = {name: path.stat().st_mtime_ns for name in DRAWN if (path := folder / name).exists()}
    # Nothing was drawn from half of the new and half of the old; of a job that failed, Snakemake removes the output.
    assert after.items() <= before.items()


def test_a_failing_pretraining_job_after_an_edit(few):
    old, old_scores = bytes_of(few), assert_right(few, {})
    mend = damage(few / RESULTS / "latents" / "00000" / "mean.npy")
    for targets in (DRAWN, (FIG09,), (RESULTS / "scores.parquet",)):
        assert_refused(few, "latents/00000/mean.npy", *targets, overlay=edited(SLOW))
    assert bytes_of(few) == old
    mend()

    # One figure alone is asked for: it is drawn from the new weights, and the other is known to be old.
    few.run(FIG09, overlay=edited(SLOW))
    scores = assert_right(few, SLOW)
    scored, scored_before = (table[table["task"] == "t2i"] for table in (scores, old_scores))
    moved = scored.merge(scored_before, on=["cell", "split"], suffixes=("", "_old"))
    assert (moved["fid"] != moved["fid_old"]).eq(moved["model"] == "f4").all()
    assert (few / FIG09).read_bytes() != old[FIG09]
    assert "figure" in few.dry(FIG01, overlay=edited(SLOW)).jobs
    few.run(*DRAWN, overlay=edited(SLOW))
    assert all(bytes_of(few)[name] != old[name] for name in DRAWN)
    assert NOTHING in few.dry(*DRAWN, overlay=edited(SLOW)).said

    # And back again: what is there is of the config in between.
    done = few.dry(*DRAWN, overlay=FEW)
    assert done.jobs["pretrain"] == 1 and done.jobs["figure"] == 2


def test_a_failing_job_in_the_middle_after_an_edit(few):
    """Training ends well, sampling fails: the model is new, the pictures old, and the edit is half done."""
    old = bytes_of(few)
    states = few / RESULTS / "prompts" / "heldout-states.npy"  # which pretraining does not read
    mend = damage(states)
    for targets in (DRAWN, DRAWN):
        assert_refused(few, states.name, *targets, overlay=edited(FAST))
    assert bytes_of(few) == old
    read_manifest(few / RESULTS / "models/f4/pretrain.json", "pretrain", chain_of(FEW, FAST).pretrain("f4")["digest"])

    # The edit taken back with the failure still there: the old figures are right again, or refused.
    said = few.run(*DRAWN, overlay=FEW, status=None).said if NOTHING not in few.dry(*DRAWN, overlay=FEW).said else ""
    if said:
        assert "error: " in said and "Traceback" not in said
    assert bytes_of(few) == old
    mend()

    few.run(*DRAWN, overlay=edited(FAST))
    assert_right(few, FAST)
    assert all(bytes_of(few)[name] != old[name] for name in DRAWN)
    assert NOTHING in few.dry(*DRAWN, overlay=edited(FAST)).said


def test_a_manifest_edited_by_hand_is_refused(few):
    """Its digest is not what the config asks for; its reader says so, and which rule makes it again."""
    path = few / RESULTS / "prompts" / "prompts.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "digest": "0123456789abcdef"})
    assert_refused(few, "prompts/prompts.json was made from a different config", FIG01, overlay=FEW)
    assert "snakemake --forcerun prompts" in few.refused(FIG01, overlay=FEW)


def test_a_table_of_another_config_is_refused_and_the_advice_helps(few, study):
    shutil.copy(study / RESULTS / "scores.parquet", few / RESULTS / "scores.parquet")  # of more cells than here
    assert_refused(few, "scores.parquet was gathered under a different config", FIG09, TABLE, overlay=FEW)
    few.run(FIG09, TABLE, "--forcerun", "gather", overlay=FEW)
    assert_right(few, {})


def test_pictures_of_another_config_are_refused(few):
    """Cells drawn under an edit that was then taken back, with the old manifests of their jobs still there."""
    cell = next(c for c in chain_of(FEW).plan.experiments["headline"] if c.model == "f4")
    path = few / RESULTS / "cells" / cell.path / "sample.json"
    write_checked(path, {**read_json(path), "digest": chain_of(FEW, SLOW).cell(cell)["digest"]})
    assert_refused(few, f"{cell.path}/sample.json was made from a different config", FIG01, overlay={**FEW, "dpi": 61})


@pytest.mark.parametrize(
    ("place", "figure"),
    [("superres/pairs", "fig05"), ("superres/baselines", "fig12"), ("dreambooth/subjects", "fig06")],
)
def test_what_downstream_figures_show_beside_cells_is_of_this_config_or_refused(copy, place, figure):
    """With Snakemake told that nothing upstream needs to run, the figure's own job has to notice."""
    path = copy / RESULTS / f"{place}.json"
    write_json(path, {**read_json(path), "digest": "0123456789abcdef"})
    said = copy.refused(RESULTS / f"figures/{figure}.png", "--allowed-rules", "figure", "--forcerun", "figure")
    assert re.search(rf"error: .*{place}.json was made from a different config", said), said


def test_a_training_that_explodes(copy):
    """One sentence with step, cause and what is kept; taken back, the weights that were there are still there."""
    trained = RESULTS / "models" / "f4" / "pretrain.json"

    def weights():
        return {path.name: path.read_bytes() for path in (copy / trained).with_suffix("").glob("step-*.safetensors")}

    kept = weights()
    said = copy.refused(trained, overlay=own("f4", learning_rate=1.0e6, warmup=0))
    assert re.search(r"the (loss was [\w.+-]+|gradient was nan|parameters were not finite).* step \d+", said), said
    assert "lower learning_rate or lengthen warmup" in said
    assert not (copy / trained).exists()
    copy.run(trained)
    assert weights() == kept != {}
