"""The order of the files and their size (oracle: the files themselves, parsed)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "optkit"
LAYERS = [
    {"_types", "_results", "_version", "_interrupt", "_check", "_linearize", "_vector"},
    {"_curvature", "_geometry"},
    {"_inverse", "_solver"},
    {"optim", "_implicit", "solvers", "_influence", "_pruning", "_diagnostics"},
    {"bilevel"},
    {"demo"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = {"__init__", "__main__"}  # the surface and the command: they see everything
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if "demo" not in path.relative_to(PACKAGE).parts]
# Tests that are not of one file.
WHOLE = {
    "benchmarks",
    "checkpoint",
    "contract",
    "devices",
    "faults",
    "layers",
    "notebooks",
    "processes",
    "promotion",
    "properties",
    "readme",
}
EXTRAS = ("matplotlib", "mlxtend", "rich", "sklearn", "pandas", "scipy.stats", "chex")


def room(module: str) -> str:
    """The file or folder directly below `optkit` that a module is in."""
    return module.split(".")[1] if "." in module else module


def module_name(path: Path) -> str:
    """optkit/optim/_adan.py -> optkit.optim._adan."""
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
    """A file imports its own folder and lower layers, no sibling and none above."""
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


@pytest.mark.parametrize(
    "path", [*PACKAGE.rglob("__init__.py")], ids=lambda path: module_name(path)
)
def test_an_init_only_re_exports(path):
    """An `__init__.py` holds a docstring and `from ._x import a as a`."""
    doc, *body = ast.parse(path.read_text()).body
    assert isinstance(doc, ast.Expr)
    for node in body:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names)


def test_there_are_about_sixty_flat_names():
    """Algorithms, their states and schedules are in namespaces."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    nodes = [node for node in body if isinstance(node, ast.ImportFrom)]
    assert len([alias.name for node in nodes for alias in node.names]) <= 66


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
        folder, name = PACKAGE / path.parent.relative_to(tests), path.stem[5:]
        names = {f"{name}.py", f"_{name}.py", f"__{name}__.py"}
        is_whole = (path.parent == tests and name in WHOLE) or name == "peers"
        assert is_whole or names & {file.name for file in folder.glob("*.py")}, path


def test_checks_are_objects():
    """No function takes the name of the public call: it takes a `Check`."""
    holders = [path.name for path in FILES if "call: str" in path.read_text()]
    assert holders == ["_check.py"]


def lines_of(node: ast.AST, end: int | None = None) -> set[int]:
    """The numbers of its lines, up to an end."""
    return set(range(node.lineno, (end or node.end_lineno) + 1))


def docstring_of(node: ast.AST) -> set[int]:
    """The lines of the docstring of a module, class or function."""
    is_owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    return lines_of(node.body[0]) if is_owner and ast.get_docstring(node) else set()


def is_check(node: ast.AST) -> bool:
    """Whether it is a call, alone on its line, of something with check in its name."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return is_call and "check" in ast.unparse(node.value.func)


def checks_and_algorithm(path: Path) -> tuple[int, int]:
    """Counts the lines that check, and the other lines of code."""
    text = path.read_text()
    rows = enumerate(map(str.strip, text.splitlines()), 1)
    code = {i for i, row in rows if row and not row.startswith("#")}
    checks = set(code) if path.name == "_check.py" else set()
    for node in ast.walk(ast.parse(text)):
        code -= docstring_of(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            code -= lines_of(node)
        elif isinstance(node, ast.Raise) or is_check(node):
            checks |= lines_of(node)
        elif isinstance(node, ast.If) and ast.Raise in map(type, node.body):
            checks |= lines_of(node, node.body[0].lineno - 1)
    return len(checks & code), len(code - checks)


def test_checks_are_few():
    """Fewer than nine lines of checks for a hundred lines of algorithm."""
    checks, algorithm = map(sum, zip(*map(checks_and_algorithm, CORE), strict=True))
    assert checks < 0.09 * algorithm, (checks, algorithm)


@pytest.mark.parametrize("path", CORE, ids=lambda path: module_name(path))
def test_a_file_and_its_functions_are_short(path):
    """A file has 300 lines at most, and a body 60, docstring aside."""
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            size = len(lines_of(node) - docstring_of(node))
            assert size <= 60, f"{node.name} has {size} lines"
