"""States on a mesh, and what programs take of TPUs that are not there, as libtpu's compiler says."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import REPO
from jax.sharding import PartitionSpec

from ldmscale import tpu
from ldmscale.cells.cost import unet_flops, unet_params
from ldmscale.cells.paper import paper_shape
from ldmscale.cli.main import main
from ldmscale.errors import UserError
from ldmscale.models import layers
from ldmscale.models.unet import UNetConfig
from ldmscale.training import programs
from ldmscale.training.collectives import Traffic
from ldmscale.training.loop import TrainConfig, build_step, initial_state
from ldmscale.training.sharding import device_mesh, replicated, state_shardings

needs_libtpu = pytest.mark.skipif(
    not tpu.installed(), reason="libtpu, the optional dependency `tpu`, is not installed: no TPU compiler"
)
TINY = UNetConfig(8, (1,), 1, (True,), heads=2, norm_groups=4, context_width=16, dtype="bfloat16")
GIB = 2**30


# ---------------------------------------------------------------- training on a mesh

# Run with four CPU devices, which a process must ask for before JAX starts: what each layout of the state trains to.
LAYOUTS = """
import sys
import ldmscale
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from ldmscale.errors import UserError
from ldmscale.models.layers import conv2d
from ldmscale.training import sharding
from ldmscale.training.collectives import collectives
from ldmscale.training.programs import shard_bytes
from ldmscale.training.loop import TrainConfig, build_step, initial_state

class Task:
    def init(self, key):
        a, b = jax.random.split(key)
        return {"conv": jax.random.normal(a, (3, 3, 3, 16)) / 5, "bias": jnp.zeros(16),
                "dense": jax.random.normal(b, (16, 7)) / 4}

    def batch(self, step):
        rng = np.random.default_rng(step)
        return {"x": rng.normal(size=(8, 6, 6, 3)).astype(np.float32), "y": rng.normal(size=(8, 7)).astype(np.float32)}

    def loss(self, params, batch, key):
        x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
        hidden = jax.nn.silu(conv2d(x, params["conv"]) + params["bias"]).mean((1, 2))
        return jnp.mean((hidden @ params["dense"] - batch["y"]) ** 2)

sharding.LEAST_ELEMENTS = 100  # so that tensors this small are cut at all
task, found = Task(), {}
layouts = [("one", 1, 1), ("data", 4, 1), ("fsdp", 4, 4), ("both", 4, 2)]
for name, devices, fsdp in layouts:
    flat = fsdp == 1
    config = TrainConfig(10, 1e-2, 2, 0.01, seed=0, ema=0.9, flat=flat)
    mesh = sharding.device_mesh(jax.devices()[:devices], fsdp)
    places = sharding.state_shardings(jax.eval_shape(partial(initial_state, task, config)), mesh)
    state = jax.device_put(initial_state(task, config), places)
    step = build_step(task, config, places)
    for n in range(3):
        batch = {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in task.batch(n).items()}
        state, (loss, norm, _) = step(state, batch)
    for place, array in zip(jax.tree.leaves(places), jax.tree.leaves(state), strict=True):
        assert array.sharding.is_equivalent_to(place, array.ndim), (name, place, array.sharding)
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    found[f"{name}/held"], found[f"{name}/said"] = held / whole, shard_bytes(state, mesh) / whole
    found[f"{name}/size"] = sum(x.nbytes for x in jax.tree.leaves(state.params))
    sent = collectives(step.lower(state, batch).compile().as_text())
    found[f"{name}/reduced"] = sent["all-reduce"].size if "all-reduce" in sent else 0
    found[f"{name}/gathered"] = sent["all-gather"].size if "all-gather" in sent else 0
    found[f"{name}/loss"], found[f"{name}/norm"] = np.asarray(loss), np.asarray(norm)
    for kind in ("params", "ema"):
        found[f"{name}/{kind}"] = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(getattr(state, kind))])
try:
    sharding.device_mesh(jax.devices(), 3)
except UserError as error:
    found["refused"] = str(error)
np.savez(sys.argv[1], **found)
"""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("layouts") / "found.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", LAYOUTS, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


@pytest.mark.parametrize("layout", ["data", "fsdp", "both"])
def test_training_is_the_same_on_every_layout(layouts, layout):
    for what in ("loss", "norm"):
        assert layouts[f"{layout}/{what}"] == pytest.approx(layouts[f"one/{what}"], rel=1e-5)
    for kind in ("params", "ema"):
        np.testing.assert_allclose(layouts[f"{layout}/{kind}"], layouts[f"one/{kind}"], rtol=0, atol=1e-5)
    assert np.abs(layouts["one/params"] - layouts["one/ema"]).max() > 1e-3


def test_a_sharded_state_is_held_once(layouts):
    assert layouts["one/held"] == layouts["data/held"] == 1
    assert 0.25 <= layouts["fsdp/held"] < 0.3  # the bias alone is whole
    assert 0.5 <= layouts["both/held"] < 0.55
    for name in ("one", "data", "fsdp", "both"):
        assert layouts[f"{name}/said"] == layouts[f"{name}/held"]  # what preflight --shapes computes


def test_what_a_layout_sends(layouts):
    size = layouts["one/size"]
    assert layouts["one/reduced"] == layouts["one/gathered"] == 0
    assert size <= layouts["data/reduced"] < size + 64  # the gradients once, and the loss
    assert layouts["data/gathered"] == 0 < layouts["fsdp/gathered"]


def test_a_mesh_takes_only_what_divides_its_devices(layouts):
    assert str(layouts["refused"]) == "fsdp is 3: it must divide the number of devices, 4"


class Mesh:
    """Stands for a mesh where only the length of an axis counts."""

    def __init__(self, fsdp):
        self.shape = {"data": 2, "fsdp": fsdp}


def test_the_largest_divisible_dimension_is_cut(monkeypatch):
    monkeypatch.setattr("ldmscale.training.sharding.NamedSharding", lambda mesh, spec: spec)
    cases = {(3, 3, 320, 640): (None, None, None, "fsdp"), (640, 320): ("fsdp",), (512, 512): (None, "fsdp"),
             (4099, 64): (None, "fsdp"), (320,): (), (2**16,): ("fsdp",), (2**16 - 1, 3): (), (): ()}  # fmt: skip
    for shape, want in cases.items():
        assert state_shardings(jax.ShapeDtypeStruct(shape, jnp.float32), Mesh(8)) == PartitionSpec(*want), shape
        assert state_shardings(jax.ShapeDtypeStruct(shape, jnp.float32), Mesh(1)) == PartitionSpec(), shape


def test_a_state_of_tensors_has_moments_like_its_parameters():
    config = TrainConfig(10, 1e-3, 2, 0.01, seed=0)

    class Task:
        def init(self, key):
            return {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5)}

    shapes = [x.shape for x in jax.tree.leaves(initial_state(Task(), config).optimizer)]
    assert shapes.count((17,)) == 2  # as every checkpoint of the study has them
    shapes = [x.shape for x in jax.tree.leaves(initial_state(Task(), replace(config, flat=False)).optimizer)]
    assert shapes.count((3, 4)) == shapes.count((5,)) == 2 and (17,) not in shapes


# ---------------------------------------------------------------- the programs, lowered for the CPU


def test_layers_are_traced_as_for_a_tpu():
    from ldmscale.models.layers import conv2d

    def operations():
        x, kernel = jax.ShapeDtypeStruct((1, 2, 2, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
        return str(jax.make_jaxpr(lambda *a: conv2d(*a))(x, kernel))

    assert "conv_general_dilated" not in operations()  # small planes are a matrix product on the CPU
    with layers.traced_for("tpu"):
        assert "conv_general_dilated" in operations()
    assert "conv_general_dilated" not in operations()


def test_the_step_that_is_compiled_is_the_loops():
    """The operations and their shapes are those of the loop's own step of the same task and batch."""
    from ldmscale.data.encoded import Latents
    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.tasks.pretrain import PretrainTask

    net, mesh = replace(TINY, dtype="float32"), device_mesh(jax.devices()[:1])
    with layers.traced_for("tpu"):  # on the CPU it is two programs
        lowered = programs.training_step(net, 8, 3, 4, mesh)
        rng = np.random.default_rng(0)
        moments, states = rng.normal(size=(2, 9, 8, 8, 4)).astype(np.float32), np.ones((9, 3, 16), np.float32)
        latents = Latents(*moments, states, np.arange(10), states[0], 1.0)
        task = PretrainTask(net, Schedule(), latents, 4, 0.1, 0)
        config = TrainConfig(500_000, 1e-4, 10_000, 0.01, seed=0, ema=0.9999)
        state = jax.eval_shape(lambda: initial_state(task, config))
        want = build_step(task, config).lower(state, task.batch(0)).as_text()
        assert operations(lowered.as_text()) == operations(want)
        parts = programs.training_step(replace(net, remat=True), 8, 3, 4, mesh, accumulate=2).as_text()
        assert "optimization_barrier" in parts and "optimization_barrier" not in want  # what remat computes again
        assert "tensor<2x8x8x8xf32>" in parts and "tensor<2x8x8x8xf32>" not in want  # two images at a time


def operations(text):
    """How often each operation with each type of result is in a program."""
    found = Counter(re.findall(r"= (?:\"?)((?:stablehlo|chlo)\.\w+).*?(tensor<[^>]*>)$", text, re.MULTILINE))
    assert found.total() > 500
    return found


@pytest.fixture
def on_the_cpu(monkeypatch):
    """``ldmscale preflight`` on this machine's CPU, for all but the compiler; what it lowered is in the list."""
    lowered = []
    monkeypatch.setattr(tpu, "require", lambda: None)
    monkeypatch.setattr(tpu, "topology", lambda name: jax.devices()[:1])
    monkeypatch.setattr(tpu, "available_memory", lambda devices: 16 * GIB)

    def footprint(lower, available, quick):
        lowered.append(lower())
        took = 6.2 if quick else 12.3
        sent = {"all-reduce": Traffic(7, GIB // 2)}
        return tpu.Footprint(3 * GIB, GIB, 4 * GIB, GIB // 4, 33 * GIB // 4, available, None, took, sent)

    monkeypatch.setattr(tpu, "footprint", footprint)
    return lowered


def test_a_report(capsys, on_the_cpu):
    asked = "preflight --filters 32 --topology v5e:1x1 --program sample --batch 3 --latent-size 8".split()
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert "compiling for 1 device of 16.00 GiB" in err
    for line in (
        "arguments             3.00 GiB",
        "total                 8.25 GiB",
        "fits",
        "  not given",
        "took 12 s",
        "sent between devices: 7 all-reduce of 0.5 GiB",
    ):
        assert line.strip() in out
    flops = 2 * 3 * unet_flops(paper_shape(32, latent_size=8))
    assert f"{flops / 1e12:.3g} T a sampling step" in out
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["flops_per_device"] == flops and found["bytes_per_device"]["total"] == 33 * GIB // 4
    assert found["estimated_seconds"] is None and found["filters"] == 32 and found["model"] is None
    assert found["collectives"] == {"all-reduce": {"count": 7, "bytes": GIB // 2}}
    assert found["compile_seconds"] == 12.3 and found["quick"] is False
    assert main([*asked, "--quick"]) == 0
    assert "took 6 s, with the least effort" in capsys.readouterr().out
    params, table, cfg, z, context, null, keys = on_the_cpu[0].in_avals[0]
    assert z.shape == (3, 8, 8, 4) and context.shape == (3, 77, 1024) and keys.shape == (3,)
    assert "bf16" in on_the_cpu[0].as_text()


def test_a_program_that_does_not_fit(capsys, on_the_cpu, monkeypatch):
    found = tpu.Footprint(None, None, None, None, 48 * GIB, 16 * GIB, None, 3.0, None)
    monkeypatch.setattr(tpu, "footprint", lambda lower, available, quick: found)
    assert not found.fits and not replace(found, arguments=1, outputs=1, temporaries=1, program=1).fits
    assert main("preflight --model 5B --topology v5e:2x2".split()) == 1
    out, _ = capsys.readouterr()
    assert "DOES NOT FIT" in out and "total                48.00 GiB" in out and "not told" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "one of the arguments --topology --shapes is required"),
        ("--shapes --topology v5e:2x2", "not allowed with"),
    ],
)
def test_either_a_slice_or_shapes(capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["preflight", "--model", "5B", *arguments.split()])
    assert said in capsys.readouterr().err


def test_parts_have_whole_images(capsys, on_the_cpu):
    assert main("preflight --filters 32 --topology v5e:1x1 --batch 8 --accumulate 3".split()) == 1
    assert "--accumulate 3 does not divide --batch 8" in capsys.readouterr().err and not on_the_cpu


def test_shapes_alone_tell_what_training_holds(capsys, monkeypatch):
    monkeypatch.setattr(tpu, "installed", lambda: False)
    assert main("preflight --model 866M --shapes --json".split()) == 0
    shares = {row["fsdp"]: row["bytes_per_device"] for row in json.loads(capsys.readouterr().out)["shares"]}
    params = unet_params(paper_shape(320))
    # Weights, average and two moments, and three counters.
    assert shares[1] == {"state": 16 * params + 12, "gradients": 4 * params, "total": 20 * params + 12}
    assert list(shares) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert 1 / 16 < shares[16]["total"] / shares[1]["total"] < 1.02 / 16  # small arrays are whole
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| [\d.]+ \| [\d.]+ \|$", (REPO / "docs" / "scale.md").read_text(), re.M)
    assert {int(fsdp): gib for fsdp, gib in rows} == {n: f"{one['total'] / GIB:.2f}" for n, one in shares.items()}
    monkeypatch.setattr(programs, "held", lambda net, fsdp: [programs.Held(3 * GIB, GIB // 2)] * len(fsdp))
    assert main("preflight --filters 32 --shapes".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("filters 32, training") and lines[-3].split() == ["256", "3.00", "0.50", "3.50"]


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(tpu, "installed", lambda: False)
    assert main("preflight --model 39M --topology v5e:2x2".split()) == 1
    out, err = capsys.readouterr()
    assert not out and "ldmscale[tpu]" in err and err.count("\n") == 1


def test_libtpu_is_found_where_jax_finds_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(tpu.LIBRARY, raising=False)
    assert not tpu.installed()
    monkeypatch.setenv(tpu.LIBRARY, str(tmp_path / "libtpu.so"))
    assert not tpu.installed()
    (tmp_path / "libtpu.so").touch()
    assert tpu.installed()


# ---------------------------------------------------------------- libtpu's own compiler


@pytest.fixture
def slice_of_four(monkeypatch):
    for name, value in tpu._QUIET.items():
        monkeypatch.setenv(name, value)  # what topology() sets goes with the test
    return tpu.topology("v5e:2x2")


@needs_libtpu
def test_slices_and_their_memory(slice_of_four):
    assert len(slice_of_four) == 4 and slice_of_four[0].platform == "tpu"
    assert tpu.available_memory(slice_of_four) == 15.75 * GIB  # of 16
    assert len(tpu.topology("v5e:1x1")) == 1
    v4 = tpu.topology("v4:2x2x1")
    assert len(v4) == 4 and tpu.available_memory(v4) > 30 * GIB
    for name in ("v5e:3x5", "v9:2x2", "v5e"):
        with pytest.raises(UserError, match=f"topology '{name}' is none.*as in v5e:2x2"):
            tpu.topology(name)


@needs_libtpu
def test_the_training_step_for_a_tpu(slice_of_four):
    mesh = device_mesh(slice_of_four, 2)
    found = tpu.footprint(lambda: programs.training_step(TINY, 8, 4, 2, mesh), 16 * GIB)
    assert found.fits and found.compile_seconds > 0
    assert found.total == found.arguments + found.outputs + found.temporaries + found.program
    lowered = programs.training_step(TINY, 8, 4, 2, mesh)
    held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(lowered.in_avals[0][0]))
    # A TPU pads the last two dimensions, to 8 x 128 at most: a state of many small tensors grows.
    assert held < found.arguments < 100 * held
    assert found.temporaries > 0 and found.program > 0
    assert found.collectives["all-reduce"].count > 0
    # The new state takes the old one's place.
    assert found.outputs < 0.1 * found.arguments
    assert found.seconds is None or found.seconds > 0
    assert not replace(found, available=found.total - 1).fits


@needs_libtpu
def test_the_sampling_program_for_a_tpu(slice_of_four):
    before = jax.config.jax_exec_time_optimization_effort
    found = tpu.footprint(lambda: programs.sampling(TINY, 8, 4, 2, device_mesh(slice_of_four)), 16 * GIB, quick=True)
    assert found.fits and found.program > 0
    assert jax.config.jax_exec_time_optimization_effort == before
    assert found.arguments > 2 * 8 * 8 * 4 * 4


@needs_libtpu
def test_a_program_that_the_compiler_refuses_does_not_fit(slice_of_four):
    mesh = device_mesh(slice_of_four)
    large = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32, sharding=replicated(mesh))
    found = tpu.footprint(lambda: jax.jit(lambda x: jnp.sin(x @ x)).lower(large), tpu.available_memory(slice_of_four))
    assert not found.fits and found.temporaries is None
    assert found.total >= 2 * 2**34 and found.available == 15.75 * GIB
