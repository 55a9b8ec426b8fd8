"""Writes docs/performance.md: the numbers of a run and the texts of its jobs."""

from collections.abc import Sequence
from pathlib import Path

from .jobs import JOBS
from .plots import write
from .report import Done, Session, Table
from .show import TARGET_HEADINGS, as_words, floor_words, summary, target_words

HEAD = """\
# Performance

Every number in the tables of this page comes from one run of the benchmarks:

```bash
pip install -e ".[bench]" && python -m benchmarks --write docs/performance.md
```

`--job NAME` runs one part. `--long` adds training quality, hyper-cleaning and the demo.
`--json FILE` saves the numbers. PyTorch is measured if it is installed.
"""
READING = """\
**How to read the tables.** All candidates of a table run in turn, in one process. A
ratio is the median over rounds of the ratio within a round, with its quartiles in
parentheses, so it does not depend on the drift of the machine. A ratio below 1 means
faster than the reference. The *floor* is the time that the work itself needs: its bytes
and FLOPs, counted in code, at the speeds of copying and multiplying that were measured
in the same run. The *peak* is the memory of arguments, outputs and temporaries, as
reported by the compiler.
"""


def write_page(session: Session, path: Path) -> list[Path]:
    """Writes the page, and its plots to a folder of the same name."""
    folder = path.with_suffix("")
    plots = [plot for done in session.done for plot in done.result.plots]
    written = write(plots, folder)
    path.write_text(page(session, folder.name), encoding="utf-8")
    return [path, *written]


def page(session: Session, folder: str) -> str:
    """The text of the page; its plots are in `folder`."""
    parts = [
        HEAD,
        f"Measured on: {session.machine}. Clock: {session.clock}.\n",
        READING,
    ]
    parts += ["## Targets\n", summary(session) + "\n", _targets(session)]
    for done in session.done:
        parts.append(_section(done, folder))
    return "\n".join(parts)


def _targets(session: Session) -> str:
    """The table of targets, and the reasons for the missed ones."""
    targets = [target for done in session.done for target in done.result.targets]
    rows = [target_words(target) for target in targets]
    missed: dict[str, list[str]] = {}
    for target in targets:
        if target.verdict.startswith("missed"):
            cause = target.cause or "The reason is not known."
            missed.setdefault(cause, []).append(f"*{target.sentence}.*")
    table = _markdown(TARGET_HEADINGS, rows)
    if not missed:
        return table
    reasons = [f"- {' '.join(names)} {cause}" for cause, names in missed.items()]
    return "\n".join([table, "Why some targets are missed:", "", *reasons, ""])


def _section(done: Done, folder: str) -> str:
    job = JOBS[done.job]
    parts = [
        f"## {job.title}\n",
        f"Size: {done.size:,} {job.unit}. `python -m benchmarks --job {done.job}` "
        f"runs it ({done.seconds:.0f} s).\n",
        job.reading + "\n",
    ]
    parts += [_table(table) for table in done.result.tables]
    parts += [
        f"![{plot.title}]({folder}/{plot.name}.svg)\n" for plot in done.result.plots
    ]
    parts += [f"{remark}\n" for remark in done.result.remarks]
    return "\n".join(parts)


def _table(table: Table) -> str:
    parts = [f"**{table.title}**\n", _markdown(*as_words(table))]
    if table.floor is not None:
        parts.append(floor_words(table) + "\n")
    return "\n".join(parts)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(headings)} |",
        f"|---{'|---:' * (len(headings) - 1)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
