"""The progress bars of a run."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console) -> Progress:
    """A context manager that shows one bar per optimizer, with its losses.

    If the console is not a terminal, only the finished bars are printed.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:>5}/{task.total} steps"),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        expand=True,
    )


def add_bar(
    progress: Progress, name: str, steps: int
) -> Callable[[int, float, float], None]:
    """Adds a bar.

    Args:
        progress: From `progress_bar`.
        name: The text before the bar.
        steps: The length of the bar.

    Returns:
        A function that moves the bar: the `report` of `training.train`.
    """
    task = progress.add_task(name, total=steps, status="compiling")

    def report(step: int, loss: float, accuracy: float) -> None:
        status = f"loss {loss:.4f}  acc {accuracy:.1%}"
        progress.update(task, completed=step, status=status)

    return report
