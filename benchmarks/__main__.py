"""`python -m benchmarks`: compares optkit with other libraries and with the floor."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

try:
    from rich.console import Console

    from .jobs import JOBS
    from .machine import describe
    from .measure import CLOCKS, choose_clock
    from .page import write_page
    from .peers import missing
    from .plots import write
    from .quality import tune
    from .report import Done, Result, Session, load, save
    from .show import (
        TARGET_HEADINGS,
        as_grid,
        as_words,
        floor_words,
        summary,
        target_words,
    )
except ModuleNotFoundError as error:
    words = f'{error}; run `pip install -e ".[bench]"` first'
    print(f"python -m benchmarks: error: {words}", file=sys.stderr)
    raise SystemExit(2) from None

FAILED = "Failed"
WIDTH = 120  # of the tables, if the output is not a terminal
EPILOG = f"""\
jobs:      {", ".join(name for name, job in JOBS.items() if not job.is_long)}
long jobs: {", ".join(name for name, job in JOBS.items() if job.is_long)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen jobs, prints their tables, and writes the requested files."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    if options.size is not None and len(options.job or []) != 1:
        parser.error("argument --size: needs exactly one --job")
    for path in options.show or ():
        if not path.is_file():
            parser.error(f"argument --show: no such file: {path}")
    for path in filter(None, (options.json, options.write)):
        if not path.resolve().parent.is_dir():
            parser.error(f"no such folder: {path.parent}")
    if options.write is not None and options.job:
        parser.error(
            "argument --write: needs all jobs, because it rewrites the whole page. "
            "Save single jobs with --json, then join the files: --show A B --write"
        )
    if options.tune and options.job not in (None, ["quality"]):
        parser.error("argument --tune: only the job quality has grids to search")
    if options.tune:
        tune()
        return 0
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # so that compile times are real
    choose_clock(options.clock)
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    session = _joined(options.show) if options.show else _run(options, console)
    if options.show:
        for done in session.done:
            _print(console, done)
    _conclude(console, session)
    _write(session, options)
    return int(any(FAILED in word for word in _remarks(session)))


def _joined(paths: Sequence[Path]) -> Session:
    """Joins the jobs in the order of the page; the machine is that of the first."""
    sessions = [load(path) for path in paths]
    done = {item.job: item for session in sessions for item in session.done}
    ordered = [done[name] for name in JOBS if name in done]
    seconds = sum(session.seconds for session in sessions)
    return sessions[0]._replace(done=ordered, seconds=seconds)


def _remarks(session: Session) -> list[str]:
    return [word for done in session.done for word in done.result.remarks]


def _run(options: argparse.Namespace, console: Console) -> Session:
    names = options.job or [
        n for n, job in JOBS.items() if options.long or not job.is_long
    ]
    machine = describe()
    console.print(machine)
    start = time.perf_counter()
    finished = []
    for name in names:
        job, begin = JOBS[name], time.perf_counter()
        size = options.size or job.size
        try:
            result = job.run(size, options.rounds or job.rounds)
        except Exception as error:  # the other jobs still run; the exit code is 1
            result = Result(remarks=[f"{FAILED}: {type(error).__name__}: {error}"])
        result = result._replace(remarks=[*result.remarks, *missing()])
        finished.append(Done(name, size, time.perf_counter() - begin, result))
        _print(console, finished[-1])
        jax.clear_caches()
    left_out = [name for name, job in JOBS.items() if job.is_long and name not in names]
    if left_out and not options.job:
        names = ", ".join(left_out)
        console.print(f"Skipped, because they take minutes (use --long): {names}.")
    return Session(machine, options.clock, finished, time.perf_counter() - start)


def _print(console: Console, done: Done) -> None:
    job = JOBS[done.job]
    console.print()
    console.rule(f"{done.job}: {job.title}, {done.size:,} {job.unit}", align="left")
    for table in done.result.tables:
        console.print(as_grid(table.title, *as_words(table)))
        if table.floor is not None:
            console.print(floor_words(table), highlight=False)
    for remark in done.result.remarks:
        console.print(remark)
    for target in done.result.targets:
        words = target_words(target)
        spread = f" ({words[3]})" if words[3] else ""
        line = f"{words[0]}: {words[2]}{spread}, at most {words[1]}: {target.verdict}"
        console.print(line, style="" if target.verdict == "met" else "bold")
    console.print(f"{done.seconds:.0f} s", style="dim")


def _conclude(console: Console, session: Session) -> None:
    rows = [
        target_words(target) for done in session.done for target in done.result.targets
    ]
    if len(session.done) > 1 and rows:
        console.print()
        console.print(as_grid("Targets", TARGET_HEADINGS, rows))
    console.print(summary(session))


def _write(session: Session, options: argparse.Namespace) -> None:
    written = []
    if options.json is not None:
        save(session, options.json)
        written.append(options.json)
    if options.plots is not None:
        plots = [plot for done in session.done for plot in done.result.plots]
        written += write(plots, options.plots)
    if options.write is not None:
        written += write_page(session, options.write)
    if written:
        print("Wrote", ", ".join(map(str, written)))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--job",
        action="extend",
        nargs="+",
        choices=JOBS,
        metavar="NAME",
        help="the jobs to run (default: all but the long ones)",
    )
    parser.add_argument("--long", action="store_true", help="run the long jobs as well")
    parser.add_argument(
        "--size",
        type=_positive,
        help="problem size of a single job, in the unit of that job",
    )
    parser.add_argument(
        "--rounds", type=_positive, help="how often each candidate is timed"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the numbers")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="save the plots")
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="write the page and its plots"
    )
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="run nothing; show the files that --json saved in one or several runs",
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="wall time, or CPU time of this process for a rough look on a machine "
        "that is busy (default: wall)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="only search the grids of the job quality again",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
