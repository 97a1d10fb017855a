"""Text to token ids: byte-level byte-pair encoding in CLIP's layout (start, text, end, padding).

There are two: the one trained here, and CLIP's published one (Radford et al., arXiv 2103.00020). In both, start is
``vocab_size - 2`` and end ``vocab_size - 1``: CLIP's text tower reads its embedding at the end token, the largest id.
The trained one pads with 0; its file is the ``tokenizers`` library's own JSON and holds everything, the special ids
too. The published one's padding is the end token unless its files say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from ldmscale.errors import UserError
from ldmscale.provenance import atomic_path
from ldmscale.storage import fetch

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # one symbol per byte: no text is unknown
MIN_VOCAB_SIZE = len(ALPHABET) + 3

WORD_END = "</w>"  # what a published token ends in where a word does
PUBLISHED_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The published special tokens, in the order in which transformers registers them, where the files do not name others.
PUBLISHED_ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")  # the second overrides the first


class Tokenizer:
    """Encodes captions; has ``vocab_size``, ``pad_id``, and the last two ids, ``start_id`` and ``end_id``."""

    def __init__(self, backend: Backend, pad: str = PAD):
        self.backend = backend
        self.pad_id = backend.token_to_id(pad)
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
        encodings = self.backend.encode_batch([_sound(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
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
    """The tokenizer that :func:`train_tokenizer` wrote, or CLIP's published one.

    ``path`` is a file, or a folder with a tokenizer.json or with vocab.json and merges.txt. A published tokenizer's
    padding is read from the special_tokens_map.json or tokenizer_config.json beside it. It gives the ids that
    transformers' ``CLIPTokenizer`` gives, to special tokens spelled out in a text too; so with Stable Diffusion 2's
    padding "!" any "!" in a text is the padding's id. Raises UserError for a missing, broken or foreign file.
    """
    path = fetch(path, beside=True)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        if not (path / "vocab.json").is_file() or not (path / "merges.txt").is_file():
            raise UserError(f"{path} holds no tokenizer: it must have tokenizer.json, or vocab.json and merges.txt")
        with _reading(path):
            vocab, merges = models.BPE.read_file(str(path / "vocab.json"), str(path / "merges.txt"))
            return _published(vocab, merges, {}, path, path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise UserError(f"the tokenizer {file} cannot be read: it is no regular file")
    with _reading(file):
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
        model = content["model"]
        if PAD in model["vocab"]:
            return _trained(text, file)
        if model.get("end_of_word_suffix") == WORD_END:
            merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
            added = {token["content"]: token["normalized"] for token in content.get("added_tokens", ())}
            return _published(model["vocab"], merges, added, file.parent, file)
    raise UserError(f"{file} is neither a tokenizer of this package nor CLIP's: it has no {PAD} and no '{WORD_END}'")


def save_for_transformers(tokenizer: Tokenizer, folder: str | Path, context_length: int) -> str:
    """Writes ``folder`` for transformers and diffusers -> the name of transformers' class for it.

    ``AutoTokenizer.from_pretrained(folder)`` then gives what ``tokenizer.encode(texts, context_length)`` gives, if
    called with ``padding="max_length", truncation=True``. (No text encodes to special tokens of a trained tokenizer,
    there as here; the file tokenizer.json read by the ``tokenizers`` library alone behaves the same.)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = Backend.from_str(tokenizer.backend.to_str())
    published = backend.model.end_of_word_suffix == WORD_END
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokenizer.start_id), (END, tokenizer.end_id)]
    )
    backend.decoder = decoders.ByteLevel()
    roles = {"bos_token": START, "eos_token": END, "pad_token": backend.id_to_token(tokenizer.pad_id)}
    if published:
        roles["unk_token"] = END
    settings = {
        **roles,
        "tokenizer_class": "CLIPTokenizer" if published else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        # Keeps transformers from reading the special tokens' spelling in a text as the tokens.
        "split_special_tokens": not published,
    }
    files = {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=1),
        "special_tokens_map.json": json.dumps(roles, indent=1),
    }
    if published:  # what CLIPTokenizer reads before transformers 5
        model = json.loads(backend.to_str())["model"]
        files["vocab.json"] = json.dumps(model["vocab"], ensure_ascii=False)
        files["merges.txt"] = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
    for name, text in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return settings["tokenizer_class"]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise UserError(f"{path} is not a tokenizer file: {reason}") from error


def _trained(text: str, file: Path) -> Tokenizer:
    tokenizer = Tokenizer(Backend.from_str(text))
    ids = [tokenizer.backend.token_to_id(token) for token in (PAD, START, END)]
    _check_ids(tokenizer.backend.get_vocab(with_added_tokens=False), file)
    if ids != [0, tokenizer.start_id, tokenizer.end_id]:
        raise UserError(f"{file} is not a tokenizer of this package: it lacks {PAD}, {START} or {END} in their places")
    return tokenizer


def _published(
    vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, bool], folder: Path, source: Path
) -> Tokenizer:
    """CLIP's tokenizer as transformers builds it; ``added`` is whether each token that the file adds is looked for in
    the normalised text, and ``folder`` holds the settings."""
    _check_ids(vocab, source)
    if (vocab.get(START), vocab.get(END)) != (len(vocab) - 2, len(vocab) - 1):
        raise UserError(f"{source} is not CLIP's tokenizer: its last two tokens must be {START} and {END}")
    if not all(symbol in vocab and symbol + WORD_END in vocab for symbol in ALPHABET):
        raise UserError(f"{source} is not CLIP's tokenizer: its vocabulary lacks some of the 256 bytes")
    roles = PUBLISHED_ROLES | _settings(folder)
    special = {}
    for role in roles.values():  # of roles that share a token the last counts, as in transformers
        role = role if isinstance(role, dict) else {"content": role}
        special[role["content"]] = added.get(role["content"], role.get("normalized", False))
    for token in (*special, *added):
        if token not in vocab or token not in special:
            raise UserError(f"{source} has the special token '{token}', which is none of CLIP's vocabulary")
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token=END, end_of_word_suffix=WORD_END))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(PUBLISHED_PATTERN), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.add_special_tokens([AddedToken(token, normalized=flag, special=True) for token, flag in special.items()])
    pad = roles["pad_token"]
    return Tokenizer(backend, pad["content"] if isinstance(pad, dict) else pad)


def _check_ids(vocab: dict[str, int], source: Path) -> None:
    """Raises UserError unless ids are 0 to n - 1: an embedding has no row for another."""
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{source} is damaged: the ids of its {len(vocab)} tokens are not 0 to {len(vocab) - 1}")


def _settings(folder: Path) -> dict[str, Any]:
    """The special tokens that the files beside a published tokenizer name, by their roles in it."""
    roles: dict[str, Any] = {}
    for name in SETTINGS:
        if (folder / name).is_file():
            with _reading(folder / name):
                content = json.loads((folder / name).read_text(encoding="utf-8"))
                roles |= {role: content[role] for role in PUBLISHED_ROLES if content.get(role)}
    return roles


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
