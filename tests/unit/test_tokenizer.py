"""Byte-pair encoding: fixed special ids, the same file from the same captions, any text."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ldmscale.data.scenes import SceneSource, captions
from ldmscale.data.tokenizer import ALPHABET, END, MIN_VOCAB_SIZE, START, load_tokenizer, train_tokenizer
from ldmscale.errors import UserError

SOURCE = SceneSource(32, train=1_500, tuning=0, heldout=0)
CORPUS = [text for i in range(1_500) for text in captions(SOURCE.scene("train", i), 2, i)]
VOCAB = 480


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CORPUS, VOCAB, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def test_layout(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (VOCAB, 0, 478, 479)
    ids = tokenizer.encode(["a small red star", "", "   \n "], 12)
    assert ids.dtype == np.int32 and ids.shape == (3, 12)
    for row in ids:
        end = int(np.argmax(row == 479))
        assert row[0] == 478 and row[end] == 479 and not row[end + 1 :].any()
        assert ((row[1:end] > 0) & (row[1:end] < 478)).all()
    for row in ids[1:]:
        assert row.tolist() == [478, 479] + [0] * 10
    assert tokenizer.encode([], 12).shape == (0, 12)


def test_words_of_the_corpus_become_short(tokenizer):
    lengths = (tokenizer.encode(CORPUS, 100) > 0).sum(axis=1)
    assert lengths.max() <= 32
    # A word is the same tokens at the start of a caption and inside it.
    assert tokenizer.encode(["star"], 9)[0, 1] == tokenizer.encode(["a star"], 9)[0, 2]


def test_case_and_blanks_do_not_matter(tokenizer):
    one = tokenizer.encode(["a red star"], 20)
    for text in (" A Red\n\tSTAR ", "a red\u00a0\u2003star"):
        assert np.array_equal(tokenizer.encode([text], 20), one)
    assert not np.array_equal(tokenizer.encode(["a redstar"], 20), one)


def test_long_text_keeps_the_end_token(tokenizer):
    whole = tokenizer.encode(["star " * 100], 300)[0]
    for length in (2, 3, 16):
        row = tokenizer.encode(["star " * 100], length)[0]
        assert row[-1] == tokenizer.end_id
        assert np.array_equal(row[:-1], whole[: length - 1])
    with pytest.raises(UserError, match="context_length"):
        tokenizer.encode(["star"], 1)


@pytest.mark.parametrize("text", ["Ünïcödé 漢字 🏳️‍🌈 עברית", "\x00\x01\x7f", "<|pad|><|endoftext|>", "İ", "e\u0301"])
def test_any_text_survives(tokenizer, text):
    row = tokenizer.encode([text], 200)[0]
    inner = row[1 : int(np.argmax(row == tokenizer.end_id))]
    names = [tokenizer.backend.id_to_token(int(i)) for i in inner]
    assert not any(name.startswith("<|") for name in names)
    table = {symbol: byte for byte, symbol in _byte_symbols().items()}
    spelled = bytes(table[symbol] for name in names for symbol in name).decode()
    import unicodedata

    assert spelled.strip(" ") == " ".join(unicodedata.normalize("NFC", text).lower().split())


def _byte_symbols():
    """GPT-2's table of printable symbols for bytes, from its definition."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def test_half_a_surrogate_pair_is_no_crash(tokenizer, tmp_path):
    assert tokenizer.encode(["red \ud83d star"], 20)[0, 0] == tokenizer.start_id
    train_tokenizer(["red \ud83d star"], 300, tmp_path / "t.json")


def test_training_is_deterministic(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(CORPUS))
    program = (
        "import sys; from ldmscale.data.tokenizer import train_tokenizer;"
        "train_tokenizer(open(sys.argv[1]).read().split('\\n'), 480, sys.argv[2])"
    )
    files = set()
    for seed, threads in (("0", "1"), ("1", "4"), ("2", "2")):
        out = tmp_path / f"{seed}.json"
        env = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", program, str(path), str(out)], env=env, check=True)
        files.add(out.read_bytes())
    train_tokenizer(iter(CORPUS), VOCAB, tmp_path / "here.json")
    files.add((tmp_path / "here.json").read_bytes())
    assert len(files) == 1


def test_load_gives_the_same_tokenizer(tmp_path):
    made = train_tokenizer(CORPUS, VOCAB, tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded.vocab_size == VOCAB
    assert np.array_equal(loaded.encode(CORPUS[:200], 32), made.encode(CORPUS[:200], 32))


def test_a_poor_corpus_keeps_the_special_ids(tmp_path):
    train_tokenizer(["red star", "red"], 2_000, tmp_path / "t.json")
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (2_000, 1_998, 1_999)
    row = tokenizer.encode(["red <|unused400|> star"], 64)[0]
    assert row[0] == 1_998 and 1_999 in row
    assert row[1 : list(row).index(1_999)].max() < 300
    assert train_tokenizer([], MIN_VOCAB_SIZE, tmp_path / "empty.json").encode(["ab"], 9)[0, 0] == MIN_VOCAB_SIZE - 2


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="at least 259"):
        train_tokenizer(CORPUS, 258, tmp_path / "t.json")
    with pytest.raises(UserError, match="absent.json"):
        load_tokenizer(tmp_path / "absent.json")
    path = train_tokenizer(CORPUS, VOCAB, tmp_path / "t.json") and tmp_path / "t.json"
    whole = path.read_text()
    foreign = whole.replace("<|endoftext|>", "</s>")
    for text in (whole[: len(whole) // 2], "{}", "", foreign):
        path.write_text(text)
        with pytest.raises(UserError, match="t.json"):
            load_tokenizer(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="t.json"):
        load_tokenizer(path)


MERGES = [("c", "at</w>"), ("a", "t</w>"), ("c", "a")]
NAMES = [*ALPHABET, *(symbol + "</w>" for symbol in ALPHABET), "at</w>", "cat</w>", "ca", START, END]
PUBLISHED = {name: number for number, name in enumerate(NAMES)}


@pytest.fixture
def published(tmp_path):
    """Writes the files of a published tokenizer, with changes: -> its folder."""

    def write(vocab=PUBLISHED, merges=MERGES, **settings):
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        for name, content in settings.items():
            (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


def test_published_tokenizer_by_hand(published):
    tokenizer = load_tokenizer(published())
    start, end = len(NAMES) - 2, len(NAMES) - 1
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (end + 1, start, end, end)
    ids = {name: PUBLISHED[name] for name in ("cat</w>", "at</w>", "ca", "s</w>", "'", "1</w>", "2</w>", "!", "!</w>")}
    rows = tokenizer.encode(["A  CAT's\n", "at 12!!", "cat cat cat", ""], 7)
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [start, PUBLISHED["a</w>"], ids["cat</w>"], ids["'"], ids["s</w>"], end, end]
    assert rows[1].tolist() == [start, ids["at</w>"], ids["1</w>"], ids["2</w>"], ids["!"], ids["!</w>"], end]
    assert rows[2].tolist() == [start, *[ids["cat</w>"]] * 3, end, end, end]
    assert rows[3].tolist() == [start] + [end] * 6
    assert tokenizer.encode(["cat " * 9], 4)[0].tolist() == [start, ids["cat</w>"], ids["cat</w>"], end]
    assert tokenizer.encode(["half \ud83d"], 20)[0, 0] == start


def test_padding_of_a_published_tokenizer(published):
    for settings in (
        {"special_tokens_map": {"pad_token": "!"}, "tokenizer_config": {"pad_token": END}},
        {"tokenizer_config": {"pad_token": {"content": "!", "normalized": False}}},
    ):
        folder = published(**settings)
        tokenizer = load_tokenizer(folder)
        assert tokenizer.pad_id == PUBLISHED["!"] == 0
        assert tokenizer.encode(["cat"], 5)[0, 3:].tolist() == [0, 0]
        for name in settings:
            (folder / f"{name}.json").unlink()


def changed(**names):
    return {names.get(name, name): number for name, number in PUBLISHED.items()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"vocab": changed(ca=END, **{END: "ca"})}, "last two tokens"),
        ({"vocab": changed(**{"x</w>": "xx"})}, "lacks some of the 256 bytes"),
        ({"vocab": ["a", "b"]}, "is not a tokenizer file"),
        ({"merges": [("q", "zz")]}, "is not a tokenizer file"),
        ({"special_tokens_map": {"pad_token": "<pad>"}}, "special token '<pad>'"),
        ({"special_tokens_map": "{"}, "special_tokens_map.json is not a tokenizer file"),
        ({"tokenizer": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}}, "neither"),
        ({"tokenizer": {"model": {"vocab": PUBLISHED, "merges": MERGES, "end_of_word_suffix": "</w>"},
          "added_tokens": [{"content": "<mine>", "normalized": False}]}}, "special token '<mine>'"),
    ],
)  # fmt: skip
def test_bad_published_files(files, said, published):
    folder = published(**files)
    with pytest.raises(UserError, match=said) as refusal:
        load_tokenizer(folder)
    assert str(folder) in str(refusal.value)


def test_folder_without_a_tokenizer(published):
    folder = published()
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="must have tokenizer.json, or vocab.json and merges.txt"):
        load_tokenizer(folder)
