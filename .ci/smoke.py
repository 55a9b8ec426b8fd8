"""Builds wheel and sdist, installs them where nothing else is, and tries them out.

    python .ci/smoke.py

Prints what `pip install optkit` brings beyond jax and optax, in packages and MiB, and
what `import optkit` takes beyond theirs. Fails where something does not work, where the
two distributions differ, where a package came along that `CLOSURE` does not name, or
where the import is slow (`MAX_IMPORT`). Needs Python and pip alone.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLOSURE = {
    "optkit", "equinox", "lineax", "jaxtyping", "wadler-lindig", "typing-extensions",
}  # fmt: skip
MAX_IMPORT = 0.75  # of the time that `import jax` takes on this machine, now
IMPORT = """
import time
times = [time.process_time()]
import jax
times.append(time.process_time())
import optax
times.append(time.process_time())
import optkit
times.append(time.process_time())
print([times[1] - times[0], times[3] - times[2]])
"""


def main() -> None:
    """Builds, installs, tries out, and prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = _environment(work / "venv")
        run(*_install(python), "build", "hatchling", cwd=work)
        build = ("-m", "build", "--no-isolation", "--outdir", work / "dist", ROOT)
        run(python, *build, cwd=work)
        python = _environment(work / "clean")
        install = _install(python)
        check_sdist(next((work / "dist").glob("*.tar.gz")))
        # What users of jax and optax have already.
        run(*install, "jax", "optax", cwd=work)
        before = _installed(python, work)
        (wheel,), (sdist,) = (
            (work / "dist").glob(name) for name in ("*.whl", "*.tar.gz")
        )
        run(*install, wheel, cwd=work)
        after = _installed(python, work)
        for x64 in ("0", "1"):
            quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in half the time
            run(python, __file__, "--inside", cwd=work, JAX_ENABLE_X64=x64, **quick)
        times = [run(python, "-c", IMPORT, cwd=work, quiet=True) for _ in range(3)]
        jax_seconds, seconds = map(min, zip(*map(json.loads, times), strict=True))
        run(*install, "--no-deps", "--force-reinstall", sdist, cwd=work)
        rebuilt = _installed(python, work)
    new = {name: size for name, size in after.items() if name not in before}
    for name, size in sorted(new.items(), key=lambda item: -item[1]):
        print(f"{name:20} {size / 2**20:6.2f} MiB")
    total = sum(new.values()) / 2**20
    print(f"beyond jax and optax: {len(new)} packages, {total:.2f} MiB")
    print(f"import optkit: {seconds:.2f} s of CPU time beyond jax and optax", end="; ")
    print(f"import jax: {jax_seconds:.2f} s")
    unknown = set(new) - CLOSURE
    assert not unknown, f"new packages come along: {sorted(unknown)}"
    assert rebuilt == after, "wheel and sdist install different files"
    assert seconds < MAX_IMPORT * jax_seconds, "the import is slow beside that of jax"


def check_sdist(path: Path) -> None:
    """Fails unless the sdist has all that the tests in it need."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [ROOT / "conftest.py", ROOT / "README.md", ROOT / "CITATION.cff"]
    for folder in ("benchmarks", "docs", "notebooks", "optkit", "tests"):
        for pattern in ("*.py", "*.md", "*.ipynb", "*.json"):
            wanted += (ROOT / folder).rglob(pattern)
    relative = (path.relative_to(ROOT) for path in wanted)
    missing = {
        str(p) for p in relative if not any(x[0] == "." for x in p.parts)
    } - names
    assert not missing, f"the sdist lacks {sorted(missing)}"


def run(*command: object, cwd: Path, quiet: bool = False, **variables: str) -> str:
    """What a command prints; it runs outside the checkout, and must succeed."""
    words = [str(word) for word in command]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | variables
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    done = subprocess.run(
        words, cwd=cwd, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed\n{done.stdout}{done.stderr}")
    if not quiet and "--inside" in words:
        print(done.stdout, end="")
    return done.stdout


def _environment(folder: Path) -> Path:
    """The interpreter of a new, empty virtual environment."""
    venv.create(folder)
    return folder / "bin" / "python"


def _install(python: Path) -> tuple[object, ...]:
    """The start of a command that installs into an environment, which has no pip."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    return *pip, "install", "--quiet", "--no-compile"


def _installed(python: Path, work: Path) -> dict[str, int]:
    """The bytes of each installed package, by name."""
    return json.loads(run(python, __file__, "--sizes", cwd=work, quiet=True))


def sizes() -> None:
    """Prints what `_installed` reads, of the environment that runs it."""
    found = {}
    for package in importlib.metadata.distributions():
        files = [Path(str(file.locate())) for file in package.files or []]
        kept = [f for f in files if f.suffix != ".pyc" and f.parent.suffix == ""]
        name = package.metadata["Name"].lower().replace("_", "-")
        found[name] = sum(file.stat().st_size for file in kept if file.exists())
    print(json.dumps(found))


def inside() -> None:
    """One step of everything, in an environment without the extras."""
    import jax
    import jax.numpy as jnp
    import lineax as lx
    import numpy as np
    import optax

    import optkit as ok

    assert ROOT not in Path(ok.__file__).resolve().parents, ok.__file__
    assert ok.__version__ == importlib.metadata.version("optkit")
    key = jax.random.key(0)
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(params):
        return jnp.sum(params["w"] ** 4) + (params["b"] - jnp.sum(params["w"])) ** 2

    optimizers = {
        "adan": ok.optim.adan(0.1, weight_decay=0.1),
        "adahessian": ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=key),
        "sophia": ok.optim.with_hutchinson(ok.optim.sophia(0.1), key=key),
        "mfac": ok.optim.mfac(0.1, 4, 0.1),
        "accumulate": ok.optim.accumulate(
            ok.optim.adan(0.1), every=1, hessian_diag=False
        ),
    }

    @jax.jit
    def step(params):
        found = {}
        for name, tx in optimizers.items():
            tx = optax.with_extra_args_support(tx)
            grads = jax.grad(loss)(params)
            updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
            found[name] = loss(optax.apply_updates(params, updates))
        return found

    for name, value in step(params).items():
        assert value < loss(params), name
        assert value.dtype == jnp.result_type(float), name

    C = ok.hessian(loss, params)
    P = ok.invert(C, lx.LU(), damping=1e-2)
    want = np.linalg.inv(np.asarray(C.as_matrix()) + 1e-2 * np.eye(3))
    np.testing.assert_allclose(P.as_matrix(), want, rtol=1e-4, atol=1e-6)

    @ok.implicit_minimum(lambda y, theta: 0.5 * jnp.sum((y - theta) ** 2) + y**4)
    def solve(y0, theta):
        return jax.lax.fori_loop(
            0, 60, lambda _, y: y - 0.1 * (y - theta + 4 * y**3), y0
        )

    y, slope = jax.jit(jax.value_and_grad(lambda t: solve(0.0, t)))(2.0)
    np.testing.assert_allclose(slope, 1 / (1 + 12 * y**2), rtol=1e-4)

    solver = ok.bilevel.f2sa(
        lambda x, y, batch: 0.5 * jnp.sum((y - 1) ** 2 + x**2),
        lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2),
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.5),
        penalty=10.0,
    )
    state, info = jax.jit(solver.step)(solver.init(jnp.zeros(2), jnp.zeros(2)), None)
    assert bool(info.result == ok.RESULTS.successful)
    assert np.all(np.isfinite(state.x))
    message = ""
    try:
        ok.plot.curves(np.ones((3, 2)))
    except ModuleNotFoundError as error:
        message = str(error)
    assert "pip install matplotlib" in message, (
        "matplotlib came along, or nothing is said"
    )
    print(f"Python {sys.version.split()[0]}, jax {jax.__version__},", end=" ")
    print(f"x64 {jax.config.read('jax_enable_x64')}: works")


if __name__ == "__main__":
    {"--inside": inside, "--sizes": sizes}.get("".join(sys.argv[1:]), main)()
