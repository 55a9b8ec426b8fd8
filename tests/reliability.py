"""Writes `docs/reliability.md` from what the tests declare.

    python tests/reliability.py --write

A section is a function without arguments that returns Markdown, made from code or from
a table that tests check: list it in `SECTIONS`. `tests/test_faults.py` asserts that the
committed page is what this writes.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import killed
import properties
from faults import AREAS, CATALOGUE, names_to_try
from faulty import KINDS, Fault, Raises, Reports, Right, Shows

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
SIGNS = {Raises: "E", Reports: "R", Shows: "N", Right: "✓"}


def figures() -> str:
    """What was tried, in numbers."""
    ended = {sign: 0 for sign in SIGNS.values()}
    for fault in CATALOGUE:
        ended[SIGNS[type(fault.outcome)]] += 1
    silent = len(CATALOGUE) - sum(ended.values())
    return f"""# Reliability

What happens when the input is bad. This page is written by
`python tests/reliability.py --write` from the tables that the tests run, and a test
fails when it is not what they say.

| | |
|---|---:|
| kinds of bad input | {len(KINDS)} |
| public functions and classes tried | {len(names_to_try())} |
| faults tried | {len(CATALOGUE)} |
| ... end in an error that names the call and says what to do | {ended["E"]} |
| ... end in a reported result, an item of `ok.RESULTS` | {ended["R"]} |
| ... show NaN where the fault reaches | {ended["N"]} |
| ... have a right answer, which is given | {ended["✓"]} |
| ... end silently wrong | {silent} |
| properties tried on random input | {len(properties.EXAMPLES)} |
| random inputs tried for them on each commit | {sum(properties.EXAMPLES.values())} |"""


def faults() -> str:
    """What each public function does under each kind of fault."""
    kinds = "\n".join(f"- **{kind}**: {text}." for kind, text in KINDS.items())
    head = f"""## Bad input

**E**: raises an error that names the call and says what to do. **R**: reports it, in
`info`, in `solution.result`, or as the text of an error. **N**: NaN comes out, to be
seen. **✓**: the answer is right. A dot: no such input, or not tried. The tests run as
users do: float32, and no type checks but the library's own.

{kinds}"""
    return "\n\n".join([head, *(_area(title, rows) for title, rows in AREAS.items())])


def limits() -> str:
    """What is not found out."""
    return """## What is not found out

- A batch, a loss or a label that is wrong but finite is not known to be wrong.
- `ok.LowRank`, `ok.hessian` and other operators show NaN in what they return; only
  a solve reports it.
- An indefinite curvature in `ok.Nystrom`, if its sketch meets no negative eigenvalue:
  the solve is reported as a success. `ok.CG` finds what its right-hand side can.
- A singular Jacobian whose linear system has a solution is solved, not reported: the
  derivative is then one of many. `ok.check_implicit` tells.
- Numbers known on a device only, such as a traced damping or decay, are not checked
  when they are given: reading them would stop the compiled step.
- Numbers below the smallest normal one (1e-38 in float32) are zero to the hardware.
- On CPU, jaxlib 0.10.2 and 0.12.0 run some fused operations wrongly, in anybody's code:
  what is compiled may give other numbers than what is not (jax-ml/jax#39103 is one
  case). With nothing after its last sign, the environment's
  `XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=` leaves these fusions out. The
  residual that `ok.CG` and `ok.GMRES` compute at the end finds a product that is not
  the same twice, and not one that is wrong in the same way each time."""


def random_input() -> str:
    """What was tried on random input."""
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {count} |"
        for name, count in sorted(properties.EXAMPLES.items())
    )
    return f"""## Random input

Random pytrees: nested, with None leaves, scalars, empty arrays and up to three axes; in
float16, bfloat16, float32, float64 and mixed; numbers of size 1e-30 to 1e30. The
same draws in each run; `HYPOTHESIS_PROFILE=long` tries {properties.LONG} times as many.

| property | inputs |
|---|---:|
{rows}"""


SECTIONS: list[Callable[[], str]] = [
    figures,
    faults,
    random_input,
    killed.section,
    limits,
]


def page() -> str:
    """The whole page."""
    return "\n\n".join(section().strip() for section in SECTIONS) + "\n"


def _area(title: str, rows: list[Fault]) -> str:
    head = " | ".join(KINDS)
    lines = [f"### {title}", "", f"| | {head} |", "|---|" + ":-:|" * len(KINDS)]
    names = sorted({f.name for f in rows}, key=lambda name: (name.lower(), name))
    for name in names:
        cells = [
            _cell([f for f in rows if (f.name, f.kind) == (name, k)]) for k in KINDS
        ]
        lines.append(f"| `ok.{name}` | {' | '.join(cells)} |")
    details = [f'\n??? note "The {len(rows)} faults of this table"\n']
    for name in names:
        details.append(f"    - `ok.{name}`")
        details += [
            f"        - `` {f.what} ``: {f.outcome}" for f in rows if f.name == name
        ]
    return "\n".join([*lines, *details])


def _cell(faults: list[Fault]) -> str:
    order = list(SIGNS.values())
    found = {SIGNS[type(fault.outcome)] for fault in faults}
    return "".join(sorted(found, key=order.index)) or "·"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
