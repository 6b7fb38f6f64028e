"""The house: its rooms import downhill, it installs whole, costs nothing to import, and clashes with nobody's files."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "sharding": set(),
    "layers": {"sharding"},
    "zoo": {"layers", "sharding"},
    "train": {"zoo", "layers", "sharding"},
}
MODULES = sorted(path.relative_to(ROOT) for room in MAY_IMPORT for path in (ROOT / room).glob("*.py"))


def imports(module: Path) -> set[tuple[str, str]]:
    """(room, file) of every import of this package in a module, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            steps = (node.module or "").split(".") if node.module else []
            room = module.parts[0] if node.level == 1 else steps.pop(0)
            found |= {(room, steps[0])} if steps else {(room, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_rooms_import_only_what_lies_below(module: Path) -> None:
    rooms = {room for room, _ in imports(module)}
    assert rooms <= MAY_IMPORT[module.parts[0]] | {module.parts[0]}


def test_files_of_a_room_import_one_way() -> None:
    below = {
        (module.parts[0], module.stem): {found for found in imports(module) if found[0] == module.parts[0]}
        for module in MODULES
    }
    while below:
        leaves = {name for name, needs in below.items() if not needs & below.keys()}
        assert leaves, f"these import each other: {sorted(below)}"
        below = {name: needs for name, needs in below.items() if name not in leaves}


def python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_and_its_command_line_loads_no_jax(tmp_path: Path) -> None:
    code = "import sys, archzoo, archzoo.cli; archzoo.cli.parser(); print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    assert python(code, tmp_path) == "set()"


def test_listing_the_presets_loads_no_jax(tmp_path: Path) -> None:
    code = "import sys; from archzoo.cli import main; main(['list']); print({'jax', 'flax'} & set(sys.modules))"
    assert python(code, tmp_path).splitlines()[-1] == "set()"


def test_every_public_name_is_there(tmp_path: Path) -> None:
    code = (
        "import archzoo; print(all(callable(getattr(archzoo, n)) or len(getattr(archzoo, n)) for n in archzoo.__all__))"
    )
    assert python(code, tmp_path) == "True"


def test_a_spec_is_read_where_nothing_else_is_imported(tmp_path: Path) -> None:
    from archzoo import MODELS

    for name in ("deepseek-v3", "gemma3-27b"):
        (tmp_path / "spec.json").write_text(MODELS[name].to_json())
        code = "import archzoo; print(archzoo.Spec.from_json(open('spec.json').read()).param_count())"
        assert python(code, tmp_path) == str(MODELS[name].param_count())


def test_a_users_own_train_py_does_not_clash(tmp_path: Path) -> None:
    for name in ("train", "layers", "zoo", "sharding", "cli"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    assert (
        python("import train, layers, zoo, archzoo; print(train.mine, archzoo.Execution().dtype)", tmp_path)
        == "True float32"
    )


@pytest.mark.slow
def test_the_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {f"archzoo/{path.as_posix()}" for path in MODULES}
    data = {"archzoo/py.typed", "archzoo/zoo/listed.json"}
    assert packed == tree | data | {"archzoo/__init__.py", "archzoo/cli.py"}
