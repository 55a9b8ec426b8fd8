"""The catalogue: what each public object does with each kind of bad input."""

import inspect
from typing import Any

import faults_bilevel
import faults_curvature
import faults_diagnostics
import faults_geometry
import faults_implicit
import faults_inverse
import faults_optim
from faulty import Kind, Trial, public_names

import optkit as ok

KINDS: list[Kind] = [
    *faults_optim.KINDS,
    *faults_curvature.KINDS,
    *faults_inverse.KINDS,
    *faults_implicit.KINDS,
    *faults_geometry.KINDS,
    *faults_bilevel.KINDS,
    *faults_diagnostics.KINDS,
]
CATALOGUE: list[Trial] = [trial for kind in KINDS for trial in kind.trials()]
RETURNED = {
    "bilevel.BilevelInfo",
    "bilevel.HypergradientInfo",
    "bilevel.SabaMemory",
    "solvers.AndersonInfo",
    "Estimate",
    "ImplicitReport",
    "Pruned",
    "Run",
}


def names_tried() -> set[str]:
    """The public names of all rows, and those that their faults try with them."""
    rows = [row for kind in KINDS for row in kind.rows]
    return {name for row in rows for name in (row.name, *row.covers)}


def names_to_try() -> set[str]:
    """Every public name that takes input from a user.

    Returns:
        All names, except of what the library returns, of abstract classes, and of the
        enumeration of results.
    """

    def takes_input(name: str, value: Any) -> bool:
        is_abstract = inspect.isclass(value) and value.__name__.startswith("Abstract")
        return not (name in RETURNED or is_abstract or value is ok.RESULTS)

    return {name for name, value in public_names().items() if takes_input(name, value)}
