"""The command line: what it answers, refuses, and how fast; families against the paper, scores against clean-fid."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import yaml
from helpers import REPO, merged
from PIL import Image

from ldmscale.cells.cost import flops, model_shape, norm_costs, params
from ldmscale.cells.paper import TABLE_1
from ldmscale.cli import family, score
from ldmscale.cli.main import COMMANDS, main, parser
from ldmscale.config.read import merge, read_study
from ldmscale.config.study import Study
from ldmscale.errors import UserError

OVERLAYS = sorted(path.name for path in (REPO / "configs").glob("*.yaml"))


def answer(capsys, *arguments):
    """Status, standard output and standard error of ``ldmscale arguments``."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


# ---------------------------------------------------------------- the command line itself


def test_without_a_command_it_prints_its_help(capsys):
    status, out, err = answer(capsys)
    assert status == 0 and not err
    for module in COMMANDS:
        assert re.search(rf"^ +{module.__name__.rpartition('.')[2]}\b", out, re.MULTILINE)


def test_every_example_of_the_help_is_a_command_line(capsys):
    examples = []
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        found = re.findall(r"^  (ldmscale .*?)(?:   .*)?$", capsys.readouterr().out, re.MULTILINE)
        assert found, f"{name} shows no example"
        examples += [(module, line) for line in found]
    for module, line in examples:
        assert parser().parse_args(shlex.split(line)[1:]).run is module.run


def test_it_starts_without_what_is_slow_to_import():
    code = "import sys, ldmscale.cli.main\nprint({'jax', 'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_project_installs_it():
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ldmscale": f"{main.__module__}:{main.__name__}"}


def test_what_the_user_can_mend_is_a_sentence(capsys):
    assert answer(capsys, "family", "--filters", "64,100") == (
        1, "", "error: --filters has 100: it must be a multiple of 32, the group norms' groups\n")  # fmt: skip


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr(family, "_text", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert answer(capsys, "family") == (130, "", "interrupted\n")


def test_a_reader_that_has_gone_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "ldmscale.cli.main", "family"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("family --filters 64,x", "'x' is not a whole number of at least 1"),
        ("family --filters 0", "'0' is not a whole number"),
        ("family --context 77", "TOKENSxWIDTH"),
        ("family --latent-size 0", "at least 1"),
        ("family --filters 64 --config a.yaml", "not allowed with"),
        ("preflight --model 900M --topology v5e:2x2", "866M"),
        ("preflight --topology v5e:2x2", "--model --filters"),
    ],
)
def test_usage_that_is_none(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------- family


def table(out):
    """The table's rows, by model, as lists of words."""
    lines = out.split("\n\n")[0].splitlines()
    return {line.split()[0]: line.replace(" M", "M").replace(" k", "k").split() for line in lines[1:]}


def test_the_papers_family_and_what_the_paper_prints(capsys):
    status, out, err = answer(capsys, "family")
    rows = table(out)
    assert status == 0 and not err
    assert list(rows) == [row.name for row in TABLE_1.values()]
    assert rows["39M"] == ["39M", "64", "38.8M", "53.0", "0.066", "39M", "25.3*", "0.07"]
    assert rows["866M"] == ["866M", "320", "865.9M", "804.3", "1.000", "866M", "789.3", "1.00"]
    assert rows["5B"] == ["5B", "768", "4,900.2M", "4,195.1", "5.216", "5B", "4082.6", "5.17"]
    assert "* The paper's 25.3 GFLOPS for 39M contradict its own normalised cost" in out
    ends = {len(line) for line in out.split("\n\n")[0].splitlines()}
    assert len(ends) == 1, "columns are not aligned"


def test_what_the_paper_prints_is_its_own_arithmetic_but_for_one_row():
    """A slip in copying the table would show: GFLOPS over 866M's are the normalised costs, to the digits printed."""
    for row in TABLE_1.values():
        ratio = row.gflops / TABLE_1[320].gflops
        assert (abs(ratio - row.norm_cost) < 0.006) == (row.name != "39M")
    assert [row.fid for row in TABLE_1.values()] == sorted((row.fid for row in TABLE_1.values()), reverse=True)
    assert [row.clip for row in TABLE_1.values()] == sorted(row.clip for row in TABLE_1.values())


def test_other_widths_and_sizes(capsys):
    rows = table(answer(capsys, "family", "--filters", "320,32,64")[1])
    assert list(rows) == ["f32", "39M", "866M"] and len(rows["f32"]) == 5
    status, out, _ = answer(capsys, "family", "--latent-size", 32)
    assert table(out)["866M"] == ["866M", "320", "865.9M", "181.1", "1.000"]  # nothing printed for that size
    assert "32 x 32 x 4" in out and "25.3" not in out
    assert table(answer(capsys, "family", "--context", "77x768")[1])["866M"][2] == "859.5M"


def test_family_as_json(capsys):
    found = json.loads(answer(capsys, "family", "--filters", "64,160", "--json")[1])
    assert found["latent"] == [64, 64, 4] and found["context"] == [77, 1024]
    first, second = found["models"]
    assert (first["name"], first["filters"], first["params"]) == ("39M", 64, 38_800_580)
    assert first["gflops"] == pytest.approx(52.99863552, rel=1e-12)
    assert second["paper"] == {"name": "223M", "gflops": 233.5, "norm_cost": 0.3, "fid": 23.76, "clip": 0.31}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_family_of_a_study(capsys, monkeypatch, overlay):
    monkeypatch.chdir(REPO)
    study = Study(merged(overlay))
    found = json.loads(answer(capsys, "family", "--config", f"configs/{overlay}", "--json")[1])
    assert found["latent"][0] == study.latent_size
    for row, (name, model) in zip(found["models"], study.models.items(), strict=True):
        shape = model_shape(study, model)
        assert (row["name"], row["params"], row["gflops"]) == (name, params(shape), flops(shape) / 1e9)
        assert row["norm_cost"] == norm_costs(study)[name]
        its_shape = model.family == "unet" and shape.channel_mult == (1, 2, 4, 4)
        is_the_papers = its_shape and model.filters in TABLE_1 and study.latent_size == 64
        assert (row["paper"] is not None) == is_the_papers


def test_family_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "ldmscale.cli.main", "family"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


# ---------------------------------------------------------------- reading configs


def test_configs_merge_as_in_snakemake(tmp_path):
    odd = {"unet": {"heads": None}, "models": [], "new": {"a": {"b": 1}}, "clip": 3, "data": {"train": None}}
    for overlays in [(), *((name,) for name in OVERLAYS), ("paper.yaml", "smoke.yaml"), (odd,), (odd, odd)]:
        config = merged()
        for overlay in overlays:
            given = overlay if isinstance(overlay, dict) else yaml.safe_load((REPO / "configs" / overlay).read_text())
            config = merge(config, given)
        assert config == merged(*overlays)


def test_a_study_is_read_and_checked(tmp_path):
    changed = tmp_path / "mine.yaml"
    changed.write_text("study: mine\nreference_filters: 8\n")
    study = read_study([REPO / "configs" / "smoke.yaml", changed], REPO)
    assert study.config == Study(merged("smoke.yaml", {"study": "mine", "reference_filters": 8})).config
    for text, said in [
        ("unet: [", "is not YAML"),
        ("- 1", "no keys"),
        ("unet: {heads: many}", "unet.heads"),
        ("a: b", "unknown key"),
    ]:
        changed.write_text(text)
        with pytest.raises(UserError, match=said):
            read_study([changed], REPO)
    with pytest.raises(UserError, match="gone.yaml cannot be read"):
        read_study([tmp_path / "gone.yaml"], REPO)
    with pytest.raises(UserError, match="in the folder of ldmscale's Snakefile"):
        read_study([], tmp_path)


# ---------------------------------------------------------------- score


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small random network with the interface of clean-fid's file. Of its 2,048 features 24 vary: enough for a
    distance, and few enough for clean-fid's root of a 2,048 x 2,048 matrix to take seconds."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mixing = torch.nn.Linear(75, 2048)
            with torch.no_grad():
                mixing.weight[24:] = 0
                mixing.weight *= 4
            self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(59, 60), torch.nn.Flatten(), mixing, torch.nn.Tanh())

        def forward(self, x, return_features: bool = True):
            return self.layers((x - 128) / 128)

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    torch.jit.script(Small()).save(str(path))
    return path


def draw(folder, seed, count, offset):
    """Images of many formats, modes and sizes, some in a folder of the folder."""
    rng = np.random.default_rng(seed)
    kinds = [("png", "RGB"), ("jpg", "RGB"), ("png", "RGBA"), ("png", "L"), ("bmp", "RGB"), ("webp", "RGB"),
             ("tif", "RGB"), ("png", "P"), ("JPEG", "L"), ("ppm", "RGB")]  # fmt: skip
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        height, width = rng.integers(5, 400, 2)
        coarse = rng.integers(0, 156, (6, 5, 3)).astype(np.uint8) + offset
        image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        ending, mode = kinds[i % len(kinds)]
        image = image.convert(mode)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)))
        image.save(folder / ("more" if i % 3 == 0 else "") / f"{i:03}.{ending}")
    np.save(folder / "array.npy", rng.integers(0, 256, (33, 47, 3), np.uint8))
    (folder / ".hidden.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images [1]")
    return draw(root / "a", 0, 44, 0), draw(root / "b", 1, 37, np.uint8(40))


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning", "ignore:Matrix is singular")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scores_are_cleanfids(capsys, monkeypatch, folders, weights, tmp_path):
    import torch

    status, out, err = answer(capsys, "score", *folders, "--inception", weights, "--batch", 16, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["n_a"], found["n_b"]) == (45, 38)
    assert f"{folders[0]}: 45 of 45 images" in err

    from cleanfid import fid as cleanfid
    from cleanfid import utils
    from cleanfid.inception_torchscript import InceptionV3W

    from ldmscale.metrics.folders import EXTENSIONS

    assert set(EXTENSIONS) == utils.EXTENSIONS
    # clean-fid globs for its folders as they are named: brackets would be a pattern.
    plain = []
    for folder in folders:
        plain.append(tmp_path / folder.name)
        plain[-1].symlink_to(folder)
    monkeypatch.setattr(cleanfid, "build_feature_extractor",
                        lambda *a, **k: InceptionV3W(str(weights.parent), download=False).eval())  # fmt: skip
    settings = {"mode": "clean", "num_workers": 0, "batch_size": 16, "device": torch.device("cpu"), "verbose": False}
    want = cleanfid.compute_fid(str(plain[0]), str(plain[1]), **settings)
    assert found["fid"] == pytest.approx(want, rel=1e-6)
    assert want > 0.1
    np.random.seed(0)
    want = cleanfid.compute_kid(str(plain[0]), str(plain[1]), **settings)
    assert found["kid"] == pytest.approx(want, rel=1e-6)
    low, high = found["fid_interval"]
    assert low < found["fid"] < high


def test_scores_for_readers():
    found = {"a": "mine", "b": "real", "n_a": 45, "n_b": 3000, "fid": 12.34567, "fid_interval": None, "kid": 0.0123456}
    few = score._text(found)
    assert few.splitlines()[:3] == ["images  45 in mine, 3000 in real", "FID     12.3457", "KID     0.012346"]
    assert "With 45 images" in few
    many = score._text({**found, "n_a": 4000, "fid_interval": (11.0, 13.5)})
    assert many.splitlines()[1:] == ["FID     12.3457, 95 % interval 11.0000 to 13.5000", "KID     0.012346"]


def test_kid_leaves_the_global_random_state_alone():
    from ldmscale.metrics.folders import kid
    from ldmscale.metrics.torch_guard import guard_torchvision

    guard_torchvision()
    features = np.random.default_rng(0).normal(size=(2, 30, 4)).astype(np.float32)
    np.random.seed(5)
    want = np.random.random()
    np.random.seed(5)
    first = kid(*features)
    assert np.random.random() == want and kid(*features) == first


def test_score_refuses(capsys, monkeypatch, tmp_path, weights, folders):
    def refused(*arguments):
        status, out, err = answer(capsys, "score", *arguments)
        assert status == 1 and not out and err.startswith("error: ") and err.count("\n") == 1
        return err

    good, empty, bad = folders[0], tmp_path / "empty", tmp_path / "bad"
    given = ("--inception", weights)
    assert "--inception" in refused(good, good) and "nvidia" in score.ABOUT
    assert "at least 2" in refused(good, good, *given, "--replicates", 1)
    assert "is no folder" in refused(good, tmp_path / "gone", *given)
    empty.mkdir()
    assert f"{empty} holds no images" in refused(empty, good, *given)
    bad.mkdir()
    Image.new("RGB", (9, 9)).save(bad / "one.png")
    assert f"{bad} holds 1 image:" in refused(good, bad, *given)
    (bad / "notes.txt").write_text("x")
    assert f"{bad / 'notes.txt'} is no image" in refused(bad, good, *given)
    (bad / "notes.txt").rename(bad / "notes.png")
    assert f"{bad / 'notes.png'} cannot be read as an image (cannot identify" in refused(bad, good, *given)
    whole = (good / "001.jpg").read_bytes()
    (bad / "notes.png").unlink()
    (bad / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert f"{bad / 'cut.jpg'} cannot be read" in refused(bad, good, *given)
    (bad / "cut.jpg").unlink()
    np.save(bad / "many.npy", np.zeros((2, 8, 8, 3), np.uint8))
    assert "must be [height, width, 3]" in refused(bad, good, *given)
    assert "other.pt" in refused(good, good, "--inception", tmp_path / "other.pt")


def test_a_folder_that_cannot_be_written_is_a_sentence(monkeypatch, capsys):
    def run(args):
        raise PermissionError(13, "Permission denied", "out/0000.png")

    monkeypatch.setattr("ldmscale.cli.family.run", run)
    assert main(["family"]) == 1
    assert capsys.readouterr().err == "error: out/0000.png: Permission denied\n"
