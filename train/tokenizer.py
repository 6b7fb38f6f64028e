"""Text to token ids and back: bytes, a byte-level BPE trained on the data, or any tokenizer.json.

All three are one thing, a Hugging Face `tokenizer.json` (what the `tokenizers` library writes), so each can be exported
beside a model and read by other programs:

    "bytes"       id = byte value, 256 = end of document (257 ids; nothing to train, nothing to download)
    "bpe:8192"    byte-pair encoding of UTF-8 bytes (Sennrich et al. 2016; Radford et al. 2019), 8192 ids, the end last
    a path        a tokenizer.json, or a folder that holds one

Terms: a special token is an id that no ordinary text encodes to; `eos` ends every document, and `bos` begins it (the
tokenizer's own where it has one, otherwise `eos` again: the text then reads eos, document, eos, document, eos).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

_END = "<|endoftext|>"
# Files beside tokenizer.json that say what its tokens are for. They are kept and saved as they were found.
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# How tokenizers call the end of a document, where no file beside them says it.
_END_NAMES = (
    _END,
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|return|>",
)
_BATCH = 256  # documents encoded in parallel at a time; bounds the memory that their encodings take


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A tokenizer and the files that it is made of, from `tokenizer`, `load`, `train_bpe` or `bytes_tokenizer`."""

    model: tokenizers.Tokenizer
    files: Mapping[str, str]  # name -> content, tokenizer.json among them
    vocab: int  # every id is less; a model may have more ids
    bos: int
    eos: int
    raw: bool  # ids are byte values

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of a prompt, int32 [tokens], without bos and eos; a special token's name in the text means that token."""
        return np.array(self.model.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_documents(self, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
        """Ids of each document, int32 [tokens], without bos and eos.

        Documents are data: in one that mentions `<|endoftext|>`, these characters are encoded, not the special token.
        """
        if self.raw:
            for text in texts:
                yield np.frombuffer(text.encode(), np.uint8).astype(np.int32)
            return
        for first in range(0, len(texts), _BATCH):
            self.model.encode_special_tokens = True
            try:
                encodings = self.model.encode_batch_fast(list(texts[first : first + _BATCH]), add_special_tokens=False)
            finally:
                self.model.encode_special_tokens = False
            for encoding in encodings:
                yield np.array(encoding.ids, np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of ids [tokens], special tokens by name; bytes that are not UTF-8 become U+FFFD."""
        return str(self.model.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and what belongs to it into a folder, for `load` and transformers' AutoTokenizer."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            Path(directory, name).write_text(content, encoding="utf-8", newline="")


def tokenizer(name: str, texts: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer called "bytes", "bpe:SIZE" (trained on the texts), or the one at a path.

    Raises ValueError for any other name, and what `train_bpe` and `load` raise.
    """
    if name == "bytes":
        return bytes_tokenizer()
    if name.startswith("bpe:"):
        if not re.fullmatch("bpe:[0-9]+", name):
            raise ValueError(f"tokenizer {name!r} has no size; write for example bpe:8192")
        return train_bpe(texts, int(name.removeprefix("bpe:")))
    return load(name)


def bytes_tokenizer() -> Tokenizer:
    """The tokenizer whose ids 0 to 255 are the bytes of UTF-8, and 256 the end of a document."""
    return _own(_bytes_model())


def train_bpe(texts: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` ids, or fewer where the texts do not give so many; the same for the same texts.

    Raises ValueError for fewer ids than 257 (the bytes and eos), or without texts.
    """
    if vocab < 257:
        raise ValueError(f"a BPE of {vocab} ids cannot hold 256 bytes and the end of a document; ask for 257 or more")
    if not texts:
        raise ValueError("a BPE tokenizer needs texts to be trained on, and there are none")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab - 1, initial_alphabet=sorted(_byte_characters()), show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    model.add_special_tokens([_END])
    return _own(model)


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json or of a folder that holds one.

    The end of a document is what tokenizer_config.json or special_tokens_map.json beside it call `eos_token`, or else
    the first of the usual names that the vocabulary has. Raises ValueError where there is no such file, it is broken,
    or it has no token for the end of a document.
    """
    path = Path(path).expanduser()
    main = path / "tokenizer.json" if path.is_dir() else path
    if not main.is_file():
        raise ValueError(f'no file {main}; give "bytes", "bpe:SIZE", a tokenizer.json or a folder that holds one')
    beside = [main.with_name(name) for name in _COMPANIONS]
    files = {"tokenizer.json": _content(main)} | {file.name: _content(file) for file in beside if file.is_file()}
    try:
        model = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{main} is not a tokenizer.json that the tokenizers library can read: {error}") from error
    # Both may be stored in the file, from whatever its author last ran.
    model.no_truncation()
    model.no_padding()
    ids = model.get_vocab()
    eos = _named(files, "eos_token", main.parent) or next((name for name in _END_NAMES if name in ids), None)
    if eos is None:
        raise ValueError(
            f"{main} has no token that ends a document: none of {' '.join(_END_NAMES)}; "
            'name its own in a tokenizer_config.json beside it: {"eos_token": ...}'
        )
    if eos not in ids:
        raise ValueError(f"{main} lacks the eos_token {eos!r} that the files beside it name")
    return _build(model, files, bos=_named(files, "bos_token", main.parent) or eos, eos=eos)


def _own(model: tokenizers.Tokenizer) -> Tokenizer:
    return _build(model, {"tokenizer.json": model.to_str(pretty=True)}, bos=_END, eos=_END)


def _build(model: tokenizers.Tokenizer, files: dict[str, str], *, bos: str, eos: str) -> Tokenizer:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"bos_token": bos, "eos_token": eos}
    files.setdefault("tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    ids = model.get_vocab()
    return Tokenizer(
        model=model,
        files=files,
        vocab=max(ids.values()) + 1,
        bos=ids.get(bos, ids[eos]),
        eos=ids[eos],
        raw=len(ids) == 257 and model.to_str() == _bytes_model().to_str(),
    )


def _named(files: Mapping[str, str], key: str, folder: Path) -> str | None:
    """What the files beside tokenizer.json call a special token: they hold its name, or an object with its name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            value = json.loads(files.get(name, "{}")).get(key)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{folder / name} is not a JSON object: {error}") from error
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            return value
    return None


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte offset {error.start}") from error


def _bytes_model() -> tokenizers.Tokenizer:
    ids = {character: byte for byte, character in enumerate(_byte_characters())}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([_END])
    return model


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where Latin-1 prints it, else the next character from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
