"""Measured seconds: what is timed, what the table makes of it, and the figure that asks whether FLOPs predict it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from helpers import merged
from synthetic_study import SMALL_FAMILY, family, paper_study, settings, small_study
from test_figures import readable_texts, rendered

from ldmscale.cells.cell import Cell
from ldmscale.cells.chain import Chain
from ldmscale.cells.plan import Plan
from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.figures import FIGURES
from ldmscale.metrics import timing
from ldmscale.metrics.gather import scores_table, with_seconds


@pytest.fixture(scope="module")
def chain():
    return Chain(Plan(Study(merged("smoke.yaml"))))


class Clock:
    """A clock that runs call by call: each adds its own seconds, and the first of its kind those of compiling."""

    def __init__(self):
        self.now, self.seen, self.calls = 0.0, set(), []

    def run(self, what, seconds):
        self.now += seconds + (0 if what in self.seen else 100)
        self.seen.add(what)
        self.calls.append(what)


@pytest.fixture
def clock(monkeypatch):
    """The networks replaced by a clock: f<n> takes n seconds a step and row, 7 to start; guided images have two."""
    clock = Clock()

    class Generator:
        def __init__(self, net, schedule, latent_size, batch, seed, adapted):
            self.net, self.batch, self.adapted = net, batch, adapted

        def at_once(self, images, cfg):
            assert images == 2 * self.batch
            return images if cfg == 1 else self.batch

        def latents(self, params, cell, spacing, draws):
            assert ("adapter" in params) == self.adapted
            rows = len(draws.states) * (1 + (cell.cfg != 1))
            assert len(draws.numbers) == len(draws.states) and rows == 2 * self.batch
            took = 7 + cell.steps * _size(self.net) * rows
            clock.run(("latents", self.net, self.adapted, cell.cfg, cell.steps), took)

    class Encoders:
        def __init__(self, *args, **kwargs):
            pass

        moments = decode = states = lambda self, params, x: clock.run(("encoders", x.shape), float(len(x)))

    monkeypatch.setattr(timing, "Generator", Generator)
    monkeypatch.setattr(timing, "Encoders", Encoders)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def _size(net):
    return getattr(net, "filters", 1)  # of a transformer


def test_every_network_that_scored_cells_sample_with_is_timed(chain):
    found = chain["timing"]["networks"]
    guided = {task: {model: runs["guided"] for model, runs in models.items()} for task, models in found.items()}
    two = {model: [False, True] for model in ("f4", "f8", "d8x2")}
    # The other tasks' networks are the family's, or a percent larger.
    assert guided == {"t2i": two, "codi": {model: [True] for model in two}}
    assert found["t2i"]["f4"]["net"] == chain.study.net_params("f4")
    unguided = Chain(Plan(Study(merged("smoke.yaml", {"experiments": {"codi": {"cfg": [1.0]}}}))))
    assert unguided["timing"]["networks"]["codi"]["f8"]["guided"] == [False]


def test_steps_and_start_come_apart_and_compiling_is_not_counted(chain, clock):
    found = timing.study_timing(chain["timing"], 3, lambda line: None)
    batch, networks = chain["timing"]["batch"], found["networks"]
    for (model, n), (kind, twice) in itertools.product(
        (("f4", 4), ("f8", 8), ("d8x2", 1)), (("guided", 2), ("unguided", 1))
    ):
        run = networks["t2i"][model][kind]
        assert run["step"]["median"] == pytest.approx(twice * n)
        assert run["start"]["median"] == pytest.approx(7 * twice / (2 * batch))
    assert networks["codi"]["f8"]["guided"]["step"]["median"] == pytest.approx(16)
    assert found["decode"]["median"] == found["caption"]["median"] == found["encode"]["median"] == pytest.approx(1)
    assert (found["batch"], found["repeats"]) == (batch, timing.REPEATS)
    assert found["machine"].endswith(", 3 threads")


def test_a_small_networks_step_is_timed_in_many(clock):
    """Of starts of 10 ms and steps of 0.1 ms, until the steps take as long as the start."""

    def run(steps):
        return lambda: clock.run("one network", 0.01 + steps * 1e-4)

    assert timing._long_enough(run, 1000) == 768  # 3 and its doubles: the first to take 50 ms
    assert timing._long_enough(run, 256) == 256
    assert timing._long_enough(lambda steps: lambda: clock.run("another", float(steps)), 256) == 3


def test_a_hiccup_moves_neither_median_nor_least(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def run(seconds, name):
        calls.append(name)
        now[0] += seconds + (50 if len(calls) == 5 else 0)  # once, in the second repeat that counts

    first, second = timing._times(lambda: run(1, "a"), lambda: run(3, "b"))
    assert calls == ["a", "b"] * timing.REPEATS  # in turns, so that a slow while hits both
    spread = timing._spread(np.array(first))
    assert (spread["median"], spread["least"], spread["greatest"]) == (1, 1, 51)
    assert second == [3] * timing.REPEATS


def test_the_programs_run_as_cells_do(chain):
    """A network with its adapter, for real."""
    params = chain["timing"]
    networks = {"codi": {"f4": params["networks"]["codi"]["f4"]}}
    found = timing.study_timing({**params, "networks": networks, "batch": 2}, 1, lambda line: None)
    run = found["networks"]["codi"]["f4"]["guided"]
    assert 0 < run["step"]["median"] < 1 and run["step"]["least"] <= run["step"]["median"]
    assert 0 <= run["start"]["least"] <= run["start"]["median"] <= run["start"]["greatest"]
    assert all(0 < found[part]["median"] < 1 for part in ("encode", "decode", "caption"))


# ---- the table -------------------------------------------------------------------------------------------------------


def even(value):
    return {"median": value, "least": value, "greatest": value}


def made_timing(networks):
    """``networks``: {task: {model: {kind: (step, start)}}}."""
    runs = {task: {model: {kind: {"step": even(step), "start": even(start)} for kind, (step, start) in kinds.items()}
                   for model, kinds in models.items()} for task, models in networks.items()}  # fmt: skip
    return {"networks": runs, "encode": even(0.3), "decode": even(0.5), "caption": even(0.02), "batch": 64,
            "machine": "m, 2 threads", "repeats": 5}  # fmt: skip


TIMING = made_timing({
    "t2i": {"f4": {"guided": (2.0, 0.1), "unguided": (1.0, 0.1)}},
    "codi": {"f4": {"guided": (3.0, 0.1), "unguided": (1.5, 0.1)}},
    "guided": {"f4": {"unguided": (1.2, 0.1)}},
    "superres": {"f4": {"unguided": (1.1, 0.1)}},
})  # fmt: skip
SECONDS = {
    Cell("t2i", "f4", "pretrain-20", "ddim", 5, 4.0): 0.1 + 6 * 2 + 0.5 + 2 * 0.02,
    Cell("t2i", "f4", "pretrain-20", "ddim", 5, 1.0): 0.1 + 6 * 1 + 0.5 + 2 * 0.02,
    Cell("interpolation", "f4", "pretrain-20", "ddim", 5, 4.0): 0.1 + 6 * 2 + 0.5 + 2 * 0.02,
    Cell("dreambooth", "f4", "dreambooth_hat_circle-4", "ddim", 5, 4.0): 0.1 + 6 * 2 + 0.5 + 2 * 0.02,
    Cell("codi", "f4", "codi-4", "codi", 5, 4.0): 0.1 + 6 * 3 + 0.5 + 2 * 0.02,
    Cell("codi", "f4", "codi-4", "codi", 5, 1.0): 0.1 + 6 * 1.5 + 0.5 + 2 * 0.02,
    Cell("guided", "f4", "guided_s4-3", "ddim", 5, 4.0): 0.1 + 6 * 1.2 + 0.5 + 0.02,  # no empty caption
    Cell("superres", "f4", "superres-6", "ddim", 5, 1.0): 0.1 + 6 * 1.1 + 0.5 + 0.3 + 0.02,
}


def test_the_table_has_the_seconds_of_every_row(chain):
    rows = [{"cell": c.path, "split": "heldout", "evaluations": 6, "fid": 1.0, "clip": 0.3} for c in SECONDS]
    costs = {"models": {"f4": {"params": 9, "flops": 9}}, "finetuned": {}, "reference": 9, "encode": 1, "decode": 1}
    table = scores_table(rows, chain.scores()["family"], {**costs, "caption": 1})
    timed = with_seconds(table, TIMING).set_index("cell")
    assert np.isfinite(timed["seconds"]).all()
    for cell, seconds in SECONDS.items():
        assert timed.loc[cell.path, "seconds"] == pytest.approx(seconds), cell.path
    assert set(timed["seconds_machine"]) == {"m, 2 threads, in batches of 64"}
    assert "seconds" not in table


# ---- the figure ------------------------------------------------------------------------------------------------------


def latency(study, tasks=("t2i", "codi", "guided", "superres"), exponent=0.5):
    """A figure of steps that take the square root of their FLOPs."""
    models = {m.name: {"guided": (2e-3 * m.norm_cost**exponent, 0), "unguided": (1e-3 * m.norm_cost**exponent, 0)}
              for m in study.models}  # fmt: skip
    timed = {**made_timing(dict.fromkeys(tasks, models)), "machine": "an EPYC $x_1$, 2 threads"}
    return FIGURES["latency"](dataclasses.replace(settings(study), timing=timed))


@pytest.mark.parametrize("make", [small_study, paper_study])
@pytest.mark.parametrize("tasks", [("t2i",), ("t2i", "codi", "guided", "superres")])
def test_latency_says_how_time_grows_with_cost(make, tasks):
    study = make()
    fig = latency(study, tasks)
    readable_texts(fig, rendered(fig))
    left, right = fig.axes
    caption = " ".join(fig._supxlabel.get_text().split())
    assert "to the power 0.50" in caption and "an EPYC $x_1$, 2 threads, in batches of 64" in caption
    guided = left.lines[0]
    assert guided.get_xdata().tolist() == [m.norm_cost for m in study.models]
    np.testing.assert_allclose(guided.get_ydata(), [2 * m.norm_cost**0.5 for m in study.models])
    # The dotted line meets the largest model and falls with FLOPs.
    np.testing.assert_allclose(
        left.lines[1].get_ydata(), [2 * m.norm_cost / study.models[-1].norm_cost ** 0.5 for m in study.models]
    )
    for line in right.lines:  # guided or not, as many FLOPs a second
        np.testing.assert_allclose(line.get_ydata(), [1e3 * m.gflops / m.norm_cost**0.5 for m in study.models])
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert ("super-resolution" in labels) == ("superres" in tasks) and labels[-1] == "as FLOPs grow"


def test_latency_draws_one_model_and_refuses_a_study_without_timing():
    one = dataclasses.replace(small_study(), models=family(SMALL_FAMILY, 0.0493)[:1])
    fig = latency(one)
    rendered(fig)
    assert "power" not in fig._supxlabel.get_text()
    with pytest.raises(UserError, match="timing.json"):
        FIGURES["latency"](settings(small_study()))
