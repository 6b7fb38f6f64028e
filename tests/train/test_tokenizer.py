"""Every tokenizer gives back the text that it was given, and reads the same in other programs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from archzoo.train.tokenizer import Tokenizer, bytes_tokenizer, load, tokenizer, train_bpe

CORPUS = ["def f(x):\n    return x + 1\n" * 20, "the cat and the dog and the hat " * 20, "größer, 大きい, 💡 " * 10]
NASTY = [
    "",
    " ",
    "\n\n\t  x  \r\n",
    "\0\x01\x7f\x80\xa0\xad\xff",
    "e\u0301 é ﬁ İ ß",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u202eright to left\u2066",
    "\ufeffmark\ufffd\uffff\U0010ffff",
    "Ġ Ċ ▁ ## </s> <s> [MASK]",
    "日本語テキスト العربية हिन्दी",
    "a" * 3000,
    "12345678901234567890 1e-7",
    "don't we'LL I'm",
    "".join(map(chr, range(0x250))),
]


@pytest.fixture(params=["bytes", "bpe:400"], scope="module")
def made(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer(request.param, CORPUS)


def test_any_text_survives_the_round_trip(made: Tokenizer) -> None:
    for text, ids in zip(NASTY, made.encode_documents(NASTY), strict=True):
        assert made.decode(ids) == text
        assert made.decode(made.encode(text)) == text


def test_ids_are_int32_and_less_than_vocab(made: Tokenizer) -> None:
    for ids in [*made.encode_documents(NASTY), *map(made.encode, NASTY)]:
        assert ids.dtype == np.int32
        assert ids.ndim == 1
        assert all(0 <= i < made.vocab for i in ids)


def test_documents_are_encoded_as_prompts_are(made: Tokenizer) -> None:
    many = NASTY * 40  # more than one batch of the encoder
    for text, ids in zip(many, made.encode_documents(many), strict=True):
        np.testing.assert_array_equal(ids, made.encode(text))


def test_only_prompts_can_name_special_tokens(made: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    (document,) = made.encode_documents([text])
    assert made.eos not in document
    assert made.decode(document) == text
    prompt = made.encode(text)
    assert list(prompt).count(made.eos) == 1
    assert made.decode(prompt) == text


def test_a_saved_tokenizer_loads_as_the_same(made: Tokenizer, tmp_path: Path) -> None:
    made.save(tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "tokenizer.json"):
        loaded = load(path)
        assert (loaded.vocab, loaded.bos, loaded.eos, loaded.raw) == (made.vocab, made.bos, made.eos, made.raw)
        assert loaded.files == made.files
        for text in NASTY:
            np.testing.assert_array_equal(loaded.encode(text), made.encode(text))


def test_byte_ids_are_byte_values() -> None:
    made = tokenizer("bytes")
    assert (made.vocab, made.bos, made.eos) == (257, 256, 256)
    for text in NASTY:
        assert list(made.encode(text)) == list(text.encode())


def test_bytes_that_are_not_text_decode_to_replacement_characters() -> None:
    assert bytes_tokenizer().decode(np.array([97, 0xFF, 98], np.int32)) == "a\ufffdb"


def test_bpe_has_the_size_asked_for_and_the_end_last() -> None:
    made = train_bpe(CORPUS, 300)
    assert (made.vocab, made.bos, made.eos) == (300, 299, 299)
    assert train_bpe(["ab"], 300).vocab == 258  # there is one pair to merge


def test_bpe_shortens_what_it_was_trained_on() -> None:
    (small,), (large,) = (train_bpe(CORPUS, size).encode_documents(CORPUS[:1]) for size in (257, 330))
    assert len(small) == len(CORPUS[0])
    assert len(large) < len(small) / 2


def test_bpe_is_the_same_in_every_process() -> None:
    program = (
        "import sys; from archzoo.train.tokenizer import train_bpe;"
        "sys.stdout.buffer.write(train_bpe(eval(sys.argv[1]), 400).files['tokenizer.json'].encode())"
    )
    here = train_bpe(CORPUS, 400).files["tokenizer.json"]
    for _ in range(2):
        there = subprocess.run([sys.executable, "-c", program, repr(CORPUS)], capture_output=True, check=True)
        assert there.stdout.decode() == here


def test_a_found_tokenizer_keeps_its_files(tmp_path: Path) -> None:
    config = '{"eos_token": {"content": "<stop>"}, "bos_token": "<go>", "chat_template": "{{ x }}"}'
    _word_level(tmp_path, ["<go>", "<stop>", "</s>", "hello"], config=config)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found = load(tmp_path)
    assert (found.bos, found.eos, found.vocab) == (0, 1, 4)
    found.save(tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"])
def test_the_usual_names_of_the_end_are_found(tmp_path: Path, name: str) -> None:
    _word_level(tmp_path, ["hello", name])
    assert (load(tmp_path).eos, load(tmp_path).bos) == (1, 1)


def test_a_stored_truncation_is_not_applied(tmp_path: Path) -> None:
    model = _word_level(tmp_path, ["hello", "</s>"])
    model.enable_truncation(2)
    model.enable_padding(length=8)
    model.save(str(tmp_path / "tokenizer.json"))
    assert list(load(tmp_path).encode("hello hello hello")) == [0, 0, 0]


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    _word_level(tmp_path, ["hello"])
    with pytest.raises(ValueError, match=r"tokenizer.json has no token that ends a document.*eos_token"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<stop>"}')
    with pytest.raises(ValueError, match=r"tokenizer.json lacks the eos_token '<stop>'"):
        load(tmp_path)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    _word_level(tmp_path, ["</s>"], config="[]")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is not a JSON object"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is not a tokenizer.json that"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"tokenizer.json is not UTF-8 text: invalid start byte at byte offset 0"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bpe:", "'bpe:' has no size; write for example bpe:8192"),
        ("bpe:many", "'bpe:many' has no size"),
        ("bpe:256", "BPE of 256 ids cannot hold 256 bytes"),
        ("bpe:300", "needs texts to be trained on"),
        ("no/such/folder", "no file no/such/folder; give"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(name)


@pytest.mark.live
def test_transformers_reads_a_saved_tokenizer_the_same_way(made: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (made.vocab, made.eos, made.bos)
    for text in [*NASTY, "a<|endoftext|>b"]:
        ids = theirs(text)["input_ids"]
        assert ids == list(made.encode(text))
        assert theirs.decode(ids) == text
    theirs.save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert (again.vocab, again.eos, again.bos) == (made.vocab, made.eos, made.bos)
    for text in NASTY:
        np.testing.assert_array_equal(again.encode(text), made.encode(text))


def _word_level(folder: Path, words: list[str], config: str | None = None) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(folder / "tokenizer.json"))
    if config is not None:
        json.loads(config)
        (folder / "tokenizer_config.json").write_text(config)
    return model
