"""Where documents come from: files, folders, tables, Hugging Face datasets, or Python itself.

A document is one non-empty text that UTF-8 can hold. A source names many of them:

    None               the source code of the running Python's standard library, without tests (12 MB, on every machine)
    a .jsonl file      the field "text" of each line (one JSON object a line)
    a .parquet file    the column "text" of each row (Apache Parquet; needs pyarrow)
    any other file     its whole content, one document
    a folder           every file below it with a suffix of SUFFIXES, sorted by relative path, hidden ones left out
    anything else      a Hugging Face dataset, "name" or "name:configuration", its split "train" (needs datasets)

Documents come in the same order every time, and lazily: who takes only the first of a dataset downloads only those.
"""

import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path

# What a folder is searched for. A file that is named itself may have any suffix.
_KINDS = {
    "prose": ".txt .text .md .rst .tex .bib .org .adoc .html .htm .xml",
    "data": ".jsonl .parquet .json .csv .tsv .yaml .yml .toml .ini .cfg .log",
    "code": ".py .pyi .ipynb .c .h .cc .cpp .cxx .hpp .cu .cuh .cs .css .go .hs .java .jl .js .jsx .kt .lua .m .ml "
    ".php .pl .r .rb .rs .scala .sh .sql .swift .ts .tsx",
}
SUFFIXES = frozenset(suffix for kind in _KINDS.values() for suffix in kind.split())
# Tests are repetitive and hold deliberately broken files; installed packages differ from machine to machine.
_STANDARD_LIBRARY_WITHOUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_DATASET_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?")


def documents(source: str | Sequence[str] | None = None) -> Iterator[str]:
    """The documents of one source, or of several in turn, as the table above says; empty ones are passed over.

    Raises, while iterating: ValueError for a source that holds no text or does not exist, for a file that is not UTF-8
    text (with the byte offset), for a record without text (with the line or row); OSError for an unreadable file.
    """
    sources = (source,) if source is None or isinstance(source, str) else tuple(source)
    if not sources:
        raise ValueError("source is an empty list; name at least one file, folder or dataset")
    for one in sources:
        empty = True
        for text in _read(one):
            if text:
                empty = False
                yield text
        if empty:
            raise ValueError(f"{one or 'the standard library'} holds no text")


def _read(source: str | None) -> Iterator[str]:
    if source is None:
        root = Path(sysconfig.get_path("stdlib"))
        return _folder(root, suffixes={".py"}, without=_STANDARD_LIBRARY_WITHOUT)
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _folder(path, suffixes=SUFFIXES)
    if source and path.exists():
        return _file(path)
    return _dataset(source)


def _folder(root: Path, *, suffixes: Set[str], without: Set[str] = frozenset()) -> Iterator[str]:
    found = []
    for folder, below, names in os.walk(root, onerror=_refuse):
        below[:] = [name for name in below if name not in without and not name.startswith(".")]
        files = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
    if not found:
        raise ValueError(
            f"no file below {root} has a usual suffix (.txt, .md, .jsonl, ...); name other files themselves"
        )
    for file in sorted(found, key=lambda file: file.relative_to(root).as_posix()):
        yield from _file(file)


def _refuse(error: OSError) -> None:
    raise error


def _file(path: Path) -> Iterator[str]:
    return _READERS.get(path.suffix.lower(), _whole)(path)


def _whole(path: Path) -> Iterator[str]:
    content = path.read_bytes()
    nul = content.find(0)
    if nul >= 0:
        raise ValueError(f"{path} is not text: NUL at byte offset {nul}; give UTF-8 text")
    try:
        yield content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte offset {error.start}") from error


def _jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path} line {number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is not JSON: {error}") from error
                yield _text_of(record, where)


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow to be read: pip install 'archzoo[data]'") from error
    try:
        table = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {_first_line(error)}") from error
    with table:
        columns = table.schema_arrow.names
        if "text" not in columns:
            raise ValueError(f'{path} has no column "text"; it has {", ".join(columns)}')
        row = 0
        for rows in table.iter_batches(batch_size=1024, columns=["text"]):
            for record in rows.to_pylist():
                yield _text_of(record, f"{path} row {row}")
                row += 1


def _dataset(name: str) -> Iterator[str]:
    absent = f"no file or folder is named {name!r}"
    if not _DATASET_NAME.fullmatch(name):
        raise ValueError(absent)
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{absent}; if it is a Hugging Face dataset: pip install 'archzoo[data]'") from error
    try:
        rows = datasets.load_dataset(*name.split(":"), split="train", streaming=True)
    except Exception as error:  # the library raises errors of many kinds, also those of its network stack
        raise ValueError(f"{absent}, nor can it be loaded as a Hugging Face dataset: {_first_line(error)}") from error
    for row, record in enumerate(rows):
        yield _text_of(record, f"{name} row {row}")


def _text_of(record: object, where: str) -> str:
    if not isinstance(record, dict):
        raise ValueError(f'{where} is not an object with a field "text", but a {type(record).__name__}')
    if "text" not in record:
        raise ValueError(f'{where} has no field "text"; it has {", ".join(map(str, record)) or "none"}')
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f'{where}: the field "text" is not a string, but {text!r:.40}')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer can encode
        raise ValueError(f'{where}: the field "text" has a lone surrogate at character {error.start}') from error
    return text


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {".jsonl": _jsonl, ".parquet": _parquet}
