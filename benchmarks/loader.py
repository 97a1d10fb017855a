"""How many images a second a training step eats, and how many the loader serves, at the paper's shapes.

`python benchmarks/loader.py [THREADS ...]` (default 0 1 2): latents of 512 x 512 images and 77 text states of width
1024, float16, in 80 shards of a temporary folder (0.4 GiB, so from the page cache: a disk or network takes longer).
Beside it a plain PyTorch DataLoader over the same files, in the same order, in the same run.
"""

import os
import sys
import tarfile
import tempfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ldmscale.cells.cost import flops, model_shape
from ldmscale.config.read import read_study
from ldmscale.data.encoded import Latents, save_array, save_index, save_shard, shard_folder
from ldmscale.data.loader import batches
from ldmscale.data.order import epoch_batch
from ldmscale.data.records import write_split
from ldmscale.data.tars import TarSource
from ldmscale.diffusion.schedule import Schedule
from ldmscale.models.unet import UNetConfig
from ldmscale.tasks.pretrain import PretrainTask

V5E, MFU = 197e12, 0.4  # FLOP/s of a chip in bfloat16, the share of them that a training step is assumed to reach
SHARDS, IMAGES, BATCH, STEPS, ROUNDS = 80, 24, 128, 15, 3


def appetite(study, bytes_each):
    """Images a second and chip of each member's training step: three times the FLOPs of a forward pass."""
    print(f"{'model':>6} {'images/s a chip':>16} {'MB/s a chip':>12}")
    for model in study.models.values():
        rate = V5E * MFU / (3 * flops(model_shape(study, model)))
        print(f"{model.name:>6} {rate:16.1f} {rate * bytes_each / 1e6:12.1f}")


def write(folder, study):
    draw = np.random.default_rng(0)
    side, text = study.latent_size, study.text_params()
    moments, state = (side, side, 4), (text["context_length"], text["width"])
    for number in range(SHARDS):
        mean, std = (draw.random((IMAGES, *moments), np.float32).astype(np.float16) for _ in range(2))
        states = draw.random((IMAGES, *state), np.float32).astype(np.float16)
        save_shard(folder, number, "", mean, std, states, np.ones(IMAGES))
    save_array(folder / "null.npy", np.zeros(state, np.float16))
    save_index(folder, SHARDS, "")
    return (np.prod(moments) * 2 + np.prod(state)) * 2


class Torch(Dataset):
    """The same examples as anybody would write it: one map a file, one example at a time."""

    def __init__(self, folder):
        names = ("mean", "std", "states")
        self.maps = [
            {name: np.load(shard_folder(folder, n) / f"{name}.npy", mmap_mode="r") for name in names}
            for n in range(SHARDS)
        ]

    def __len__(self):
        return SHARDS * IMAGES

    def __getitem__(self, i):
        return {name: torch.from_numpy(array[i % IMAGES].copy()) for name, array in self.maps[i // IMAGES].items()}


def per_second(iterator):
    """Images a second of the last ``STEPS`` batches; the first of them starts the workers."""
    next(iterator)
    began = time.perf_counter()
    served = sum(1 for _ in iterator)
    return served * BATCH / (time.perf_counter() - began)


def serve(folder, threads, rounds=ROUNDS):
    """Images a second of each round, here and of the DataLoader, for each number of threads."""
    latents, net = Latents.load(folder, 1.0), UNetConfig(64, (1,), 1, (True,), heads=1, norm_groups=1, context_width=1)
    task = PretrainTask(net, Schedule(), latents, BATCH, 0.1, 0)
    count = SHARDS * IMAGES
    order = np.concatenate([epoch_batch(count, BATCH, 0, step) for step in range(STEPS)]).tolist()
    loader = partial(DataLoader, Torch(folder), BATCH, sampler=order)
    for workers in threads:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(per_second(batches(task.batch, 0, STEPS, workers)))
            theirs.append(per_second(iter(loader(num_workers=workers))))
        yield workers, ours, theirs


def prepare(folder, workers):
    """JPEGs of 640 x 480 in tars to record shards of 512 x 512."""
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 255, (30, 40, 3), np.uint8)).resize((640, 480))
    file = BytesIO()
    photo.save(file, "jpeg", quality=90)
    (folder / "tars").mkdir()
    for number in range(4):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for i in range(50):
                for kind, content in (("jpg", file.getvalue()), ("txt", b"a photo")):
                    info = tarfile.TarInfo(f"{i}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
    source = TarSource(folder / "tars", 512, "crop", 2, 2, "skip", 0, folder / "index")
    count = source.size("train")
    for number in filter(None, workers):
        began = time.perf_counter()
        write_split(folder / f"records-{number}", source, "train", count, 25, "", number)
        print(f"{number:>8} {count / (time.perf_counter() - began):12.0f}")


def main(threads):
    repo = Path(__file__).parents[1]
    study = read_study([repo / "configs" / "paper.yaml"], repo)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        each = write(folder / "latents", study)
        print(f"{each / 1e6:.3f} MB an image\n")
        appetite(study, each)
        print(f"\n{'threads':>8} {'images/s':>12} {'DataLoader':>12} {'ratio':>8}   (threads there: worker processes)")
        for workers, ours, theirs in serve(folder / "latents", threads):
            print(f"{workers:>8} {max(ours):12.0f} {max(theirs):12.0f} {max(ours) / max(theirs):8.2f}")
        print(f"\n{'workers':>8} {'images/s':>12}   (prepare: tars of JPEGs to records)")
        prepare(folder, threads)
    print(f"\n{os.cpu_count()} CPUs")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [0, 1, 2])
