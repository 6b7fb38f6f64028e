"""What `import archzoo` and `archzoo --help` take, and that neither loads jax: python benchmarks/startup.py

In turn with an interpreter that does nothing, whose share of the time is not ours."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Row, Side, arguments, interleave, parsed, report, spread

MOST = 0.3
COMMANDS = {
    "nothing": [sys.executable, "-c", "pass"],
    "import archzoo": [sys.executable, "-c", "import archzoo"],
    "archzoo --help": [str(Path(sys.executable).with_name("archzoo")), "--help"],
}
HELP = """
import sys
sys.argv = ["archzoo", "--help"]
from archzoo.cli import main
try:
    main()
except SystemExit:
    pass
"""
CHECKS = {"import archzoo": "import archzoo", "archzoo --help": HELP}


def main() -> None:
    options = parsed(arguments(__doc__))
    report("startup", "Start", rows(options), keep=not options.quick)


def rows(options: Any) -> Iterator[Row]:
    seconds = interleave({name: runs(command) for name, command in COMMANDS.items()}, options.pairs)
    for name, code in CHECKS.items():
        yield Row(
            name=name,
            values=seconds[name],
            unit="s",
            target=MOST,
            at_most=True,
            ours=f"{spread(seconds[name])} s",
            against="python -c pass",
            theirs=f"{spread(seconds['nothing'])} s",
            failed="it loads jax" if loads_jax(code) else "",
            sides={side: {"seconds": seconds[side]} for side in ("nothing", name)},
        )


def runs(command: list[str]) -> Side:
    def run() -> float:
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin

    return run


def loads_jax(code: str) -> bool:
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('jax' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return said.stdout.splitlines()[-1] == "True"


if __name__ == "__main__":
    main()
