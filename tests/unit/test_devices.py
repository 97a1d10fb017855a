"""Training and sampling on eight simulated devices against one: losses, weights, bytes, images, batches, refusals."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import devices_run
import jax
import numpy as np
import pytest
from devices_run import NET, STEPS, images, make_task, run
from helpers import SCHEMA, merged
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from PIL import Image
from synthetic_distillation import NET as UNET
from synthetic_distillation import SCHEDULE, captioned_latents, random_parameters

from ldmscale import hosts
from ldmscale.config.check import check
from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.tasks.autoencoder import AutoencoderTask
from ldmscale.tasks.clip import CLIPTask
from ldmscale.tasks.codi import CoDiTask
from ldmscale.tasks.dreambooth import Concept, DreamBoothTask
from ldmscale.tasks.guided import GuidedTask
from ldmscale.tasks.superres import SuperresTask
from ldmscale.training.checkpoint import load_tree
from ldmscale.training.sharding import AXES, Devices, batch_sharding
from ldmscale.training.weights import parameter_shapes

EIGHT = ("plain", "all")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, step=STEPS):
    return load_tree(folder / f"step-{step}.safetensors", parameter_shapes(NET))[0]


def close(found, want, atol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, want)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What eight devices made of each layout: a folder each."""
    folder = tmp_path_factory.mktemp("eight")
    together([started(folder, EIGHT, 8)])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = [{hosts.HOSTS: "2", hosts.HOST: str(i), hosts.COORDINATOR: address} for i in range(2)]
    together([started(folder, ["all"], 4, TMPDIR=str(tmp_path_factory.mktemp("tmp")), **one) for one in told])
    return folder


def started(folder, layouts, devices, **more):
    # A device that waits for the others takes a thread of the pool that also computes.
    settings = {"JAX_PLATFORMS": "cpu", "NPROC": "32", "LDMSCALE_TEST_DEVICES": str(devices), **more}
    command = [sys.executable, devices_run.__file__, str(folder), *layouts]
    return subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)


def together(processes):
    said = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """``one(layout)``: the folder of what this process's only device made of it."""
    folder = tmp_path_factory.mktemp("one")

    def made(layout):
        if not (folder / layout).exists():
            run(folder / layout, layout)
        return folder / layout

    return made


@pytest.mark.parametrize("layout", ["accumulated", "remat"])
def test_one_device_learns_the_same_in_parts_and_by_computing_again(one, layout):
    np.testing.assert_allclose(losses(one(layout)), losses(one("plain")), rtol=1e-5)
    close(weights(one(layout)), weights(one("plain")))


@pytest.mark.parametrize("layout", EIGHT)
def test_eight_devices_learn_what_one_does(eight, one, layout):
    want = one("plain")
    assert len(losses(want)) == STEPS and np.ptp(losses(want)) > 0.05
    np.testing.assert_allclose(losses(eight / layout), losses(want), rtol=2e-5)
    close(weights(eight / layout), weights(want))


def test_a_state_is_held_by_as_many_devices_as_share_it(eight):
    held = {layout: np.load(eight / layout / "found-0.npz") for layout in EIGHT}
    assert held["plain"]["device"] == held["plain"]["whole"] == held["all"]["whole"] > 50_000
    assert 0.25 <= held["all"]["device"] / held["all"]["whole"] < 0.3  # small tensors are whole


def test_images_are_the_same_on_any_devices(eight, tmp_path):
    drawn = weights(eight / "plain")
    want = images(drawn, tmp_path, Devices())
    assert want["images"].shape == (11, 4, 4, 3) and np.std(want["images"]) > 5
    found = np.load(eight / "plain" / "found-0.npz")["images"]
    np.testing.assert_array_equal(found, want["images"])
    cut = np.load(eight / "all" / "found-0.npz")["images"].astype(int)  # of weights that rounding has moved
    assert np.abs(cut - want["images"]).max() <= 1


def test_rows_are_cut_over_devices_that_divide_them_where_copies_of_the_network_are_small(eight):
    found = json.loads((eight / "spread.json").read_text())
    assert found["devices"] == {"8": 8, "12": 1, "heavy": 1}


def test_sampling_sends_nothing_between_devices(eight):
    assert json.loads((eight / "spread.json").read_text())["sent"] == []


def test_the_pictures_of_training_are_the_same_on_any_devices(eight, two, one):
    def pictures(folder):
        return np.stack([np.asarray(Image.open(p), int) for p in sorted((folder / "samples").glob("*.png"))])

    want = pictures(one("plain"))
    assert len(want) == 2 and np.std(want) > 5
    for folder in (eight / "plain", eight / "all", two / "all"):
        assert np.abs(pictures(folder) - want).max() <= 2  # of weights that rounding has moved


def test_a_run_goes_on_on_fewer_devices(eight, tmp_path):
    """From the state of eight devices at the first checkpoint, as if they had been taken away then."""
    folder = tmp_path / "moved"
    subprocess.run(["cp", "-r", eight / "all", folder], check=True)
    (folder / f"step-{STEPS}.safetensors").unlink()
    said, _ = run(folder, "plain", (3, STEPS + 2))
    assert said[0] == f"resumed at step {STEPS} of {STEPS + 2}"
    again, _ = run(tmp_path / "whole", "plain", (3, STEPS + 2))
    np.testing.assert_allclose(losses(folder)[-2:], losses(tmp_path / "whole")[-2:], rtol=2e-5)
    close(weights(folder, STEPS + 2), weights(tmp_path / "whole", STEPS + 2), 4e-4)


def test_two_hosts_learn_and_draw_what_one_does_and_one_writes(eight, two):
    np.testing.assert_allclose(losses(two / "all"), losses(eight / "all"), rtol=1e-6)
    close(weights(two / "all"), weights(eight / "all"))
    files = [sorted(p.name for p in (f / "all").iterdir() if "tfevents" not in p.name) for f in (two, eight)]
    assert files[0] == sorted([*files[1], "found-1.npz"])
    first, second = (np.load(two / "all" / f"found-{i}.npz") for i in range(2))
    assert (first["decoded"], second["decoded"]) == (1, 0)
    alone = np.load(eight / "all" / "found-0.npz")
    assert np.abs(first["images"].astype(int) - alone["images"]).max() <= 1
    assert first["device"] == second["device"] == alone["device"]
    assert not list((two.parent / "tmp0").glob("*.safetensors"))  # nothing is left of what the second may not write


# ---------------------------------------------------------------- batches by rows


def every_task():
    data, unet = captioned_latents(), random_parameters(UNET)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 4, 4, 3), np.uint8)
    tokens = np.arange(30, dtype=np.int32).reshape(15, 2)
    concepts = [Concept(data.mean[rows], data.std[rows], data.states[0]) for rows in (slice(2), slice(2, 6))]
    told = {**unet, "time_embedding": {**unet["time_embedding"], "cond_proj": {}}}
    yield make_task(batch=4)
    yield AutoencoderTask(None, pixels, 4, 0.1, 3)  # batches ask nothing of the network
    yield CLIPTask(None, pixels, tokens, np.arange(10) * 15 // 9, 4, 3)
    yield SuperresTask(replace(UNET, in_channels=8), SCHEDULE, unet, data.mean, data.std, data.mean, data.null, 0.5, 4,
                       3)  # fmt: skip
    yield DreamBoothTask(UNET, SCHEDULE, unet, *concepts, 0.5, 3, 4)
    yield CoDiTask(UNET, SCHEDULE, unet, data, 4, 3)
    yield GuidedTask(replace(UNET, guidance_width=8), SCHEDULE, told, data, 4, 3, steps=4)


def test_a_hosts_rows_are_those_of_the_whole_batch():
    for task in every_task():
        for step in (0, 7):
            whole = task.batch(step)
            assert {len(array) for array in whole.values()} == {4}
            for rows in (slice(0, 2), slice(1, 4), slice(3, 4)):
                cut = {name: array[rows] for name, array in whole.items()}
                jax.tree.map(np.testing.assert_array_equal, task.batch(step, rows), cut)


def test_microbatches_see_what_the_whole_batch_does():
    """The parts of what a task draws make its loss."""
    makers = {type(task).__name__: task for task in every_task() if hasattr(task, "draw")}
    assert len(makers) == 5
    for task in makers.values():
        drawn = task.draw(task.batch(1), jax.random.key(1))
        assert {len(array) for array in jax.tree.leaves(drawn)} == {4}


# ---------------------------------------------------------------- what does not fit


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh = device_mesh_of(8)
    assert Devices(accumulate=4).microbatches(64, mesh) == 4
    assert Devices(accumulate=4).microbatches(16, mesh) == 2  # no part is under an example a device
    assert Devices(accumulate=4).microbatches(2, mesh) == 2
    assert Devices().microbatches(3, None) == 1
    assert batch_sharding(mesh, 7).spec == PartitionSpec() != batch_sharding(mesh, 8).spec
    with pytest.raises(UserError, match="batch is 12: it must be a multiple of the number of devices, 8, or below it"):
        Devices().microbatches(12, mesh)
    with pytest.raises(UserError, match="accumulate is 3: it must divide the examples of a device, 4 .batch 32 on 8"):
        Devices(accumulate=3).microbatches(32, mesh)
    with pytest.raises(UserError, match="fsdp is 8: it must divide the number of devices, 1"):
        Devices(fsdp=8).mesh()
    assert Devices().mesh() is None


def device_mesh_of(count):
    return AbstractMesh((1, count), AXES, (AxisType.Auto,) * 2)


def test_the_config_says_how_a_models_jobs_use_devices():
    config = merged({"devices": {"fsdp": 2}})
    config["models"][1]["devices"] = {"remat": True}
    check(config, SCHEMA)
    study = Study(config)
    assert study.devices("f8") == {"fsdp": 2, "accumulate": 1, "remat": False}
    assert Devices(**study.devices("f12")) == Devices(2, 1, True)
    assert study.net_params("f12").keys() == study.net_params("f8").keys()  # what a model is does not depend on it
    config["models"][1]["devices"] = {"accumulate": 3}
    with pytest.raises(UserError, match="devices.accumulate of the model 'f12' is 3, but must divide its batch.*16"):
        check(config, SCHEMA)
