"""A scan with a progress bar, also inside `jax.jit`."""

import importlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from .._check import Check

Report = Callable[[int, int, Mapping[str, np.ndarray]], Any]


def scan_with_progress(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    *,
    every: int | None = None,
    label: str = "scan",
    show: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    report: Report | None = None,
) -> tuple[PyTree, PyTree]:
    """Runs `jax.lax.scan` with a progress bar.

    It uses rich if standard error is a terminal and rich is installed (`pip install
    rich`); otherwise it prints a few lines.

    The host is called after the first step, every `every` steps, and after the last;
    other steps do not wait. Results and derivatives are those of `lax.scan`. Under
    `jax.vmap` the members report in turn.

    Args:
        f: the body, f(carry, x) -> (carry, y).
        init: the first carry.
        xs: the inputs to scan over, as in `lax.scan`.
        length: the number of steps, if `xs` is None.
        every: steps between two reports. Default: a hundredth of the steps, at least 1.
        label: the text before the bar.
        show: show(carry, y) -> {name: scalar}, the numbers to show after the bar, such
            as `lambda carry, loss: {"loss": loss}`. Computed only for reports.
        report: report(finished, total, shown), called instead of drawing a bar. It runs
            in one of JAX's threads and must not call JAX; if it raises, the scan ends.

    Returns:
        The last carry, and the stacked y.

    Raises:
        ValueError: if neither `xs` nor `length` is given, or they are empty.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> def halve(x, _):
        ...     return x / 2, x
        >>> show = lambda x, y: {"x": x}
        >>> report = lambda done, total, shown: print(f"{done}/{total} {shown['x']}")
        >>> options = {"every": 2, "show": show, "report": report}
        >>> last, _ = ok.scan_with_progress(halve, jnp.ones(()), length=4, **options)
        1/4 0.5
        2/4 0.25
        4/4 0.0625
    """
    check = Check("ok.scan_with_progress")
    check.function(f=f)
    check.optional.function(show=show, report=report)
    check.optional.count(every=every, length=length)
    if length is None:
        check.that(jax.tree.leaves(xs), "needs xs or `length=`, got neither.")
        check.batch(xs=xs)
    total = length or len(jax.tree.leaves(xs)[0])
    every = every or max(1, total // 100)
    tell = _Bar(label) if report is None else report

    def host(done: Any, shown: Mapping[str, Any]) -> None:
        tell(int(done), total, {name: np.asarray(a) for name, a in shown.items()})

    def body(carry: PyTree, numbered: Any) -> tuple[PyTree, PyTree]:
        done, x = numbered
        carry, y = f(carry, x)

        def now() -> None:
            shown = {} if show is None else dict(show(carry, y))
            jax.debug.callback(host, done, shown)

        is_due = (done == 1) | (done % every == 0) | (done == total)
        lax.cond(is_due, now, lambda: None)
        return carry, y

    numbers = jnp.arange(1, total + 1, dtype=jnp.int32)
    return lax.scan(body, init, (numbers, xs), length=total)


class _Bar:
    """Shows the progress of one scan after another; any thread may call it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._lock = threading.Lock()
        self._start = 0.0
        self._done = 0
        self._bar: Any = None

    def __call__(self, done: int, total: int, shown: Mapping[str, np.ndarray]) -> None:
        with self._lock:
            if done == self._done:
                return  # reported by another member of a vmap
            if done < self._done or self._done == 0:
                self._begin(total)
            # One number, or under `vmap` the mean of several.
            means = {name: float(np.mean(a)) for name, a in shown.items()}
            status = "  ".join(f"{name} {mean:.4g}" for name, mean in means.items())
            if self._bar is not None:
                self._bar.update(0, completed=done, status=status)
                self._bar.refresh()
                if done == total:
                    self._bar.stop()
            elif done in {1, total} or 10 * done // total > 10 * self._done // total:
                self._print(done, total, status)
            self._done = done

    def _begin(self, total: int) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._start, self._done, self._bar = time.monotonic(), 0, None
        if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
            self._bar = _rich_bar(self._label, total)

    def _print(self, done: int, total: int, status: str) -> None:
        text = f"{self._label}: {done}/{total}"
        if 1 < done < total:
            spent = time.monotonic() - self._start  # since the end of the first step
            text += f", {spent * (total - done) / (done - 1):.0f} s left"
        print(f"{text}  {status}".rstrip(), file=sys.stderr, flush=True)


def _rich_bar(label: str, total: int) -> Any:
    """A rich bar that is redrawn on request, without a thread of its own."""
    rich = importlib.import_module("rich.progress")
    console = importlib.import_module("rich.console").Console(stderr=True)
    bar = rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TextColumn("{task.completed}/{task.total}"),
        rich.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        rich.TextColumn("{task.fields[status]}", markup=False),
        console=console,
        auto_refresh=False,
    )
    bar.add_task(label, total=total, status="")
    bar.start()
    console.show_cursor()  # else it stays hidden if Ctrl-C ends the scan
    return bar
