"""Captioned scenes drawn on the fly: the embedded study's data, endless and free of any download."""

from __future__ import annotations

from ldmscale.data.scenes.draw import render
from ldmscale.data.scenes.grammar import Dice, Scene, Thing, canonical, captions, draw_scene, split_of
from ldmscale.data.source import SPLITS, Example

__all__ = ["Scene", "SceneSource", "Thing", "canonical", "captions", "render", "split_of"]


class SceneSource:
    """A source (:class:`ldmscale.data.source.Source`) of procedural scenes.

    train, tuning, heldout: how many examples each split has. Example ``index`` of a split depends on (seed, split,
    index) alone, so any slice can be drawn anywhere and a longer split begins with the shorter one.
    """

    def __init__(self, image_size: int, train: int, tuning: int, heldout: int, seed: int = 0):
        self.image_size = image_size
        self.seed = seed
        self._sizes = {"train": train, "tuning": tuning, "heldout": heldout}

    def size(self, split: str) -> int:
        """Number of examples in ``split``."""
        return self._sizes[split]

    def scene(self, split: str, index: int) -> Scene:
        """The scene behind an example; IndexError beyond the split's end."""
        return self._draw(split, index)[0]

    def example(self, split: str, index: int) -> Example:
        """Image, two paraphrases and key of one scene; IndexError beyond the split's end."""
        scene, wording = self._draw(split, index)
        return Example(render(scene, self.image_size), captions(scene, 2, wording), f"{split}-{index:08d}")

    def _draw(self, split: str, index: int) -> tuple[Scene, int]:
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"{split} has {self._sizes[split]} examples, there is no number {index}")
        dice = Dice(self.seed, (index, SPLITS.index(split)))
        scene = draw_scene(dice)
        while split_of(scene) != split:
            scene = draw_scene(dice)
        return scene, dice.word()
