"""What the CUDA plugin says about missing GPUs is dropped from the process's stderr, everything else passes."""

import subprocess
import sys

PROGRAM = """
import os, sys
from archzoo.train.noise import hushed
with hushed():
    os.write(2, b"I0000 1 cudart_stub.cc:31] Could not find cuda drivers\\n")
    os.write(2, b"kept: from below\\n")
    print("kept: from Python", file=sys.stderr)
    os.write(2, b"kept: unfinished")
print("kept: later", file=sys.stderr)
os.write(2, b"cudart_stub: no longer dropped\\n")
"""


def test_only_the_noise_is_dropped_and_only_inside() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.replace("unfinishedkept", "unfinished\nkept").splitlines()
    assert sorted(lines) == sorted(
        ["kept: from below", "kept: from Python", "kept: unfinished", "kept: later", "cudart_stub: no longer dropped"]
    )


def test_what_raises_inside_leaves_stderr_as_it_was() -> None:
    program = PROGRAM.replace('b"kept: unfinished")', 'b"kept: unfinished"); raise ValueError("whatever")')
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: whatever" in done.stderr
    assert "kept: from below" in done.stderr
