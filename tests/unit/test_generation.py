"""Cells into images: the same noises for every cell, whatever the batch; finished cells are kept."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmscale.cells.cell import Cell
from ldmscale.data.encoded import OFFSETS, Prompts, save_array
from ldmscale.diffusion.schedule import Schedule
from ldmscale.errors import UserError
from ldmscale.generation.cells import Generator, generate, image_keys
from ldmscale.generation.draws import Draws, open_draws
from ldmscale.generation.encode import Encoders, in_batches
from ldmscale.models.autoencoder import Autoencoder, AutoencoderConfig
from ldmscale.models.unet import UNet, UNetConfig
from ldmscale.training.weights import parameter_shapes

NET = UNetConfig(4, (1,), 1, (True,), heads=2, norm_groups=2, context_width=8)
SIZE, TOKENS = 4, 3
CELL = Cell("t2i", "f4", "pretrain-40", "ddim", 3, 4.0)
rng = np.random.default_rng(0)


def prompts_of(**counts):
    """Text states that depend on the split and the place in it alone."""
    states = {
        split: np.stack([np.random.default_rng((OFFSETS[split], i)).normal(size=(TOKENS, 8)) for i in range(n)])
        for split, n in counts.items()
    }
    states = {split: value.astype(np.float32) for split, value in states.items()}
    null = rng.normal(size=(TOKENS, 8)).astype(np.float32)
    between = rng.normal(size=(2, 3, TOKENS, 8)).astype(np.float32)
    return Prompts(states, {s: v[:, 0] for s, v in states.items()}, null, between, between[:, :2, 0])


PROMPTS = prompts_of(gallery=2, tuning=3, heldout=4)


def generator(batch, seed=0):
    return Generator(NET, Schedule(), SIZE, batch, seed)


@pytest.fixture(scope="module")
def params():
    """A network that says something: freshly initialised, its last layer is zero."""
    shapes = parameter_shapes(NET)
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda s: (0.3 * draw.normal(size=s.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def batch4():
    return generator(4)


def sample(of, params, cell=CELL, prompts=PROMPTS, spacing="leading"):
    states, numbers, splits = prompts.drawn(True)
    told = []
    z = of.latents(params, cell, spacing, Draws(states, prompts.null, numbers, splits), lambda *done: told.append(done))
    assert told[-1] == (len(splits), len(splits)) and told == sorted(set(told))
    assert z.shape == (len(splits), SIZE, SIZE, 4) and np.isfinite(z).all()
    return {split: z[[s == split for s in splits]] for split in dict.fromkeys(splits)}


# ---------------------------------------------------------------- what an image depends on


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_images_do_not_depend_on_the_batch(params, batch4, sampler):
    cell = CELL.at(sampler=sampler)
    small, large = sample(batch4, params, cell), sample(generator(7), params, cell)
    for split in small:
        np.testing.assert_allclose(small[split], large[split], atol=1e-5)


def test_a_longer_gallery_leaves_the_other_images_alone(params, batch4):
    longer = Prompts(
        {**PROMPTS.states, "gallery": prompts_of(gallery=5).states["gallery"]},
        {**PROMPTS.embeddings, "gallery": prompts_of(gallery=5).embeddings["gallery"]},
        PROMPTS.null,
        PROMPTS.between,
        PROMPTS.ends,
    )
    cell = CELL.at(sampler="ddpm")
    before, after = sample(batch4, params, cell), sample(batch4, params, cell, longer)
    assert len(after["gallery"]) == 5
    np.testing.assert_allclose(after["gallery"][:2], before["gallery"], atol=1e-5)
    for split in ("tuning", "heldout"):
        np.testing.assert_allclose(after[split], before[split], atol=1e-5)


def test_an_interpolation_draws_every_state_with_the_same_noises():
    states, numbers, splits = PROMPTS.interpolated(4)
    assert set(splits) == {"interpolation"} and len(splits) == len(states) == len(numbers) == 2 * 3 * 4
    for i, mixed in enumerate(PROMPTS.between.reshape(6, TOKENS, 8)):
        assert (states[4 * i : 4 * i + 4] == mixed).all()
        assert (numbers[4 * i : 4 * i + 4] == numbers[:4]).all()
    assert len(set(numbers)) == 4 and not set(numbers) & set(PROMPTS.drawn(True)[1])


def same(draws, states, numbers, splits):
    np.testing.assert_array_equal(draws.states, states)
    np.testing.assert_array_equal(draws.numbers, numbers)
    assert draws.splits == splits


def test_what_the_cells_of_each_task_draw(tmp_path):
    PROMPTS.save(tmp_path)
    same(open_draws("t2i", tmp_path)(CELL, scored=True), *PROMPTS.drawn(True))
    same(open_draws("t2i", tmp_path)(CELL, scored=False), *PROMPTS.drawn(False))
    same(open_draws("interpolation", tmp_path)(CELL, noises=4), *PROMPTS.interpolated(4))

    condition = rng.normal(size=(5, SIZE, SIZE, 4)).astype(np.float32)
    save_array(tmp_path / "condition.npy", condition)
    restored = open_draws("superres", tmp_path)(CELL)
    same(restored, [PROMPTS.null] * 5, OFFSETS["superres"] + np.arange(5), ["superres"] * 5)
    np.testing.assert_array_equal(restored.condition, condition)

    prompts = rng.normal(size=(3, TOKENS, 8)).astype(np.float32)
    save_array(tmp_path / "dog" / "prompts.npy", prompts)
    save_array(tmp_path / "dog" / "class.npy", prompts[0] + 1)
    cell = CELL.at(task="dreambooth", weights="dreambooth_dog-40")
    subject = open_draws("dreambooth", tmp_path)(cell, images_per_prompt=2, class_images=4)
    numbers = [*(OFFSETS["dreambooth"] + np.arange(6)), *(OFFSETS["class"] + np.arange(4))]
    states = [*np.repeat(prompts, 2, axis=0), *[prompts[0] + 1] * 4]
    same(subject, states, numbers, ["dreambooth"] * 6 + ["class"] * 4)
    # No two tasks share a noise.
    everyone = [*numbers, *restored.numbers, *PROMPTS.drawn(True)[1], *PROMPTS.interpolated(4)[1]]
    assert len(set(everyone)) == 10 + 5 + 9 + 4


def test_a_condition_is_seen_and_belongs_to_its_image():
    """Super-resolution's network has twice the channels; image i sees condition i, in whatever batch it is."""
    net = dataclasses.replace(NET, in_channels=2 * NET.out_channels)
    draw = np.random.default_rng(2)
    weights = jax.tree.map(lambda s: (0.3 * draw.normal(size=s.shape)).astype(np.float32), parameter_shapes(net))
    conditions = draw.normal(size=(3, SIZE, SIZE, NET.out_channels)).astype(np.float32)
    cell = CELL.at(task="superres", cfg=1.0)

    def restored(batch, condition):
        states = np.broadcast_to(PROMPTS.null, (3, *PROMPTS.null.shape))
        draws = Draws(states, PROMPTS.null, np.array([7, 7, 7]), ["superres"] * 3, condition)
        return Generator(net, Schedule(), SIZE, batch, 0).latents(weights, cell, "leading", draws)

    whole, parts = restored(3, conditions), restored(2, conditions)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    turned = restored(3, conditions[[1, 2, 0]])
    np.testing.assert_allclose(turned, whole[[1, 2, 0]], atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_every_image_has_its_own_noise_from_the_seed_and_its_number():
    start, steps = image_keys(0, np.array([0, 1, 1_000_000, 2_000_000]))
    keys = np.concatenate([jax.random.key_data(k) for k in (start, steps)])
    assert len(np.unique(keys, axis=0)) == 8
    again, _ = image_keys(0, np.array([2_000_000, 0]))
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(start)[jnp.array([3, 0])])
    other, _ = image_keys(1, np.array([0]))
    assert not np.array_equal(jax.random.key_data(other)[0], jax.random.key_data(start)[0])


def spied(of):
    """Record what the program is given."""
    calls = []

    def program(params, table, cfg, z, states, null, keys):
        calls.append({"n": int(table.n), "cfg": cfg, "z": np.asarray(z), "states": states})
        return z

    of._program = program
    return calls


def test_cells_compare_pairwise_for_they_start_from_the_same_noise(params):
    of = generator(16)
    calls = spied(of)
    for cell in (CELL, CELL.at(cfg=1.0), CELL.at(steps=7), CELL.at(sampler="dpmpp2m"), CELL.at(model="f8")):
        sample(of, params, cell, spacing="linspace" if cell.sampler == "dpmpp2m" else "leading")
    for call in calls[1:]:
        np.testing.assert_array_equal(call["z"], calls[0]["z"])
        np.testing.assert_array_equal(call["states"], calls[0]["states"])
    noise = calls[0]["z"][:9]
    assert len(np.unique(noise.reshape(9, -1), axis=0)) == 9
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2


@pytest.mark.parametrize(("cfg", "calls_of"), [(1.0, [8, 8]), (0.0, [4] * 3), (1.5, [4] * 3), (4.0, [4] * 3)])
def test_only_guidance_pays_for_the_second_evaluation(params, cfg, calls_of):
    of = generator(4)
    calls = spied(of)
    sample(of, params, CELL.at(cfg=cfg))  # nine images
    assert [len(call["z"]) for call in calls] == calls_of
    assert {(call["cfg"], call["n"]) for call in calls} == {(None if cfg == 1.0 else cfg, 3)}


def test_no_more_rows_than_the_batch_are_evaluated_for_few_unguided_images(params):
    of = generator(9)
    calls = spied(of)
    sample(of, params, CELL.at(cfg=1.0))
    assert [len(call["z"]) for call in calls] == [9]


def test_guided_or_not_it_is_one_compiled_program(params, batch4):
    sample(batch4, params)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, fun_name="", **_: compiled.append(fun_name) if "backend_compile" in event else None
    )
    try:
        sample(batch4, params, CELL.at(cfg=1.0))
        assert not [name for name in compiled if "run" in name], compiled
        sample(generator(5), params, CELL.at(cfg=1.0))
        assert [name for name in compiled if "run" in name]  # the name that it would have
    finally:
        jax.monitoring.clear_event_listeners()


def test_at_guidance_one_both_ways_agree(params, batch4):
    unguided = sample(batch4, params, CELL.at(cfg=1.0))
    swapped = generator(4)
    swapped._program = lambda params, table, cfg, *rest: batch4._program(params, table, 1.0, *rest)
    guided = sample(swapped, params, CELL.at(cfg=1.0))
    for split in unguided:
        np.testing.assert_allclose(unguided[split], guided[split], atol=1e-4)
    # Guidance does something to this network, so that agreement means something.
    assert abs(sample(batch4, params)["heldout"] - unguided["heldout"]).max() > 0.1


# ---------------------------------------------------------------- batches and pixels


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_a_last_batch_is_padded_and_cut(count):
    shapes, told = [], []

    def fn(x, y):
        shapes.append(x.shape)
        return {"sum": x + y, "first": x[:, 0]}

    x = np.arange(2.0 * count).reshape(count, 2)
    found = in_batches(fn, 4, x, 10 * x, tell=lambda *done: told.append(done))
    np.testing.assert_array_equal(found["sum"], 11 * x)
    np.testing.assert_array_equal(found["first"], x[:, 0])
    assert set(shapes) == {(4, 2)}
    assert told == [(min(n, count), count) for n in range(4, count + 4, 4)]


def test_latents_become_pixels_and_pixels_latents():
    config = AutoencoderConfig(4, (1, 1), 1, 4, norm_groups=2, mid_attention=False)
    images = rng.integers(0, 256, size=(5, 8, 8, 3), dtype=np.uint8)
    params = jax.jit(Autoencoder(config).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    encoders = Encoders(config, batch=2)
    mean, std = encoders.moments(params, images)
    assert mean.shape == std.shape == (5, 4, 4, 4)
    assert (std > 0).all() and mean.dtype == std.dtype == np.float32
    back = encoders.decode(params, 100 * mean)  # far outside: pixels are clipped, not wrapped
    assert back.shape == images.shape and back.dtype == np.uint8
    exact = Autoencoder(config).apply({"params": params}, 100 * mean, method="decode")
    expected = np.clip(np.round((np.asarray(exact, np.float64) + 1) * 127.5), 0, 255)
    assert abs(back.astype(float) - expected).max() <= 1


def test_the_shapes_of_a_unet_are_the_networks(params):
    z, context = jnp.zeros((1, SIZE, SIZE, 4)), jnp.zeros((1, TOKENS, 8))
    UNet(NET).apply({"params": params}, z, jnp.zeros(1, jnp.int32), context)


# ---------------------------------------------------------------- the cells of a job


class Drawing:
    """In place of a generator: counts the cells it draws; image i of a cell is grey level i plus the cell's steps."""

    def __init__(self, fail_at=None):
        self.schedule, self.drawn, self.fail_at = Schedule(), [], fail_at

    def latents(self, params, cell, spacing, draws, tell):
        if len(self.drawn) == self.fail_at:
            raise KeyboardInterrupt
        self.drawn.append(cell)
        assert params == f"weights of {cell.weights}"
        count = len(draws.numbers)
        tell(1, count)
        tell(count, count)
        return np.zeros((count, 2, 2, 1)) + np.arange(count).reshape(-1, 1, 1, 1) + cell.steps


CELLS = [CELL.at(steps=s, weights=f"pretrain-{w}") for w in (20, 40) for s in (1, 2, 3)]


def specs(cells=CELLS, unscored=(), **changes):
    return [
        {"path": c.path, "draws": {"scored": c not in unscored}, "spacing": "leading", "digest": f"d{i}"} | changes
        for i, c in enumerate(cells)
    ]


def grey(z):
    return np.repeat(z.astype(np.uint8), 3, -1)


def drawn(cell, scored):
    states, numbers, splits = PROMPTS.drawn(scored)
    return Draws(states, PROMPTS.null, numbers, splits)


def run(folder, cells, drawing=None):
    drawing, said = drawing or Drawing(), []
    generate(cells, folder, drawing, drawn, lambda cell: f"weights of {cell.weights}", grey, said.append)
    # Of a cell's batches now and then, the first of them at once; of each cell.
    cells = [line for line in said if not line.startswith("cell ")]
    assert len(cells) == len(drawing.drawn) and len(said) - len(cells) == bool(cells)
    assert all(re.fullmatch(r"\d+/\d+  task=\S+  \d+ %, \d+ s left", line) for line in cells), cells
    assert not cells or drawing.drawn[-1] != CELLS[-1] or "  100 %, 0 s left" in cells[-1]
    return drawing.drawn


def contents(folder):
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.*")
            if p.is_file()}  # fmt: skip


def test_a_cell_leaves_its_images_and_its_manifest(tmp_path):
    assert run(tmp_path, specs(CELLS[:2], unscored=CELLS[:1])) == CELLS[:2]
    picture, scored = (tmp_path / cell.path for cell in CELLS[:2])
    assert sorted(p.name for p in picture.iterdir()) == ["gallery.npy", "sample.json"]
    assert sorted(p.name for p in scored.iterdir()) == ["gallery.npy", "heldout.npy", "sample.json", "tuning.npy"]
    shapes = {split: np.load(scored / f"{split}.npy").shape for split in ("gallery", "tuning", "heldout")}
    assert shapes == {"gallery": (2, 2, 2, 3), "tuning": (3, 2, 2, 3), "heldout": (4, 2, 2, 3)}
    # Steps 2; gallery is images 0 and 1, tuning 2 to 4, heldout 5 to 8.
    assert np.load(scored / "heldout.npy")[:, 0, 0, 0].tolist() == [7, 8, 9, 10]
    manifest = json.loads((scored / "sample.json").read_text())
    assert manifest["digest"] == "d1" and manifest["evaluations"] == 2
    assert manifest["images"] == {"gallery": 2, "tuning": 3, "heldout": 4}


def test_evaluations_are_the_tables_not_the_requested_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ldmscale.generation.cells.step_table", lambda sampler, schedule, steps, spacing: [0] * (steps + 1)
    )
    run(tmp_path, specs(CELLS[:1]))
    assert json.loads((tmp_path / CELLS[0].path / "sample.json").read_text())["evaluations"] == 2


def test_what_is_there_is_not_drawn_again(tmp_path):
    run(tmp_path, specs())
    before = contents(tmp_path)
    assert run(tmp_path, specs()) == []
    assert contents(tmp_path) == before


def test_a_cell_added_to_a_job_is_the_only_one_drawn(tmp_path):
    run(tmp_path, specs())
    before = contents(tmp_path)
    added = CELL.at(cfg=9.0, weights="pretrain-40")
    assert run(tmp_path, [*specs(), {**specs([added])[0], "digest": "new"}]) == [added]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_an_interrupted_job_keeps_its_finished_cells(tmp_path, finished):
    drawing = Drawing(fail_at=finished)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, specs(), drawing)
    before = contents(tmp_path)
    assert run(tmp_path, specs()) == CELLS[finished:]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_cell_of_another_digest_is_drawn_again_and_not_trusted_on_the_way(tmp_path):
    run(tmp_path, specs())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, specs(digest="other"), Drawing(fail_at=0))
    # The old manifest is gone before the new images come: old and new cannot be taken for one another.
    assert not (tmp_path / CELLS[0].path / "sample.json").exists()
    assert run(tmp_path, specs()[1:]) == []
    assert run(tmp_path, specs(digest="other")) == CELLS


def test_images_without_a_manifest_are_not_a_cell(tmp_path):
    run(tmp_path, specs())
    (tmp_path / CELLS[2].path / "sample.json").write_text('{"stage": "gen')
    (tmp_path / CELLS[4].path / "sample.json").unlink()
    assert run(tmp_path, specs()) == [CELLS[2], CELLS[4]]


def test_latents_that_are_not_finite_are_no_pictures(tmp_path):
    drawing = Drawing()
    drawing.latents = lambda *arguments: np.full((9, 2, 2, 1), np.nan)
    with pytest.raises(UserError, match="not finite") as caught:
        run(tmp_path, specs(), drawing)
    assert CELLS[0].path in str(caught.value)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_path_that_is_no_cell_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a cell"):
        run(tmp_path, [{**specs()[0], "path": "task=t2i/model=f4"}])
