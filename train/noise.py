"""What libraries below Python write to stderr, without what says nothing to the user: the CUDA plugin reports, once for
each of its parts, that there is no GPU here, which is why one plans. No setting of its own keeps it from that."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

NOISE = re.compile(rb"before absl::InitializeLog\(\)|cudart_stub|GPU will not be used")


@contextmanager
def hushed(noise: re.Pattern[bytes] = NOISE) -> Iterator[None]:
    """Lines of the process's stderr that match are dropped, others pass at once; Python's own stderr is as before.

    Enter it before jax is imported. Does nothing where stderr is no file."""
    try:
        own = os.dup(2)
    except OSError:
        yield
        return
    read, write = os.pipe()
    sys.stderr.flush()
    python = sys.stderr
    os.dup2(write, 2)
    os.close(write)
    pump = Thread(target=_pump, args=(read, own, noise), daemon=True)
    pump.start()
    if _is_file(python, 2):
        sys.stderr = os.fdopen(os.dup(own), "w", encoding="utf-8", buffering=1)
    try:
        yield
    finally:
        if sys.stderr is not python:
            sys.stderr.close()
            sys.stderr = python
        os.dup2(own, 2)  # the pipe's last writer, so that the pump comes to an end
        pump.join(timeout=5)
        os.close(own)


def _is_file(stream: object, number: int) -> bool:
    try:
        return isinstance(stream, io.IOBase) and stream.fileno() == number
    except OSError:
        return False


def _pump(read: int, to: int, noise: re.Pattern[bytes]) -> None:
    with os.fdopen(read, "rb", buffering=0) as lines:
        rest = b""
        while more := lines.read(65536):
            *whole, rest = (rest + more).split(b"\n")
            for line in whole:
                if not noise.search(line):
                    os.write(to, line + b"\n")
        if rest and not noise.search(rest):
            os.write(to, rest)
