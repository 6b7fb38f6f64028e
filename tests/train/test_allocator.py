"""The process starts over once, with its arguments, and never against the user's own settings."""

import os
import subprocess
import sys

from archzoo.train.allocator import ENVIRONMENT

PROGRAM = """
import os, sys
print("started", flush=True)
import archzoo
archzoo.restart()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], "jax" in sys.modules)
"""


def run(environment: dict[str, str]) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    command = [sys.executable, "-c", PROGRAM, "some", "arguments"]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_starts_over_once_with_its_arguments() -> None:
    assert run({}) == ["started", "started", f"{ENVIRONMENT['GLIBC_TUNABLES']} some arguments False"]


def test_the_users_own_settings_stay() -> None:
    own = "glibc.malloc.arena_max=2"
    assert run({"GLIBC_TUNABLES": own}) == ["started", f"{own} some arguments False"]
