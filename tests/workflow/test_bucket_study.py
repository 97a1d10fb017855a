"""A study whose heavy files are in a bucket alone goes on from there, over a network that fails."""

import os
from pathlib import Path

from fake_gcs import BUCKET, fake_gcs
from folders import RESULTS

from ldmscale import storage

CELL = Path("cells/task=t2i/model=f4/weights=pretrain-40/sampler=ddim/steps=4/cfg=4")
HEAVY = (".npy", ".npz", ".safetensors")


def heavy(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in HEAVY)


def test_a_cell_is_drawn_and_scored_from_a_bucket_and_its_images_go_there(copy, monkeypatch):
    root = f"gs://{BUCKET}/run"
    with fake_gcs() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv(storage.ROOT, root)
        monkeypatch.chdir(copy.path)
        drawn = {path.name: path.read_bytes() for path in heavy(RESULTS / CELL)}
        scores = (RESULTS / CELL / "score.json").read_text()
        for file in (RESULTS / CELL).iterdir():
            file.unlink()
        stored = [path for part in ("encoders", "latents", "prompts", "reference", "models/f4/pretrain")
                  for path in heavy(RESULTS / part)]  # fmt: skip
        for path in stored:
            storage.push(path)
        for path in heavy(RESULTS):
            path.unlink()

        # The bucket is no reason to make anything again.
        target, overlay = RESULTS / CELL / "scores.json", {"storage": root}
        assert set(copy.dry(target, overlay=overlay).jobs) == {"generate", "score"}
        server.seen.clear()
        server.faults = [["DOWNLOAD", 1, "cut"], ["POST", 1, "503"]]
        copy.run(target, overlay=overlay)
        assert {fault for *_, fault in server.seen if fault} == {"cut", "503"}

        assert {path.name: path.read_bytes() for path in heavy(RESULTS / CELL)} == drawn
        assert (RESULTS / CELL / "score.json").read_text() == scores
        assert all(storage.stored(RESULTS / CELL / name).is_file() for name in drawn)
        os.unlink(RESULTS / CELL / "gallery.npy")
        assert storage.fetch(RESULTS / CELL / "gallery.npy").read_bytes() == drawn["gallery.npy"]
        assert not (RESULTS / "models" / "f4" / "pretrain" / "step-20.safetensors").exists()  # which nothing needed
