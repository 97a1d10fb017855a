"""Text to token ids: byte-level byte-pair encoding in CLIP's layout (start, text, end, padding).

The ids are fixed by the size of the vocabulary: padding 0, start ``vocab_size - 2``, end ``vocab_size - 1``, as in
CLIP, whose text tower reads its embedding at the end token, the largest id. The file is the ``tokenizers`` library's
own JSON, and holds everything, the special ids too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # one symbol per byte: no text is unknown
MIN_VOCAB_SIZE = len(ALPHABET) + 3


class Tokenizer:
    """Encodes captions; ``vocab_size``, ``pad_id`` = 0, ``start_id`` and ``end_id`` are the last two ids."""

    pad_id = 0

    def __init__(self, backend: Backend):
        self.backend = backend
        self.vocab_size = backend.get_vocab_size(with_added_tokens=False)
        self.start_id = self.vocab_size - 2
        self.end_id = self.vocab_size - 1

    def encode(self, texts: Sequence[str], context_length: int) -> np.ndarray:
        """int32 [N, context_length]: start, the text (lower case, blanks collapsed), end, padding.

        A longer text is cut so that the end token is always there. The empty text is start, end, padding.
        """
        if context_length < 2:
            raise UserError(f"context_length is {context_length}, it must be at least 2 (start and end token)")
        ids = np.full((len(texts), context_length), self.pad_id, np.int32)
        for row, encoding in zip(ids, self.backend.encode_batch([_sound(text) for text in texts]), strict=True):
            tokens = [self.start_id, *encoding.ids[: context_length - 2], self.end_id]
            row[: len(tokens)] = tokens
        return ids


def train_tokenizer(captions: Iterable[str], vocab_size: int, path: str | Path) -> Tokenizer:
    """Learns merges from ``captions``, writes the tokenizer to ``path`` and returns it.

    The same captions give the same bytes. A corpus too poor for ``vocab_size`` leaves ids unused; the special ids stay
    where they are. Raises UserError where ``vocab_size`` has no room for the 256 bytes and the three special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"the tokenizer's vocab_size is {vocab_size}, it must be at least {MIN_VOCAB_SIZE}")
    learner = _backend(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 3, initial_alphabet=ALPHABET, show_progress=False)
    learner.train_from_iterator((_sound(text) for text in captions), trainer)
    learned = json.loads(learner.to_str())["model"]
    # Ids move up by one to make room for padding. The special names sit in the vocabulary without a merge that leads
    # to them, so no text, not even their own spelling, encodes to them.
    vocab = {token: number + 1 for token, number in learned["vocab"].items()}
    vocab |= {f"<|unused{number}|>": number for number in range(len(vocab) + 1, vocab_size - 2)}
    vocab |= {PAD: 0, START: vocab_size - 2, END: vocab_size - 1}
    backend = _backend(models.BPE(vocab=vocab, merges=[tuple(pair) for pair in learned["merges"]]))
    with atomic_path(path) as temporary:
        temporary.write_text(backend.to_str(pretty=True), encoding="utf-8")
    return Tokenizer(backend)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that :func:`train_tokenizer` wrote. Raises UserError for a missing, broken or foreign file."""
    try:
        tokenizer = Tokenizer(Backend.from_str(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise UserError(f"{path} is not a tokenizer file: {error}") from error
    ids = [tokenizer.backend.token_to_id(token) for token in (PAD, START, END)]
    if ids != [tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id]:
        raise UserError(f"{path} is not a tokenizer of this package: it lacks {PAD}, {START} or {END} in their places")
    return tokenizer


def _backend(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # A leading blank, so that a word is the same tokens at the start of a caption as inside it.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def _sound(text: str) -> str:
    # JSON can carry half of a surrogate pair, which no encoder accepts.
    return text.encode("utf-8", "replace").decode("utf-8")
