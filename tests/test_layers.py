"""The one-way order of the files (oracle: the imports themselves, parsed)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "optkit"
LAYERS = [
    {"_types", "_results", "_check", "_vector"},
    {"_curvature", "_geometry"},
    {"_inverse", "_solver"},
    {"optim", "_implicit", "solvers", "_influence", "_pruning", "_diagnostics"},
    {"bilevel"},
    {"demo"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = {"__init__", "__main__"}  # the surface and the command: they see everything
FILES = sorted(PACKAGE.rglob("*.py"))
EXTRAS = ("matplotlib", "mlxtend", "rich", "sklearn", "pandas", "scipy.stats", "chex")


def room(module: str) -> str:
    """The file or folder directly below `optkit` that a module is in."""
    return module.split(".")[1] if "." in module else module


def module_name(path: Path) -> str:
    """optkit/_optim/adan.py -> optkit.optim.adan."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """The optkit modules that a file imports, absolute."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            if node.module and PACKAGE.parent.joinpath(*module.split(".")).is_dir():
                found |= {f"{module}.{alias.name}" for alias in node.names}
            elif node.module:
                found.add(module)
            else:
                found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module.startswith("optkit") else set()
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("optkit")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_imports_point_down(path):
    """A file imports lower layers and its own folder, never a sibling or a higher."""
    name = module_name(path)
    if name == "optkit" or (path.stem in TOP and path.parent == PACKAGE):
        return
    assert room(name) in LEVEL, f"{name} has no layer: name it in test_layers.py"
    for module in imports(path):
        if module == "optkit":
            assert room(name) == "demo", f"{name} imports the whole of optkit"
            continue
        same = room(module) == room(name)
        both_base = LEVEL[room(name)] == 0
        assert same or both_base or LEVEL[room(module)] < LEVEL[room(name)], (
            f"{name} imports {module}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_no_function_imports(path):
    """Imports stand at the top of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [
                n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            assert not inner, f"{path.name}:{inner[0].lineno} imports in a function"


def test_the_surface_only_re_exports():
    """`optkit/__init__.py` holds a docstring and `from ._x import a as a`."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    for node in body[1:]:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names)


def test_import_pulls_in_no_extra():
    """Oracle: sys.modules of a fresh interpreter."""
    code = "import sys, optkit; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "optkit" in loaded
    assert not [name for name in loaded if name in EXTRAS]


def test_every_test_file_mirrors_a_file():
    """tests/optim/test_adan.py tests optkit/optim/_adan.py."""
    tests = Path(__file__).parent
    for path in tests.rglob("test_*.py"):
        if path.parent == tests:
            continue
        folder, name = PACKAGE / path.parent.relative_to(tests), path.name[5:]
        is_namespace = not folder.name.startswith("_") and folder.name != "demo"
        assert (folder / (f"_{name}" if is_namespace else name)).exists(), path
