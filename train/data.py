"""Documents to batches: tokenise, hold some out, pack into rows of one length, shuffle, batch.

All documents of a split are laid end to end, each followed by eos, and this stream is cut into rows of `length`: no
padding but in the last row, and no token lost. The stream is what the model has to predict; what it reads is the same
stream one place earlier, except that a document begins with bos ("^"; "$" is eos), never with the end of another:

    targets        d o c 1 $ d o c 2 $
    tokens         ^ d o c 1 ^ d o c 2
    segment_ids    1 1 1 1 1 2 2 2 2 2      1.. within a row, 0 = padding; attention must not cross them
    weights        1 1 1 1 1 1 1 1 1 1      0 = padding

So every token of every document, its first and its eos included, is predicted exactly once an epoch, and the held-out
loss is a code length: nats a token, times tokens, over bytes, over ln 2, is bits per byte, whatever the tokenizer. A
document that runs over the end of a row continues in another row, without sight of its beginning.

Grain (the JAX project's data library) shuffles, repeats and batches, and owns the position, so that training resumes
where it stopped. The data set is held in memory, 3 bytes a token for vocabularies up to 65,536 and 5 above.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from .text import documents
from .tokenizer import Tokenizer
from .tokenizer import tokenizer as make_tokenizer

Batch = dict[str, NDArray[Any]]  # tokens, targets, segment_ids int32 and weights float32, each [batch, length]


class Batches(Protocol):
    """An iterator whose position can be saved: a small dict of ints, good as JSON, valid in another process."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, int]: ...
    def set_state(self, state: dict[str, int]) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A stream of documents, read as rows: a random-access source for Grain."""

    targets: NDArray[np.unsignedinteger]  # [stream], documents end to end, each followed by eos
    starts: NDArray[np.bool]  # [stream], true at the first token of each document
    bos: int
    length: int

    def __len__(self) -> int:
        return -(-len(self.targets) // self.length)

    def __getitem__(self, row: SupportsIndex) -> Batch:
        """One row: tokens, targets and segment_ids int32 [length], weights float32 [length]."""
        first = int(row) * self.length
        starts = self.starts[first : first + self.length]
        targets = self.targets[first : first + self.length]
        # The first token of all has none before it; it reads the last one here, and then bos, as every start does.
        before = self.targets[np.arange(first - 1, first - 1 + len(targets))]
        parts = {
            "tokens": np.where(starts, self.bos, before).astype(np.int32),
            "targets": targets.astype(np.int32),
            "segment_ids": np.cumsum(starts, dtype=np.int32) + np.int32(not starts[0]),
            "weights": np.ones(len(targets), np.float32),
        }
        return {name: np.pad(part, (0, self.length - len(part))) for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Tokenised text in two splits; made by `load`."""

    tokenizer: Tokenizer
    train_rows: Rows
    heldout_rows: Rows
    heldout_bytes: int  # of UTF-8, in the held-out documents
    truncated: bool  # the source had more than `max_bytes`
    batch: int
    seed: int

    def train(self) -> Batches:
        """Batches for ever: every row once an epoch, in a new order each time; a batch may straddle two epochs."""
        import grain

        # Grain shuffles epoch e by seed + e; spread the seeds, or seed 1 would begin with the second epoch of seed 0.
        seed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        return _iterate(grain.MapDataset.source(self.train_rows).shuffle(seed).repeat(), self.batch)

    def heldout(self) -> Batches:
        """Batches of the held-out rows, each once and in order; the last one is filled up with rows of weight 0."""
        import grain

        return _iterate(grain.MapDataset.source(self.heldout_rows), self.batch)

    @property
    def train_tokens(self) -> int:
        """Targets in one epoch: the tokens of the training documents and their eos."""
        return len(self.train_rows.targets)

    @property
    def heldout_tokens(self) -> int:
        """Targets in the held-out batches: the tokens of the held-out documents and their eos."""
        return len(self.heldout_rows.targets)

    @functools.cached_property
    def unigram_nats(self) -> float:
        """Cross entropy, in nats a held-out target, of the training targets' frequencies (one added to each count).

        What a model that knows only how often each token occurs would score: a trained model must be well below.
        """
        train, heldout = (
            np.bincount(rows.targets, minlength=self.tokenizer.vocab) for rows in (self.train_rows, self.heldout_rows)
        )
        nats = math.log(self.train_tokens + self.tokenizer.vocab) - np.log1p(train)
        return float(heldout @ nats / self.heldout_tokens)

    def bits_per_byte(self, nats: float) -> float:
        """Bits a byte of held-out text, given the mean loss in nats a held-out target."""
        return nats / math.log(2) * self.heldout_tokens / self.heldout_bytes

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the batches; a run may resume only on data of the same fingerprint."""
        settings = (
            self.train_rows.bos,
            self.train_rows.length,
            self.batch,
            self.seed,
            self.tokenizer.files["tokenizer.json"],
        )
        digest = hashlib.sha256(repr(settings).encode())
        for rows in (self.train_rows, self.heldout_rows):
            for array in (rows.targets, rows.starts):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(array.data)
        return digest.hexdigest()


def load(
    source: str | Sequence[str] | None = None,
    tokenizer: str | Tokenizer = "bytes",
    *,
    length: int,
    batch: int,
    seed: int = 0,
    heldout: float = 0.02,
    max_bytes: int = 2**30,
) -> Dataset:
    """Read, split, tokenise and pack a source (see `text.documents`).

    Args:
        tokenizer: one, or a name for `tokenizer.tokenizer`; "bpe:SIZE" is trained on the training documents.
        length: tokens in a row.
        batch: rows in a batch, over all processes together.
        seed: of the shuffling; the split does not depend on it, so runs of different seeds have the same held-out loss.
        heldout: about this fraction of the documents is held out (of the text, where there is only one document).
        max_bytes: the source is read up to here, in bytes of UTF-8, and the rest ignored.

    Raises ValueError for a setting out of range, for too little text to split, and as the source and tokenizer do.
    """
    for name, value in {"length": length, "batch": batch, "max_bytes": max_bytes}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be 0 or more")
    if not 0 < heldout < 1:
        raise ValueError(f"heldout is {heldout}, but must be a fraction between 0 and 1, such as 0.02")
    texts, truncated = _take(documents(source), max_bytes)
    if not texts:
        raise ValueError(f"max_bytes is {max_bytes}, less than the first character of the source")
    train, held = _split(texts, heldout)
    if isinstance(tokenizer, str):
        tokenizer = make_tokenizer(tokenizer, train)
    return Dataset(
        tokenizer=tokenizer,
        train_rows=_pack(train, tokenizer, length),
        heldout_rows=_pack(held, tokenizer, length),
        heldout_bytes=sum(len(text.encode()) for text in held),
        truncated=truncated,
        batch=batch,
        seed=seed,
    )


def _take(texts: Iterable[str], max_bytes: int) -> tuple[list[str], bool]:
    """The first `max_bytes` of the texts, and whether there was more; the text that crosses the limit is cut there."""
    taken: list[str] = []
    left = max_bytes
    for text in texts:
        content = text.encode()
        if len(content) > left:
            return [*taken, *filter(None, [content[:left].decode(errors="ignore")])], True
        taken.append(text)
        left -= len(content)
    return taken, False


def _split(texts: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Training and held-out documents, neither empty.

    A document's own hash decides: copies of a document stay on one side, and adding documents moves no other (except
    among few, where the lowest hash is held out and the highest trained on, whatever they are).
    """
    if len(texts) == 1:
        text = texts[0]
        cut = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
        if cut < 1:
            raise ValueError(f"the source is a single character, {text!r}; training and held-out text need one each")
        return [text[:cut]], [text[cut:]]
    places = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64 for text in texts]
    lowest, highest = min(places), max(places)
    if lowest == highest:
        raise ValueError(f"all {len(texts)} documents of the source are the same text; none can be held out")
    held = [place <= max(fraction, lowest) and place < highest for place in places]
    return (
        [text for text, out in zip(texts, held, strict=True) if not out],
        [text for text, out in zip(texts, held, strict=True) if out],
    )


def _pack(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Rows:
    small = np.min_scalar_type(tokenizer.vocab - 1)
    streams = [np.append(ids, tokenizer.eos).astype(small) for ids in tokenizer.encode_documents(texts)]
    targets = np.concatenate(streams)
    starts = np.zeros(len(targets), np.bool)
    starts[np.cumsum([0, *map(len, streams[:-1])])] = True
    return Rows(targets=targets, starts=starts, bos=tokenizer.bos, length=length)


def _iterate(rows: Any, batch: int) -> Batches:
    import grain

    # Rows are slices of memory: reading ahead in threads would cost more than it brings.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    fill = functools.partial(grain.experimental.batch_and_pad, batch_size=batch)
    # Batched here, not as a MapDataset: a batch of 1 overflows the length of one that is repeated for ever.
    batches: Batches = iter(rows.to_iter_dataset(options).batch(batch, batch_fn=fill))
    return batches
