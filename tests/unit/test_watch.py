"""What can be watched: records, event files and pictures of training, progress in logs, `ldmscale watch`."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldmscale import jobs
from ldmscale.cli import watch as command
from ldmscale.cli.main import main
from ldmscale.errors import UserError
from ldmscale.jobs import Progress, duration, job
from ldmscale.training import watch
from ldmscale.training.loop import TrainConfig, build_step, initial_state, train
from ldmscale.training.watch import LEVELS, by_level, grid

STEPS = 50  # of the schedule
SCALARS = {"loss", "grad_norm", "images_per_second"}


@dataclass(frozen=True)
class Noisy:
    """A mean that is learnt; the loss of an example is its own, and its timestep its number times ten."""

    fail_at: int | None = None
    schedule = SimpleNamespace(steps=STEPS)

    def init(self, key):
        return {"w": jnp.ones(2)}

    def batch(self, step):
        if step == self.fail_at:
            raise RuntimeError("stopped")
        return {"y": np.array([[0, 3], [1, 1], [2, 0]], np.float32) + step}

    def losses(self, params, batch, key):
        each = jnp.square(batch["y"] - params["w"]).mean(1)
        return each.mean(), jnp.array([0, 10, 49]), each

    def loss(self, params, batch, key):
        return self.losses(params, batch, key)[0]


QUICK = {"xla_backend_optimization_level": 0}
CONFIG = TrainConfig(steps=20, learning_rate=0.1, warmup=0, weight_decay=0.0, seed=0)


def pictures(params):
    return np.full((3, 4, 4, 3), 10 * float(params["w"][0]), np.uint8)


def run(folder, fail_at=None, say=lambda line: None, **settings):
    return train(Noisy(fail_at), CONFIG, folder, "d", (0, 10, 20), say=say, draw=pictures, **settings)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(read):
    return [{k: v for k, v in record.items() if k not in ("time", "images_per_second")} for record in read]


def events(folder):
    """The events of the folder's one event file, read by the format: length, its check, data, its check."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (size,), (check,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        body, (sum_,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
        assert (check, sum_) == (masked_crc32c(data[:8]), masked_crc32c(body))
        found.append(Event.FromString(body))
        data = data[16 + size :]
    return found


def scalars(folder):
    """(tag, step, value) of every scalar, in order."""
    return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value if v.tag != "samples"]


# ---------------------------------------------------------------- what a step measures


def test_a_step_tells_its_gradients_norm_and_its_losses_by_noise_level():
    task, params = Noisy(), {"w": jnp.ones(2)}
    step, state = build_step(task, CONFIG), initial_state(task, CONFIG)
    _, measured = step(state, task.batch(3), None)
    y = task.batch(3)["y"]
    each = np.square(y - 1).mean(1)
    gradient = (2 * (1 - y) / y.size).sum(0)
    np.testing.assert_allclose(measured.loss, each.mean(), rtol=1e-6)
    np.testing.assert_allclose(measured.grad_norm, np.linalg.norm(gradient), rtol=1e-6)  # before it is clipped to 1
    assert measured.grad_norm > 1
    sums, counts = np.asarray(measured.levels)
    np.testing.assert_allclose(sums[[0, 2, 9]], each, rtol=1e-6)
    assert counts.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1] and sums.sum() == pytest.approx(each.sum(), rel=1e-6)
    assert build_step(SimpleNamespace(loss=task.loss, init=task.init), CONFIG)(
        initial_state(task, CONFIG), task.batch(3), None
    )[1].levels is None  # fmt: skip
    assert params["w"].sum() == 2


def test_levels_are_equal_parts_of_the_schedule():
    t = jnp.arange(1000)
    sums, counts = np.asarray(by_level(t, t.astype(jnp.float32), 1000))
    assert counts.tolist() == [100] * LEVELS
    np.testing.assert_allclose(sums, [100 * (100 * i + 49.5) for i in range(LEVELS)], rtol=1e-5)
    assert np.asarray(by_level(jnp.array([0, 6]), jnp.ones(2), 7))[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0]


# ---------------------------------------------------------------- records, event file, pictures


def test_records_hold_means_since_the_one_before(tmp_path):
    run(tmp_path)
    found = records(tmp_path)
    assert [r["step"] for r in found] == list(range(2, 21, 2))
    assert set(found[0]) == {*SCALARS, "step", "time", "loss_by_level"}
    task, state = Noisy(), initial_state(Noisy(), CONFIG)
    step, seen = build_step(task, CONFIG, short=True), []
    for n in range(4):
        state, measured = step(state, task.batch(n), None)
        seen.append(jax.device_get(measured))
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[1][key], np.mean([getattr(m, key) for m in seen[2:]]), rtol=1e-6)
    levels = found[1]["loss_by_level"]
    assert [i for i, value in enumerate(levels) if value is not None] == [0, 2, 9] and len(levels) == LEVELS
    np.testing.assert_allclose(levels[9], np.mean([m.levels[0, 9] for m in seen[2:]]), rtol=1e-6)
    assert all(r["images_per_second"] > 0 for r in found)
    assert [r["time"] for r in found] == sorted(r["time"] for r in found)


def test_the_event_file_says_what_the_records_say(tmp_path):
    run(tmp_path)
    want = []
    for r in records(tmp_path):
        want += [(tag, r["step"], r[tag]) for tag in ("loss", "grad_norm", "images_per_second")]
        want += [(f"loss_by_level/{i}", r["step"], x) for i, x in enumerate(r["loss_by_level"]) if x is not None]
    found = scalars(tmp_path)
    assert [x[:2] for x in found] == [x[:2] for x in want]
    np.testing.assert_allclose([x[2] for x in found], [x[2] for x in want], rtol=1e-6)
    assert [e.file_version for e in events(tmp_path)][0] == "brain.Event:2"


def test_a_gradient_too_large_to_tell_is_null(tmp_path):
    found = watch.record_of(3, [watch.Measured(np.float32(1), np.float32(np.inf), None)], 4)
    assert found | {"time": 0} == {"step": 3, "time": 0, "images": 4, "loss": 1.0, "grad_norm": None}
    kept = watch.Watch(tmp_path, -1)
    kept.record({**found, "images_per_second": 2.0})
    kept.close()
    assert [tag for tag, *_ in scalars(tmp_path)] == ["loss", "images_per_second"]


def test_pictures_are_kept_at_checkpoints_and_shown(tmp_path):
    run(tmp_path)
    assert sorted(os.listdir(tmp_path / "samples")) == ["step-0.png", "step-10.png", "step-20.png"]
    shown = {e.step: v.image for e in events(tmp_path) for v in e.summary.value if v.tag == "samples"}
    assert sorted(shown) == [0, 10, 20]
    for step, image in shown.items():
        kept = np.asarray(Image.open(tmp_path / "samples" / f"step-{step}.png"))
        (tmp_path / "shown.png").write_bytes(image.encoded_image_string)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "shown.png")), kept)
        assert kept.shape == (image.height, image.width, 3) == (8, 8, 3)
    assert (np.asarray(Image.open(tmp_path / "samples" / "step-0.png"))[:4] == 10).all()  # of the first weights


@pytest.mark.parametrize("stop", [1, 3, 7, 10, 11, 15, 19])
def test_a_killed_run_goes_on_with_no_step_twice(tmp_path, stop):
    run(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(tmp_path / "parts", stop)
    # What a killed run has written beyond its last state, and half-written.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**records(tmp_path / "whole")[-1], "loss": 5.0}) + '\n{"step": 2')
    (tmp_path / "parts" / "samples" / "step-20.png").write_bytes(b"half")
    (tmp_path / "parts" / "samples" / ".step-10-abc.png").write_bytes(b"half")
    run(tmp_path / "parts")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert timeless(records(parts)) == timeless(records(whole))
    steady = [[x for x in scalars(folder) if x[0] != "images_per_second"] for folder in (parts, whole)]
    assert steady[0] == steady[1]
    places = [(e.step, v.tag) for e in events(parts) for v in e.summary.value]
    assert len(places) == len(set(places))
    assert {p.name: p.read_bytes() for p in (parts / "samples").iterdir()} == {
        p.name: p.read_bytes() for p in (whole / "samples").iterdir()
    }
    times = [e.wall_time for e in events(parts) if e.summary.value and e.summary.value[0].tag == "loss"]
    assert times == [r["time"] for r in records(parts)]  # kept, not the time of resuming


def test_another_configs_records_go(tmp_path):
    run(tmp_path)
    train(Noisy(), CONFIG, tmp_path, "another", (20,), say=lambda line: None)
    assert [r["step"] for r in records(tmp_path)] == list(range(2, 21, 2))
    assert not list((tmp_path / "samples").iterdir())


def test_a_run_that_fails_before_its_first_record_takes_nothing_of_another_configs(tmp_path):
    """That one's state is still there, so that nothing would make its records and pictures again."""
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    class Unreadable(Noisy):
        def batch(self, step, rows=slice(None)):
            raise UserError("a shard is damaged")

    with pytest.raises(UserError):
        train(Unreadable(), CONFIG, tmp_path, "another", (20,), say=lambda line: None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_watching_changes_no_weights(tmp_path):
    """The parameters after training are those of the plain loss under the plain optimiser."""
    import optax

    kept = run(tmp_path)
    params, opt = {"w": jnp.ones(2)}, CONFIG.optimizer()
    state = opt.init(params)
    for n in range(20):
        grads = jax.grad(Noisy().loss)(params, Noisy().batch(n), None)
        updates, state = opt.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    from safetensors.numpy import load_file

    np.testing.assert_allclose(load_file(kept[20])["w"], params["w"], rtol=1e-6)


def test_a_grid_is_as_square_as_can_be():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = grid(images)
    assert found.shape == (4, 6, 3)
    assert found[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 255]]


def test_the_writer_is_imported_without_what_it_does_not_need():
    """tensorboardX imports PyTorch where it is installed, which takes longer than many a run."""
    code = ("import sys; from pathlib import Path; from ldmscale.training.watch import Watch; import tempfile; "
            "Watch(Path(tempfile.mkdtemp()), 0)._events; assert 'torch' not in sys.modules; import torch")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tensorboardX" not in sys.modules or watch.UNUSED


# ---------------------------------------------------------------- progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (0, "0 s"), (0.2, "1 s"), (59, "59 s"), (59.5, "1 min 00 s"), (425, "7 min 05 s"),
     (3599, "59 min 59 s"), (3600, "1 h 00 min"), (86399, "23 h 59 min"), (100000, "1 d 03 h")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_progress_says_share_and_time_left(clock):
    said = []
    progress = Progress(said.append, 40)
    progress.skip(20)  # no time was spent on these
    clock[0] += 10
    progress(25, "25 things")
    clock[0] += 10
    progress(40, "all")
    assert said == ["25 things  62 %, 30 s left", "all  100 %, 0 s left"]


def test_a_fast_loop_is_told_of_now_and_then_and_at_its_end(clock):
    said = []
    tell = Progress(said.append, 100, every=10).counted("things")
    for n in range(1, 101):
        clock[0] += 1
        tell(n, 100)
    assert len(said) == 11 and said[0].startswith("1/100 things  1 %, 1 min 39 s left")
    assert said[-1] == "100/100 things  100 %, 0 s left"


def test_a_log_counts_what_begins_with_a_count(tmp_path, clock):
    log = tmp_path / "logs" / "score" / "x.log"
    with job(SimpleNamespace(log=[str(log)], threads=1, rule="clip", resources={})) as say:
        say("a sentence on 3/4 of it")
        say("3/8  task=t2i")
        clock[0] += 6
        say("5/8  task=t2i")
    assert [line.split("] ")[1] for line in log.read_text().splitlines()] == [
        f"process {os.getpid()} on {socket.gethostname()}",
        "a sentence on 3/4 of it",
        "3/8  task=t2i  38 %",  # how long the three took is not known
        "5/8  task=t2i  62 %, 9 s left",
        "done",
    ]


def test_training_tells_rate_and_time_left(tmp_path):
    said = []
    run(tmp_path, say=said.append)
    pattern = r"step 10/20  loss \d+\.\d{4}  [\d.]+ steps/s  50 %, \d+ s left"
    assert len(said) == 10 and re.fullmatch(pattern, said[4]), said[4]


# ---------------------------------------------------------------- ldmscale watch


def log(folder, name, *lines, process=None, host=None):
    path = folder / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    first = f"process {process or os.getpid()} on {host or socket.gethostname()}"
    path.write_text("".join(f"[{n:7.1f} s] {line}\n" for n, line in enumerate([first, *lines])))
    return path


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def study(tmp_path, gone):
    folder = tmp_path / "results" / "tiny"
    log(folder, "pretrain/f8", "step 5/20  loss 0.5000  2.0 steps/s  25 %, 1 min 05 s left")
    log(folder, "guided/f8", "a student of 8 steps", "step 4/40  loss 0.1  1.0 steps/s  10 %, 36 s left")
    log(folder, "data", "done")
    log(folder, "clip", "step 4/40  loss 0.1  1.0 steps/s  10 %, 36 s left", process=gone)
    failed = log(folder, "latents", "data/x.json is missing: [bold]run[/bold] it", process=gone)
    os.utime(failed, (0, 0))
    log(folder, "superres/f8", "resumed at step 4 of 9")
    (folder / "logs" / "report.log").write_text("Snakemake's own\n")
    return folder


def test_jobs_are_read_from_their_logs(study):
    found = {j.name: (j.state, j.percent, j.left, j.doing) for j in command.read_jobs(study)}
    assert found == {
        "pretrain f8": ("running", 25, "1 min 05 s", "step 5/20  loss 0.5000  2.0 steps/s"),
        "guided f8": ("running", 10, "36 s", "a student of 8 steps | step 4/40  loss 0.1  1.0 steps/s"),
        "superres f8": ("running", None, None, "resumed at step 4 of 9"),
        "data": ("done", 100, None, "done"),
        "clip": ("stopped", None, None, "step 4/40  loss 0.1  1.0 steps/s  10 %, 36 s left"),
        "latents": ("stopped", None, None, "data/x.json is missing: [bold]run[/bold] it"),
    }


def test_a_job_of_another_machine_runs_as_long_as_it_speaks(tmp_path):
    path = log(tmp_path, "pretrain/f8", "step 1/2  1 %", host="elsewhere", process=1)
    assert command.read_job(path, "x").state == "running"
    os.utime(path, (0, 0))
    assert command.read_job(path, "x").state == "stopped"


def test_a_traceback_is_told_by_its_last_line(tmp_path, gone):
    path = log(tmp_path, "clip", "20 images", process=gone)
    with open(path, "a") as file:
        file.write("Traceback (most recent call last):\n  x\nValueError: no\n")
    assert command.read_job(path, "clip").doing == "ValueError: no"


def test_without_a_terminal_it_prints_lines_once(study, capsys, monkeypatch):
    monkeypatch.chdir(study.parent.parent)
    assert main(["watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "results/tiny: 1 jobs done, 3 running"
    assert lines[2].split() == "pretrain f8 25 % 1 min 05 s left step 5/20 loss 0.5000 2.0 steps/s".split()
    assert lines[4] == "stopped: clip: step 4/40  loss 0.1  1.0 steps/s  10 %, 36 s left"
    assert len(lines) == 6


def test_a_terminal_shows_bars_and_takes_nothing_for_markup(study):
    from rich.console import Console

    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    console.print(command.screen(study, command.read_jobs(study)))
    said = console.export_text()
    assert "[bold]run[/bold]" in said and "1 min 05 s left" in said and "━" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_cells_job_is_named_by_its_values(tmp_path):
    log(tmp_path, "generate/task=t2i/model=f8/cfg=2.5", "done")
    assert [found.name for found in command.read_jobs(tmp_path)] == ["generate t2i f8 2.5"]


def test_a_folder_without_logs_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="has no logs"):
        command.read_jobs(tmp_path)
    assert main(["watch"]) == 1
    assert "make study" in capsys.readouterr().err


# ---------------------------------------------------------------- every task that diffuses, and pictures of pretraining


def test_the_losses_of_examples_are_what_the_loss_is_the_mean_of():
    """Of a network that is right about nothing, and of the distillations' weights."""
    from synthetic_distillation import NET, captioned_latents, random_parameters

    from ldmscale.diffusion.schedule import Schedule
    from ldmscale.models.network import with_guidance
    from ldmscale.tasks.codi import CoDiTask
    from ldmscale.tasks.guided import GuidedTask
    from ldmscale.tasks.pretrain import PretrainTask

    data, schedule, params = captioned_latents(), Schedule(), random_parameters(NET)
    told = replace(NET, guidance_width=8)
    taught = with_guidance(params, told)
    codi = CoDiTask(NET, schedule, params, data, 4, 0, cfg=(1.0, 3.0), noise_consistency=0.5)
    cases = [
        (PretrainTask(NET, schedule, data, 4, 0.1, 0), params, ()),
        (codi, codi.init(None), (codi.init(None), params)),
        (GuidedTask(told, schedule, taught, data, 4, 0, steps=4, cfg=(1.0, 3.0)), taught, (taught, taught)),
    ]
    for task, trained, given in cases:
        losses = jax.jit(lambda p, b, *g, task=task: task.losses(p, b, jax.random.key(1), *g), compiler_options=QUICK)
        loss, t, each = losses(trained, task.batch(0), *given)
        assert t.shape == each.shape == (4,) and each.min() >= 0
        np.testing.assert_allclose(loss, each.mean(), rtol=1e-5)
        if isinstance(task, GuidedTask):
            np.testing.assert_array_equal(t, task.batch(0)["t"])


def test_pictures_of_pretraining_are_the_samplers_decoded():
    from synthetic_distillation import NET, SCHEDULE, captioned_latents, random_parameters

    from ldmscale.diffusion.samplers import step_table
    from ldmscale.diffusion.sampling import build_sampler, device_table
    from ldmscale.generation.cells import image_keys
    from ldmscale.generation.encode import Encoders
    from ldmscale.models.autoencoder import AutoencoderConfig
    from ldmscale.tasks import preview
    from ldmscale.tasks.pretrain import PretrainTask
    from ldmscale.training.sharding import Devices
    from ldmscale.training.weights import parameter_shapes

    ae = AutoencoderConfig(4, (1, 1), 1, 4, 2, False)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), parameter_shapes(ae))
    data, params = captioned_latents(), random_parameters(NET)
    task = PretrainTask(NET, SCHEDULE, data, 4, 0.1, 0)
    draw = preview.preview(task, ae, weights, 8, Devices())
    before = sum(x.nbytes for x in jax.live_arrays())
    found = draw(params)
    assert sum(x.nbytes for x in jax.live_arrays()) - before < sum(x.nbytes for x in jax.tree.leaves(params)) / 2
    assert found.shape == (6, 8, 8, 3) and found.dtype == np.uint8  # as many as there are images, at most nine
    np.testing.assert_array_equal(found, draw(params))
    assert (found != draw(jax.tree.map(lambda x: 0.5 * x, params))).any()

    keys, step_keys = image_keys(task.seed, np.arange(6))
    noise = jax.vmap(lambda key: jax.random.normal(key, data.mean.shape[1:]))(keys)
    sample = build_sampler(lambda p, z, t, c: task.net.apply({"params": p}, z, t, c))
    table = device_table(step_table("dpmpp2m", SCHEDULE, preview.CELL.steps, preview.SPACING))
    z = sample(params, table, preview.CELL.cfg, noise, data.states[data.first[:6]], data.null, step_keys)
    want = Encoders(ae, batch=6).decode(weights, np.asarray(z) / data.scale)
    assert np.abs(found.astype(int) - want).max() <= 1
