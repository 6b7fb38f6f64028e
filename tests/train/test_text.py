"""Sources give the same documents in the same order, and refuse what is not text in one clear line."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from archzoo.train.text import documents


def test_the_standard_library_is_source_code_in_a_fixed_order() -> None:
    texts = list(documents())
    assert sum(map(len, texts)) > 5_000_000
    assert all(texts)
    assert any("class OrderedDict" in text for text in texts)
    assert texts == list(documents(None))


def test_the_standard_library_comes_without_tests_and_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = ("test/a.py", "json/tests/b.py", "site-packages/c.py", "dist-packages/d.py", "a/idle_test/e.py", "f.txt")
    for name in ("json/decoder.py", "abc.py", *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path) if name == "stdlib" else "")
    assert list(documents()) == ["abc.py", "json/decoder.py"]


def test_a_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "notes.unusual"
    file.write_bytes("\ufeffa\r\nb\u2028 é 💡\n".encode())
    assert list(documents(str(file))) == ["\ufeffa\r\nb\u2028 é 💡\n"]


def test_a_folder_is_read_recursively_in_order_of_relative_path(tmp_path: Path) -> None:
    contents = {
        "b.txt": "2",
        "a/z.PY": "1",
        "c/d/e.md": "3",
        ".git/x.txt": "hidden",
        "c/.y.txt": "hidden",
        "c/p.png": "\0",
    }
    for name, content in {**contents, "empty.txt": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert list(documents(str(tmp_path))) == ["1", "2", "3"]


def test_the_tables_in_a_folder_are_read_as_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "", "n": 1}\n{"text": "two\\n"}')
    (tmp_path / "b.txt").write_text("three")
    assert list(documents(str(tmp_path))) == ["one", "two\n", "three"]


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert list(documents((str(tmp_path / "b"), str(tmp_path / "a")))) == ["b", "a"]


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    file = _parquet(tmp_path, {"n": [1, 2, 3], "text": ["one", "", "zwei ü"]})
    assert list(documents(str(file))) == ["one", "zwei ü"]


def test_a_parquet_file_without_text_is_refused_by_name(tmp_path: Path) -> None:
    file = _parquet(tmp_path, {"n": [1], "body": ["one"]})
    with pytest.raises(ValueError, match=r'x.parquet has no column "text"; it has n, body'):
        list(documents(str(file)))
    file = _parquet(tmp_path, {"text": ["one", None]})
    with pytest.raises(ValueError, match=r'x.parquet row 1: the field "text" is not a string, but None'):
        list(documents(str(file)))
    file.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"x.parquet is not a Parquet file"):
        list(documents(str(file)))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"x.parquet needs pyarrow.*pip install 'archzoo\[data\]'"):
        list(documents(str(file)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "line 2 is not JSON"),
        (b'{"text": "\xff"}', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'["text"]', 'line 2 is not an object with a field "text", but a list'),
        (b'{"body": "x", "n": 1}', 'line 2 has no field "text"; it has body, n'),
        (b'{"text": 7}', 'line 2: the field "text" is not a string, but 7'),
        (b'{"text": "ab\\ud800"}', 'line 2: the field "text" has a lone surrogate at character 2'),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"x.jsonl {message}") as caught:
        list(documents(str(file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc\0def", "x.txt is not text: NUL at byte offset 3"),
        (b"abcd\xff\xfe", "x.txt is not UTF-8 text: invalid start byte at byte offset 4"),
        ("é".encode()[:1], "x.txt is not UTF-8 text: unexpected end of data at byte offset 0"),
        (b"", "x.txt holds no text"),
    ],
)
def test_a_file_that_is_not_text_is_refused_by_name_and_offset(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(documents(str(file)))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file below .* has a usual suffix"):
        list(documents(str(tmp_path)))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no text"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize("source", ["", "/no/such/file.txt", "../nothing", "two words"])
def test_what_is_neither_a_path_nor_a_dataset_name_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="no file or folder is named"):
        list(documents(source))
    with pytest.raises(ValueError, match="source is an empty list"):
        list(documents(()))


def test_a_dataset_without_the_datasets_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"no file or folder is named 'some/set'.*pip install 'archzoo\[data\]'"):
        list(documents("some/set"))


def test_a_dataset_is_streamed_and_not_read_further_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*names: str, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        asked.append((*names, split, streaming))
        return ({"text": f"document {n}"} for n in itertools.count())

    _install_datasets(monkeypatch, load_dataset)
    assert list(itertools.islice(documents("some/set:part"), 2)) == ["document 0", "document 1"]
    assert asked == [("some/set", "part", "train", True)]


def test_a_dataset_that_cannot_be_loaded_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: str, **options: Any) -> Iterator[dict[str, str]]:
        raise RuntimeError("no network\nand a long story")

    _install_datasets(monkeypatch, load_dataset)
    with pytest.raises(ValueError, match=r"'some/set', nor can it be loaded as a Hugging Face dataset: no network$"):
        list(documents("some/set"))


def test_a_dataset_without_text_is_refused_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _install_datasets(monkeypatch, lambda *names, **options: iter([{"text": "a"}, {"story": "b"}]))
    with pytest.raises(ValueError, match='some/set row 1 has no field "text"; it has story'):
        list(documents("some/set"))


def _install_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Iterator[dict[str, str]]]) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def _parquet(folder: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    file = folder / "x.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    return file
