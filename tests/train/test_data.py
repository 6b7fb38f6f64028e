"""Batches hold every token once, targets come next, and the position survives a restart."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from archzoo.train.data import Batch, Dataset, load
from archzoo.train.tokenizer import tokenizer

END = 256


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents from 1 to about 300 bytes, each of which can be told from its neighbours."""
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(60):
        (folder / f"{n:02}.txt").write_text(f"{n:02}" + "".join(chr(97 + (n + k) % 26) for k in range(n * n // 12)))
    (folder / "tiny.txt").write_text("é")
    return folder


def read(corpus: Path, **settings: int | float | str) -> Dataset:
    return load(str(corpus), **{"length": 32, "batch": 4, "heldout": 0.2, **settings})  # type: ignore[arg-type]


def epoch(data: Dataset) -> list[Batch]:
    """The rows of the first epoch, one by one."""
    batches = -(-len(data.train_rows) // data.batch)
    rows = [{k: v[i] for k, v in b.items()} for b in itertools.islice(data.train(), batches) for i in range(data.batch)]
    return rows[: len(data.train_rows)]


def pieces(rows: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """(tokens, targets) of every segment of the rows."""
    return [
        (list(row["tokens"][row["segment_ids"] == s]), list(row["targets"][row["segment_ids"] == s]))
        for row in rows
        for s in range(1, row["segment_ids"].max() + 1)
    ]


def equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)


def stream(corpus: Path, data: Dataset) -> tuple[list[bytes], list[bytes]]:
    """The documents of the corpus, split as their own bytes are found in the training stream."""
    trained = bytes(data.train_rows.targets[data.train_rows.targets != END].astype(np.uint8))
    texts = [path.read_bytes() for path in sorted(corpus.iterdir())]
    return [text for text in texts if text in trained], [text for text in texts if text not in trained]


def test_a_batch_has_the_promised_arrays(corpus: Path) -> None:
    for batch in (next(read(corpus).train()), next(read(corpus).heldout())):
        dtypes = {"tokens": np.int32, "targets": np.int32, "segment_ids": np.int32, "weights": np.float32}
        assert {name: part.dtype for name, part in batch.items()} == dtypes
        assert {part.shape for part in batch.values()} == {(4, 32)}


def test_targets_are_the_next_tokens(corpus: Path) -> None:
    for tokens, targets in pieces(epoch(read(corpus))):
        assert tokens[1:] == targets[:-1]


def test_segments_never_mix_documents(corpus: Path) -> None:
    data = read(corpus)
    documents = [text.encode() + b"$" for text in map(Path.read_text, corpus.iterdir())]
    for tokens, targets in pieces(epoch(data)):
        assert END not in targets[:-1]
        assert END not in tokens[1:]
        predicted = bytes(ord("$") if t == END else t for t in targets)
        assert any(predicted in document for document in documents)
        if tokens[0] == END:
            assert any(document.startswith(predicted) for document in documents)


def test_segments_are_numbered_from_one_and_padding_is_zero(corpus: Path) -> None:
    for row in epoch(read(corpus)):
        segments = row["segment_ids"]
        real = segments > 0
        np.testing.assert_array_equal(row["weights"], real)
        np.testing.assert_array_equal(np.unique(segments[real]), np.arange(1, segments.max() + 1))
        assert (np.diff(segments[real]) >= 0).all()
        assert real[: real.sum()].all()  # padding only at the end


def test_every_training_token_is_predicted_once_an_epoch(corpus: Path) -> None:
    data = read(corpus)
    train, _ = stream(corpus, data)
    expected = Counter(b"".join(train)) + Counter({END: len(train)})
    assert Counter(t for _, targets in pieces(epoch(data)) for t in targets) == expected
    assert sum(expected.values()) == data.train_tokens


def test_every_token_is_read_once_an_epoch(corpus: Path) -> None:
    read_tokens, predicted = zip(*pieces(epoch(read(corpus))), strict=True)
    assert Counter(itertools.chain(*read_tokens)) == Counter(itertools.chain(*predicted))  # bos and eos are one id here


def test_only_the_last_row_is_padded(corpus: Path) -> None:
    rows = epoch(read(corpus))
    assert sum(row["weights"].min() == 0 for row in rows) <= 1
    assert sum(row["weights"].sum() for row in rows) > (len(rows) - 1) * 32


def test_heldout_batches_are_the_heldout_documents_in_order(corpus: Path) -> None:
    data = read(corpus)
    _, heldout = stream(corpus, data)
    batches = list(data.heldout())
    predicted = np.concatenate([batch["targets"][batch["weights"] == 1] for batch in batches])
    assert list(predicted) == [t for text in heldout for t in (*text, END)]
    assert len(predicted) == data.heldout_tokens
    assert data.heldout_bytes == sum(map(len, heldout))
    assert equal(batches, list(data.heldout()))


def test_the_last_heldout_batch_is_filled_with_rows_of_weight_zero(corpus: Path) -> None:
    data = read(corpus, batch=64)
    (batch,) = data.heldout()
    assert len(data.heldout_rows) < 64
    assert all((part[len(data.heldout_rows) :] == 0).all() for part in batch.values())
    assert (batch["weights"][: len(data.heldout_rows)].sum(axis=1) > 0).all()


def test_training_and_heldout_documents_are_disjoint_and_complete(corpus: Path) -> None:
    data = read(corpus)
    train, heldout = stream(corpus, data)
    assert train
    assert heldout
    assert data.train_tokens == sum(len(text) + 1 for text in train)
    assert data.heldout_tokens == sum(len(text) + 1 for text in heldout)


def test_copies_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {n % 10}"}) for n in range(100)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    data = load(str(tmp_path), length=11, batch=1, heldout=0.3)
    train, heldout = ({bytes(row["targets"][:10].astype(np.uint8)) for row in rows} for rows in _rows(data))
    assert len(train) + len(heldout) == 10
    assert not train & heldout


def test_the_heldout_fraction_is_followed(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": f"{n:04}"}) for n in range(2000)))
    data = load(str(tmp_path), length=5, batch=1, heldout=0.1)
    assert 0.07 < len(data.heldout_rows) / 2000 < 0.13


@pytest.mark.parametrize("heldout", [0.001, 0.999])
def test_both_splits_have_a_document_whatever_the_fraction(tmp_path: Path, heldout: float) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(name)
    data = load(str(tmp_path), length=8, batch=1, heldout=heldout)
    assert (data.train_tokens, data.heldout_tokens) == (4, 4)


def test_a_single_document_is_split_by_position(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a" * 90 + "é" * 10)
    data = load(str(tmp_path), length=16, batch=2, heldout=0.1)
    assert data.tokenizer.decode(data.train_rows.targets[:-1]) == "a" * 90
    assert data.tokenizer.decode(data.heldout_rows.targets[:-1]) == "é" * 10
    assert data.heldout_bytes == 20


def test_same_seed_gives_the_same_batches(corpus: Path) -> None:
    first, again, other = (list(itertools.islice(read(corpus, seed=s).train(), 60)) for s in (7, 7, 8))
    assert equal(first, again)
    assert not equal(first, other)


def test_seeds_share_the_heldout_documents(corpus: Path) -> None:
    assert equal(list(read(corpus, seed=0).heldout()), list(read(corpus, seed=1).heldout()))


def test_every_epoch_has_every_row_once_in_a_new_order(corpus: Path) -> None:
    data = read(corpus, batch=1)
    rows = [batch["targets"].tobytes() for batch in itertools.islice(data.train(), 3 * len(data.train_rows))]
    epochs = [rows[n * len(data.train_rows) :][: len(data.train_rows)] for n in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_next_seed_does_not_repeat_the_epochs_of_this_one(corpus: Path) -> None:
    this, following = read(corpus, batch=1, seed=0), read(corpus, batch=1, seed=1)
    second = list(itertools.islice(this.train(), len(this.train_rows), 2 * len(this.train_rows)))
    assert not equal(second, list(itertools.islice(following.train(), len(following.train_rows))))


def test_a_twice_resumed_run_equals_an_uninterrupted_one(corpus: Path) -> None:
    whole = list(itertools.islice(read(corpus).train(), 100))
    resumed: list[Batch] = []
    state: dict[str, int] | None = None
    for steps in (37, 41, 22):
        batches = read(corpus).train()
        if state is not None:
            batches.set_state(state)
        resumed += itertools.islice(batches, steps)
        state = json.loads(json.dumps(batches.get_state()))
    assert equal(whole, resumed)


def test_another_process_continues_with_the_same_batches(corpus: Path) -> None:
    batches = read(corpus).train()
    for _ in range(45):
        next(batches)
    program = (
        "import sys, json; from archzoo.train.data import load;"
        "data = load(sys.argv[1], length=32, batch=4, heldout=0.2); batches = data.train();"
        "batches.set_state(json.loads(sys.argv[2]));"
        "print(json.dumps([data.fingerprint, *(next(batches)['tokens'].tolist() for _ in range(3))]))"
    )
    command = [sys.executable, "-c", program, str(corpus), json.dumps(batches.get_state())]
    there = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert there == [read(corpus).fingerprint, *(next(batches)["tokens"].tolist() for _ in range(3))]


def test_the_fingerprint_tells_settings_apart(corpus: Path) -> None:
    changes: list[dict[str, int | float | str]] = [
        {},
        {"length": 31},
        {"batch": 5},
        {"seed": 1},
        {"heldout": 0.5},
        {"tokenizer": "bpe:300"},
        {"max_bytes": 4000},
    ]
    prints = [read(corpus, **change).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert read(corpus).fingerprint == prints[0]


@pytest.mark.parametrize("place", [0, 99])
def test_the_fingerprint_tells_texts_apart(tmp_path: Path, place: int) -> None:
    file = tmp_path / "x.txt"
    prints = set()
    for letter in "ab":
        file.write_text("c" * place + letter + "c" * (99 - place))
        prints.add(read(file).fingerprint)
    assert len(prints) == 2


def test_any_tokenizer_can_be_used_and_bpe_learns_from_training_text_only(corpus: Path) -> None:
    trained = read(corpus, tokenizer="bpe:300")
    train, _ = stream(corpus, read(corpus))
    assert trained.tokenizer.files == tokenizer("bpe:300", [text.decode() for text in train]).files
    given = load(str(corpus), trained.tokenizer, length=32, batch=4, heldout=0.2)
    assert given.fingerprint == trained.fingerprint
    text = trained.tokenizer.decode(trained.train_rows.targets)
    assert text == "".join(document.decode() + "<|endoftext|>" for document in train)


def test_documents_begin_with_bos_and_end_with_eos(tmp_path: Path) -> None:
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (tmp_path / "x.txt").write_text("a b a bb")  # the last of two parts is the second b
    data = load(str(tmp_path / "x.txt"), str(tmp_path), length=8, batch=1, heldout=0.125)
    batch = next(data.train())
    assert batch["tokens"][0].tolist() == [0, 2, 3, 2, 3, 0, 0, 0]
    assert batch["targets"][0].tolist() == [2, 3, 2, 3, 1, 0, 0, 0]
    assert batch["segment_ids"][0].tolist() == batch["weights"][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_unigram_nats_is_the_smoothed_cross_entropy(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("aaaaaaab" + "ab")
    data = load(str(tmp_path), length=4, batch=1, heldout=0.2)
    probability = {"a": (7 + 1) / (9 + 257), "b": (1 + 1) / (9 + 257), "$": (1 + 1) / (9 + 257)}
    assert data.unigram_nats == pytest.approx(-sum(math.log(p) for p in probability.values()) / 3)


def test_bits_per_byte_counts_the_text_and_not_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a" * 8 + "éé")
    data = load(str(tmp_path), length=4, batch=1, heldout=0.2)
    assert (data.heldout_tokens, data.heldout_bytes) == (5, 4)
    assert data.bits_per_byte(math.log(2)) == pytest.approx(5 / 4)


def test_max_bytes_cuts_the_source_at_a_character(tmp_path: Path) -> None:
    for name, text in {"a": "xxxx", "b": "éé", "c": "zz"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    data = load(str(tmp_path), length=8, batch=1, max_bytes=7)
    assert data.truncated
    taken = np.concatenate([data.train_rows.targets, data.heldout_rows.targets])
    assert Counter(taken[taken != END].tolist()) == Counter("xxxxé".encode())
    assert not load(str(tmp_path), length=8, batch=1, max_bytes=10).truncated
    with pytest.raises(ValueError, match="max_bytes is 1, less than the first character"):
        load(str(tmp_path / "b.txt"), length=8, batch=1, max_bytes=1)


def test_the_standard_library_makes_a_data_set() -> None:
    data = load(length=256, batch=4, max_bytes=2_000_000)
    assert data.train_tokens + data.heldout_tokens > 2_000_000
    assert 2 < data.unigram_nats < 5
    batch = next(data.train())
    assert "\n" in data.tokenizer.decode(batch["tokens"].ravel())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length is 0, but must be 1 or more"),
        ({"batch": -1}, "batch is -1, but must be 1 or more"),
        ({"seed": -1}, "seed is -1, but must be 0 or more"),
        ({"heldout": 0.0}, "heldout is 0.0, but must be a fraction between 0 and 1"),
        ({"heldout": 1.0}, "heldout is 1.0, but must be a fraction"),
        ({"max_bytes": 0}, "max_bytes is 0, but must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(corpus: Path, settings: dict[str, int | float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(corpus, **settings)


def test_a_source_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="the source is a single character, 'a'"):
        read(tmp_path)
    (tmp_path / "y.txt").write_text("a")
    with pytest.raises(ValueError, match="all 2 documents of the source are the same text"):
        read(tmp_path)


def _rows(data: Dataset) -> tuple[list[Batch], list[Batch]]:
    return epoch(data), [{k: v[0] for k, v in batch.items()} for batch in data.heldout()]
