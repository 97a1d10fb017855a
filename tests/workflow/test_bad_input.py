"""Bad input ends a run with a sentence that names it, before or in the job that reads it; never with a traceback."""

import json

import numpy as np
import pytest
from folders import RESULTS
from helpers import merged
from PIL import Image
from safetensors.numpy import load_file, save_file

from ldmscale.config.study import Study
from ldmscale.errors import UserError
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.provenance import read_json
from ldmscale.training.weights import check_weights

# ---------------------------------------------------------------- the config, before any job starts

CONFIGS = [
    ("sampel: 1\n", ["config: unknown key 'sampel' at the top level"]),
    ("pretrain: {learning_rate: 1e-4}\n", ["config: pretrain.learning_rate is '1e-4'", "1.0e-4"]),
    ("experiments: {grid: {cfg: []}}\n", ["config: experiments.grid.cfg must not be empty"]),
    (
        "models: [{name: f4, filters: 4}, {name: f4, filters: 8}, {name: f8, filters: 9}]\n",
        [
            "config: models: the name 'f4' is used 2 times",
            "config: models: 'f8' has filters 9, which unet.norm_groups 2",
        ],
    ),
]


@pytest.mark.parametrize(("overlay", "said"), CONFIGS, ids=[text.strip()[:40] for text, _ in CONFIGS])
def test_a_bad_config_is_refused_before_any_job_starts(folder, overlay, said):
    answer = folder.refused("-n", overlay=overlay)
    assert all(sentence in answer for sentence in said), answer
    assert "Job stats" not in answer
    assert not (folder / "results").exists()


# ---------------------------------------------------------------- images and captions


def coco(folder, count=20, text=None, **changes):
    """A small data set and the overlay that points at it; ``text`` replaces its annotations."""
    pictures = folder / "photos"
    pictures.mkdir()
    for i in range(count):
        Image.new("RGB", (20 + i, 17), (12 * i, 80, 200)).save(pictures / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
    captions = [{"id": i, "image_id": i, "caption": f"picture {i}"} for i in range(count)]
    (folder / "captions.json").write_text(text or json.dumps({"images": images, "annotations": captions}))
    source = {"source": "coco", "annotations": "captions.json", "images": "photos", "fit": "crop", "split_by": None}
    counts = {"train": None, "tuning": 3, "heldout": 4}
    return {"data": {"train": {**source, "on_error": "refuse", **changes}, "counts": counts}}


DATA = RESULTS / "data" / "data.json"


def test_captions_that_are_not_json(folder):
    answer = folder.refused(DATA, overlay=coco(folder, text='{"images": [{"id": 1, "file'))
    assert "error: captions.json" in answer and "JSON" in answer
    assert not (folder / DATA).exists()


def test_captions_that_are_not_there(folder):
    overlay = coco(folder)
    (folder / "captions.json").unlink()
    assert "error: the annotations captions.json cannot be read" in folder.refused(DATA, overlay=overlay)


@pytest.fixture
def faulty(folder):
    """Four of twenty images cannot be used."""
    overlay = coco(folder)
    (folder / "photos" / "3.png").unlink()
    whole = (folder / "photos" / "5.png").read_bytes()
    (folder / "photos" / "5.png").write_bytes(whole[: len(whole) // 2])
    (folder / "photos" / "7.png").write_bytes(b"no image at all")
    annotations = json.loads((folder / "captions.json").read_text())
    annotations["images"][9]["file_name"] = "../captions.json"
    (folder / "captions.json").write_text(json.dumps(annotations))
    return folder, overlay


def test_images_that_cannot_be_used_are_refused_by_name(faulty):
    folder, overlay = faulty
    answer = folder.refused(DATA, overlay=overlay)
    for name in ("3.png", "5.png", "7.png", "../captions.json"):
        assert name in answer
    assert not (folder / DATA).exists()


def test_images_that_cannot_be_used_are_skipped_and_counted_where_the_config_says_so(faulty):
    folder, overlay = faulty
    overlay["data"]["train"]["on_error"] = "skip"
    folder.run(DATA, overlay=overlay)
    manifest = read_json(folder / DATA)
    assert manifest["counts"] == {"train": 9, "tuning": 3, "heldout": 4}
    (sentence,) = manifest["skipped"]
    assert "16 of 20 usable" in sentence and all(name in sentence for name in ("3.png", "5.png", "7.png"))


def test_more_images_asked_for_than_there_are(folder):
    overlay = coco(folder)
    overlay["data"]["counts"]["train"] = 100
    answer = folder.refused(DATA, overlay=overlay)
    assert "100 train examples were asked for, the data has 13" in answer


# ---------------------------------------------------------------- weights

NET = AutoencoderConfig(**Study(merged("smoke.yaml")).autoencoder_params())


def remove(tensors, name):
    del tensors[name]


def reshape(tensors, name):
    tensors[name] = tensors[name].reshape(-1)


def spoil(tensors, name):
    tensors[name].flat[0] = np.nan


def add(tensors, name):
    tensors["another.kernel"] = np.zeros(3, np.float32)


FAULTS = [(remove, "lacks tensor"), (reshape, "has shape"), (spoil, "not finite"), (add, "has the unknown tensor")]


@pytest.fixture
def weights(study, tmp_path):
    """The study's autoencoder, as a file to give to another; changed by ``fault``, and the tensor's name."""

    def make(fault=None):
        tensors = load_file(study / read_json(study / RESULTS / "encoders" / "autoencoder.json")["weights"])
        name = max(tensors, key=lambda n: tensors[n].ndim)
        if fault:
            fault(tensors, name)
        save_file(tensors, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors", "another.kernel" if fault is add else name

    return make


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_a_weights_file_that_does_not_fit_is_refused_naming_the_tensor(weights, fault, said):
    path, name = weights(fault)
    with pytest.raises(UserError) as caught:
        check_weights(str(path), NET)
    assert f"'{name}'" in str(caught.value) and said in str(caught.value) and str(path) in str(caught.value)


AUTOENCODER = RESULTS / "encoders" / "autoencoder.json"


def test_given_weights_are_checked_by_the_workflow_and_used_instead_of_training(weights, folder):
    path, name = weights(reshape)
    overlay = {"autoencoder": {"weights": str(path)}}
    answer = folder.refused(AUTOENCODER, overlay=overlay)
    assert f"error: {path}: tensor '{name}' has shape" in answer
    assert not (folder / AUTOENCODER).exists()

    weights()  # the same file, mended: its bytes are what counts
    folder.run(AUTOENCODER, overlay=overlay)
    assert read_json(folder / AUTOENCODER)["weights"] == str(path)
    assert not (folder / AUTOENCODER.with_suffix("")).exists()


def test_weights_that_are_not_there(folder):
    answer = folder.refused(AUTOENCODER, overlay={"autoencoder": {"weights": "filled/in/later.safetensors"}})
    assert "error: filled/in/later.safetensors does not exist" in answer


def test_inception_weights_that_are_none(copy):
    (copy / "inception-2015-12-05.pt").write_bytes(b"not a network")
    answer = copy.refused(
        RESULTS / "reference" / "reference.json", overlay={"metrics": {"inception": "inception-2015-12-05.pt"}}
    )
    assert "error: Inception weights inception-2015-12-05.pt are not" in answer


# ---------------------------------------------------------------- photos to restore, and subjects

PAIRS, SUBJECTS = RESULTS / "superres" / "pairs.json", RESULTS / "dreambooth" / "subjects.json"
PROMPT_FILE = """Classes
subject_name,class
toy,toy
cup,cup

Object Prompts
prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
]

Live Subject Prompts
prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
]
"""


@pytest.fixture(scope="module")
def used(study, tmp_path_factory):
    """A copy of the finished study for jobs that are to fail, each of which leaves nothing."""
    return study.copy(tmp_path_factory.mktemp("used") / "study")


def picture(seed, width, height):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def of_every_kind(folder):
    """One picture in each way that files of photos come in."""
    folder.mkdir(parents=True)
    colour = picture(0, 24, 20)
    colour.convert("L").save(folder / "grey.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(folder / "16-bit.png")
    colour.save(folder / "two.jpg", "MPO", save_all=True, append_images=[colour])
    return folder


def low_of_another_size(root):
    for name, size in (("hr", 16), ("lr", 5)):
        (root / name).mkdir(parents=True)
        picture(1, size, size).save(root / name / "a.png")
    return {"superres": {"evaluation": f"{root}/hr", "evaluation_lr": f"{root}/lr"}}


def low_without_partner(root):
    overlay = low_of_another_size(root)
    picture(2, 16, 16).save(root / "hr" / "b.png")
    return overlay


def small_photo(root):
    root.mkdir()
    picture(1, 40, 15).save(root / "small.png")
    return {"superres": {"train": str(root)}}


def dataset(root, images=2, **changes):
    (root / "toy").mkdir(parents=True)
    (root / "prompts_and_classes.txt").write_text(PROMPT_FILE)
    for i in range(images):
        picture(i, 20, 24).save(root / "toy" / f"{i}.png")
    return {"dreambooth": {"folder": str(root), "subjects": ["toy"], **changes}, "figures": {"fig06": None}}


DOWNSTREAM = [
    (low_of_another_size, PAIRS, "lr/a.png has 5 x 5 pixels; pairs of 16 pixels need 4 x 4 of it"),
    (low_without_partner, PAIRS, "lr has no file b.png, which"),
    (small_photo, PAIRS, "small.png: 40 x 15 pixels, a patch needs 16 of both"),
    (lambda root: dataset(root, images=1), SUBJECTS, "toy holds one image (0.png)"),
    (lambda root: dataset(root, images=0), SUBJECTS, "toy holds no image (.jpg"),
    (lambda root: dataset(root, subjects=["cup"]), SUBJECTS, "there is no subject 'cup' in"),
    (
        lambda root: {"dreambooth": {"subjects": ["cat"]}, "figures": {"fig06": None}},
        SUBJECTS,
        "there is no scene subject 'cat'; there are hat_circle,",
    ),
]


@pytest.mark.parametrize(("make", "target", "said"), DOWNSTREAM, ids=[said for _, _, said in DOWNSTREAM])
def test_photos_and_subjects_that_cannot_be_used_are_named(used, tmp_path, make, target, said):
    answer = used.refused(target, overlay=make(tmp_path / "photos"))
    assert any("error: " in line and said in line for line in answer.splitlines()), answer
    assert not (used / target).exists()


def test_photos_of_every_kind_of_file_are_taken(copy, tmp_path):
    photos = of_every_kind(tmp_path / "photos")
    overlay = dataset(tmp_path / "subjects", images=0)
    of_every_kind(tmp_path / "subjects" / "more")
    for path in (tmp_path / "subjects" / "more").iterdir():
        path.rename(tmp_path / "subjects" / "toy" / path.name)
    overlay["superres"] = {"train": str(photos), "evaluation": str(photos), "patches": 2, "degradation": "real-esrgan"}
    overlay["autoencoder"] = {"photos": str(photos)}
    autoencoder, before = RESULTS / "encoders/autoencoder.json", read_json(copy / RESULTS / "encoders/autoencoder.json")
    copy.run(PAIRS, SUBJECTS, autoencoder, overlay=overlay)
    assert read_json(copy / autoencoder)["digest"] != before["digest"]
    assert f"half of the images are crops of {photos}" in (copy / RESULTS / "logs" / "autoencoder.log").read_text()
    assert read_json(copy / PAIRS)["patches"] == 4 * 2
    hr = np.load(copy / RESULTS / "superres" / "hr.npy")
    assert hr.shape == (8, 16, 16, 3) and (hr.reshape(8, -1).std(axis=1) > 10).all()
    assert len(list((copy / RESULTS / "superres" / "lr").iterdir())) == 8  # and no more of the 64 that were there
    about = read_json(copy / SUBJECTS)["subjects"]
    assert about == {"toy": {"class_name": "toy", "live": False, "prompts": ["a toy in the snow", "a red toy"]}}
    images = np.load(copy / RESULTS / "dreambooth" / "toy" / "images.npy")
    assert images.shape == (4, 16, 16, 3) and (images.reshape(4, -1).std(axis=1) > 10).all()
