"""The catalogue: what each public name does under each kind of bad input."""

import inspect
from typing import Any

import faults_bilevel
import faults_curvature
import faults_diagnostics
import faults_implicit
import faults_optim
from faulty import Fault, public_names

import optkit as ok

AREAS = {
    "Optimizers": faults_optim.ROWS,
    "Curvature, inverses and their uses": faults_curvature.ROWS,
    "Implicit differentiation": faults_implicit.ROWS,
    "Nested problems": faults_bilevel.ROWS,
    "Figures": faults_diagnostics.ROWS,
}
CATALOGUE: list[Fault] = [fault for rows in AREAS.values() for fault in rows]


def names_to_try() -> set[str]:
    """Every public name that takes input from a user.

    Others are what the library hands back (a report, an estimate), and what nobody
    makes: abstract classes, and the enumeration of results.
    """
    return {
        name for name, value in public_names().items() if not _is_given(name, value)
    }


def _is_given(name: str, value: Any) -> bool:
    handed_back = {
        *(
            "solvers.AndersonInfo",
            "bilevel.BilevelInfo",
            "Estimate",
            "bilevel.HypergradientInfo",
        ),
        *("ImplicitReport", "Pruned", "Run", "bilevel.SabaMemory"),
    }
    is_abstract = inspect.isclass(value) and value.__name__.startswith("Abstract")
    return name in handed_back or is_abstract or value is ok.RESULTS
