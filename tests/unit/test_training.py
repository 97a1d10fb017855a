"""The training loop on a small regression: averages, rates, data order, checkpoints, resuming, failing."""

import json
import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from ldmscale.data.order import epoch_batch
from ldmscale.errors import UserError
from ldmscale.training import packing as packing_module
from ldmscale.training.checkpoint import METADATA, load_tree, save_tree
from ldmscale.training.loop import (
    TrainConfig,
    TrainState,
    build_step,
    ema_decay,
    initial_state,
    packing,
    train,
)
from ldmscale.training.packing import Packing

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.1


@dataclass(frozen=True)
class Line:
    """Least squares with noise drawn from the step's key; ``fail_at`` raises, ``nan_at`` spoils the data of a step."""

    fail_at: int | None = None
    nan_at: int | None = None
    seed: int = 0

    def init(self, key):
        return {"w": jax.random.normal(key, (3, 1)), "b": jnp.zeros(1)}

    def batch(self, step):
        if step == self.fail_at:
            raise RuntimeError(f"stopped at {step}")
        rows = epoch_batch(len(X), 8, self.seed, step)
        return {"x": X[rows], "y": Y[rows] * (np.nan if step == self.nan_at else 1)}

    def loss(self, params, batch, key):
        noise = 0.01 * jax.random.normal(key, batch["y"].shape)
        return jnp.mean((batch["x"] @ params["w"] + params["b"] + noise - batch["y"]) ** 2)


@dataclass(frozen=True)
class Finetuned(Line):
    """Starts from given parameters, as finetuning tasks do, and notes what it was handed."""

    params: Any = None
    seen: list = field(default_factory=list)

    def init(self, key):
        self.seen.extend(jax.tree.leaves(self.params))
        return jax.tree.map(jnp.asarray, self.params)


PRETRAINED = {"w": np.array([[1.0], [1.0], [1.0]], np.float32), "b": np.ones(1, np.float32)}
CONFIG = TrainConfig(steps=40, learning_rate=0.2, warmup=5, weight_decay=0.01, seed=3, ema=0.95)


def run(folder, keep=(20, 40), task=None, digest="d", config=CONFIG):
    said = []
    kept = train(task or Line(), config, folder, digest, keep, say=said.append)
    assert sorted(kept) == sorted(keep)
    return {step: path.read_bytes() for step, path in kept.items()}, said


def records(folder):
    """What a run's metrics.jsonl says, but for how long things took."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in r.items() if key not in ("time", "images_per_second")} for r in read]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights at 10, 20 and 40 steps of a run that nothing interrupted, and its record of losses."""
    folder = tmp_path_factory.mktemp("whole")
    kept, _ = run(folder, (10, 20, 40))
    return kept, records(folder)


# ---------------------------------------------------------------- the step


def test_the_average_forgets_its_start_and_then_decays():
    assert float(ema_decay(0.999, 0)) == pytest.approx(0.1)
    assert float(ema_decay(0.999, 8)) == pytest.approx(0.5)
    assert float(ema_decay(0.999, 10**6)) == pytest.approx(0.999)
    assert float(ema_decay(0.0, 5)) == 0.0


def test_a_step_averages_the_new_parameters_and_repeats_from_its_number():
    task, config = Line(), replace(CONFIG, flat=False)
    params = {"w": jnp.ones((3, 1)), "b": jnp.ones(1)}
    ema = {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}

    def state():
        copies = [jax.tree.map(jnp.array, tree) for tree in (params, ema)]
        return TrainState(jnp.array(7, jnp.int32), *copies, config.optimizer().init(params))

    step = build_step(task, config)
    after, measured = step(state(), task.batch(7))
    again, measured_again = step(state(), task.batch(7))
    assert after.step == 8
    assert not np.array_equal(after.params["w"], params["w"])
    d = (1 + 7) / (10 + 7)
    np.testing.assert_allclose(after.ema["w"], (1 - d) * after.params["w"], rtol=1e-6)
    assert measured == measured_again
    jax.tree.map(np.testing.assert_array_equal, after, again)


def test_in_one_vector_the_numbers_are_those_of_the_tensors():
    task, ends = Line(), []
    for flat in (True, False):
        config = replace(CONFIG, flat=flat)
        step, state = build_step(task, config), initial_state(task, config)
        for number in range(5):
            state, measured = step(state, task.batch(number))
        trees = [packing(task).unpack(x) if flat else x for x in (state.params, state.ema)]
        ends.append([*trees, measured])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


@pytest.mark.parametrize("large", [1, 6, 100])
def test_a_tree_is_packed_and_comes_back(monkeypatch, large):
    monkeypatch.setattr(packing_module, "LARGE", large)
    tree = {"b": jnp.arange(6.0).reshape(2, 3), "a": [jnp.array(7.0), jnp.zeros((2, 0))]}
    packed = Packing(tree)
    vector, others = packed.pack(tree)
    assert (vector.shape, [x.shape for x in others]) == {
        1: ((0,), [(), (2, 3)]), 6: ((1,), [(2, 3)]), 100: ((7,), [])
    }[large]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, packed.unpack(packed.pack(tree)), tree)
    with pytest.raises(ValueError, match="float32"):
        Packing({"a": jnp.zeros(2, jnp.int32)})


def test_the_optimiser_is_adamw_with_gradients_clipped_to_norm_one():
    config = TrainConfig(steps=10, learning_rate=0.1, warmup=0, weight_decay=0.3, seed=0)
    params = {"a": jnp.array([2.0, -1.0]), "b": jnp.array([[0.5]])}
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.3))
    for scale in (0.01, 100.0):
        grads = jax.tree.map(lambda p, s=scale: s * p + 1.0, params)
        found, _ = config.optimizer().update(grads, config.optimizer().init(params), params)
        want, _ = plain.update(grads, plain.init(params), params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, want)


def test_the_learning_rate_warms_up_and_stays():
    rate = TrainConfig(steps=100, learning_rate=0.5, warmup=10, weight_decay=0.0, seed=0).schedule()
    values = [float(rate(step)) for step in range(100)]
    assert values[0] == pytest.approx(0.05)
    assert all(a < b for a, b in zip(values[:10], values[1:11], strict=True))
    assert values[10:] == [0.5] * 90


def test_the_learning_rate_decays_as_a_cosine_where_asked():
    rate = TrainConfig(steps=100, learning_rate=0.5, warmup=20, weight_decay=0.0, seed=0, decay=True).schedule()
    for step in (20, 40, 60, 99):
        assert float(rate(step)) == pytest.approx(0.25 * (1 + math.cos(math.pi * (step - 20) / 80)), abs=1e-6)
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-7)


def test_no_warm_up_is_the_whole_rate_at_once():
    assert float(TrainConfig(100, 0.5, 0, 0.0, 0).schedule()(0)) == 0.5


# ---------------------------------------------------------------- checkpoints and resuming


def test_training_lowers_the_loss_and_keeps_the_averaged_weights(tmp_path, whole):
    kept, measured = whole
    assert [record["step"] for record in measured] == sorted({*range(4, 41, 4), 10})
    assert measured[-1]["loss"] < 0.3 * measured[0]["loss"]
    (tmp_path / "w").write_bytes(kept[40])
    weights = load_file(tmp_path / "w")
    assert set(weights) == {"w", "b"}
    assert abs(weights["w"] - np.array([[1.0], [-2.0], [0.5]])).max() < 0.7


@pytest.mark.parametrize("stop", [0, 1, 9, 10, 11, 19, 20, 21, 37, 39])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, whole, stop):
    with pytest.raises(RuntimeError, match=f"stopped at {stop}"):
        run(tmp_path, (10, 20, 40), Line(fail_at=stop))
    kept, said = run(tmp_path, (10, 20, 40))
    assert kept == whole[0]
    assert records(tmp_path) == whole[1]
    saved = max(step for step in (*range(0, 40, 4), 10, 20) if step <= stop)  # each tenth of the way, and what is kept
    assert [line for line in said if "resumed" in line] == ([f"resumed at step {saved} of 40"] if saved else [])


def test_a_longer_run_passes_through_the_shorter_ones_checkpoints(tmp_path, whole):
    short, _ = run(tmp_path, (20,), config=TrainConfig(**{**CONFIG.__dict__, "steps": 20}))
    assert short == {20: whole[0][20]}
    before = (tmp_path / "step-20.safetensors").stat().st_mtime_ns
    kept, said = run(tmp_path, (20, 40))
    assert kept == {step: whole[0][step] for step in (20, 40)}
    assert said[0] == "resumed at step 20 of 40"
    assert (tmp_path / "step-20.safetensors").stat().st_mtime_ns == before


def test_a_shorter_run_after_a_longer_one_has_nothing_to_do(tmp_path, whole):
    run(tmp_path)
    kept, said = run(tmp_path, (20,))
    assert kept == {20: whole[0][20]} and said == []


def test_a_finished_run_has_nothing_to_do(tmp_path):
    run(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    kept, said = run(tmp_path, task=Line(fail_at=0))
    assert said == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def spoil_state_digest(folder):
    tensors, path = load_file(folder / "state.safetensors"), folder / "state.safetensors"
    save_file(tensors, path, metadata={METADATA: json.dumps({"digest": "another"})})


def truncate(name):
    def spoil(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


SPOILERS = {
    "the state is of another digest": spoil_state_digest,
    "the state is truncated": truncate("state.safetensors"),
    "the state is empty": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "the state is gone": lambda folder: (folder / "state.safetensors").unlink(),
    "a kept file is gone": lambda folder: (folder / "step-10.safetensors").unlink(),
    "a kept file is truncated": truncate("step-10.safetensors"),
    "a kept file is of another step": lambda folder: (folder / "step-10.safetensors").write_bytes(
        (folder / "step-20.safetensors").read_bytes()
    ),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_what_cannot_be_trusted_is_trained_again(tmp_path, whole, spoil):
    with pytest.raises(RuntimeError):
        run(tmp_path, (10, 20, 40), Line(fail_at=30))
    spoil(tmp_path)
    kept, said = run(tmp_path, (10, 20, 40))
    assert kept == whole[0]
    assert not any("resumed" in line for line in said)
    assert records(tmp_path) == whole[1]


def test_a_state_of_another_digest_is_not_used(tmp_path):
    """A run under one config leaves nothing in a run under another, whichever came first."""
    other = TrainConfig(**{**CONFIG.__dict__, "learning_rate": 0.01})
    alone, _ = run(tmp_path / "alone", digest="other", config=other)
    run(tmp_path / "mixed")
    after, said = run(tmp_path / "mixed", digest="other", config=other)
    assert after == alone
    assert not any("resumed" in line for line in said)


def test_a_checkpoint_added_in_the_middle_is_made(tmp_path, whole):
    run(tmp_path, (20, 40))
    kept, _ = run(tmp_path, (10, 20, 40))
    assert kept == whole[0]


def test_half_written_files_of_a_killed_run_go(tmp_path, whole):
    for name in ("state", "step-10"):
        (tmp_path / f".{name}-abcdefgh.safetensors").write_bytes(b"half")
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n{"step": 8, "lo')
    (tmp_path / ".metrics-abcdefgh.jsonl").write_text("half")
    kept, _ = run(tmp_path, (10, 20, 40))
    assert kept == whole[0]
    assert records(tmp_path) == whole[1]
    names = [name for name in sorted(os.listdir(tmp_path)) if not name.startswith("events.out.tfevents.")]
    assert names == [
        "metrics.jsonl", "state.safetensors", "step-10.safetensors", "step-20.safetensors", "step-40.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [0, 6, 19, 22, 39])
def test_a_loss_that_is_not_finite_ends_the_run_naming_the_step(tmp_path, whole, bad):
    with pytest.raises(UserError) as caught:
        run(tmp_path, (10, 20, 40), Line(nan_at=bad))
    sentence = str(caught.value)
    assert f"the loss was nan at step {bad + 1}:" in sentence  # steps count from 1 in what people read
    assert "learning_rate" in sentence and str(tmp_path) in sentence
    # What was kept before is good, and a mended run goes on to the right end.
    for step in (10, 20, 40):
        path = tmp_path / f"step-{step}.safetensors"
        assert path.exists() == (step <= bad)
    kept, _ = run(tmp_path, (10, 20, 40))
    assert kept == whole[0]


# ---------------------------------------------------------------- the start, kept, and finetuning

KEPT = (0, 10, 40)


def finetuned(fail_at=None):
    return Finetuned(fail_at=fail_at, params=PRETRAINED)


@pytest.fixture(scope="module")
def from_pretrained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finetuned"), KEPT, finetuned())[0]


def test_the_weights_of_step_0_are_those_that_training_starts_from(tmp_path, whole, from_pretrained):
    kept, _ = run(tmp_path / "drawn", (0, 10, 20, 40))
    assert {step: kept[step] for step in (10, 20, 40)} == whole[0]  # keeping them changes nothing after
    start, metadata = load_tree(tmp_path / "drawn" / "step-0.safetensors", PRETRAINED)
    jax.tree.map(np.testing.assert_array_equal, start, Line().init(jax.random.key(CONFIG.seed)))
    assert metadata == {"digest": "d", "step": 0}

    (tmp_path / "w").write_bytes(from_pretrained[0])
    jax.tree.map(np.testing.assert_array_equal, load_tree(tmp_path / "w", PRETRAINED)[0], PRETRAINED)
    assert from_pretrained[40] not in (from_pretrained[0], whole[0][40])


def test_pretrained_parameters_are_arguments_of_the_first_program_not_constants_in_it(tmp_path):
    """As constants they would be compiled in: gigabytes of a large network, and a program of its own for each."""
    task = finetuned(fail_at=0)
    with pytest.raises(RuntimeError):
        run(tmp_path, KEPT, task)
    assert task.seen and all(isinstance(leaf, jax.core.Tracer) for leaf in task.seen)


@pytest.mark.parametrize("stop", [0, 3, 4, 10, 39])
def test_interrupted_finetuning_ends_where_an_uninterrupted_run_does(tmp_path, from_pretrained, stop):
    with pytest.raises(RuntimeError, match=f"stopped at {stop}"):
        run(tmp_path, KEPT, finetuned(stop))
    assert (tmp_path / "step-0.safetensors").read_bytes() == from_pretrained[0]
    kept, said = run(tmp_path, KEPT, finetuned())
    assert kept == from_pretrained
    assert any("resumed" in line for line in said) == (stop >= 4)


def test_a_start_that_is_gone_damaged_or_another_ones_is_made_again(tmp_path, from_pretrained):
    run(tmp_path, KEPT, finetuned())
    path = tmp_path / "step-0.safetensors"
    for spoil in (path.unlink, lambda: path.write_bytes(b"half"), lambda: path.write_bytes(from_pretrained[10])):
        spoil()
        assert run(tmp_path, KEPT, finetuned())[0] == from_pretrained


def test_a_start_asked_for_later_is_made(tmp_path, from_pretrained):
    run(tmp_path, (10, 40), finetuned())
    assert run(tmp_path, KEPT, finetuned())[0] == from_pretrained


# ---------------------------------------------------------------- parameter files


TREE = {"block": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float32)},
        "step": np.array(4, np.int32)}  # fmt: skip


def stored(tmp_path, **changes):
    path = tmp_path / "weights.safetensors"
    tensors = {"block.kernel": TREE["block"]["kernel"], "block.bias": TREE["block"]["bias"], "step": TREE["step"]}
    tensors |= changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    return path


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = TrainState(jnp.array(3, jnp.int32), TREE, [np.ones((1, 2), np.float32), ()], (np.zeros(0, np.float32),))
    path = tmp_path / "tree.safetensors"
    save_tree(path, tree, digest="abc", steps=[1, 2])
    found, metadata = load_tree(path, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree)))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert metadata == {"digest": "abc", "steps": [1, 2]}


def test_a_tensor_laid_out_in_another_order_is_written_right(tmp_path):
    turned = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    save_tree(tmp_path / "t.safetensors", {"x": turned})
    np.testing.assert_array_equal(load_tree(tmp_path / "t.safetensors", {"x": turned})[0]["x"], turned)


BAD_TENSORS = [
    ({"block.bias": None}, "lacks tensor 'block.bias'"),
    ({"extra.kernel": np.zeros(2, np.float32)}, "has the unknown tensor 'extra.kernel'"),
    ({"block.kernel": np.zeros((3, 2), np.float32)}, "'block.kernel' has shape (3, 2), the network needs (2, 3)"),
    ({"block.kernel": np.zeros((2, 3), np.float16)}, "'block.kernel' is float16, the network needs float32"),
    ({"block.bias": np.array([0, np.nan, 0], np.float32)}, "'block.bias' holds values that are not finite"),
    ({"block.bias": np.array([0, -np.inf, 0], np.float32)}, "'block.bias' holds values that are not finite"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_TENSORS, ids=[said for _, said in BAD_TENSORS])
def test_a_file_that_does_not_fit_the_network_is_refused_naming_the_tensor(tmp_path, changes, said):
    path = stored(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_tree(path, TREE)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_no_whole_safetensors_file_is_refused(tmp_path):
    path = stored(tmp_path)
    load_tree(path, TREE)
    whole = path.read_bytes()
    for content in (b"", b"not a tensor file", whole[:20], whole[:-1], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a whole safetensors file") as caught:
            load_tree(path, TREE)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_tree(path, TREE)
