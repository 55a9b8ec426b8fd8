"""Every fault of the catalogue ends as declared, and every public object is in it."""

import pytest
from fault_outcomes import Raises, Reports, Right, Shows
from faults import CATALOGUE, KINDS, names_to_try, names_tried
from faulty import BAD, Fault, Kind, Row, Trial, public_names, verdict
from reliability import PAGE, page


@pytest.mark.parametrize("trial", CATALOGUE, ids=str)
def test_a_fault_ends_as_declared(trial):
    """Oracle: the catalogue. An error names the call and says what to do."""
    assert not verdict(trial), f"declared: {trial.outcome}"


def test_every_public_object_has_a_row():
    """Oracle: the public surface, parsed."""
    assert not names_to_try() - names_tried()
    assert not names_tried() - set(public_names())
    names = [row.name for kind in KINDS for row in kind.rows]
    assert len(names) == len(set(names))


def test_every_kind_of_bad_input_is_tried():
    """Oracle: the list of kinds."""
    assert {trial.fault.bad for trial in CATALOGUE} == set(BAD)


def test_a_row_differs_only_in_a_fault_of_its_kind():
    """Oracle: identity; a misspelt fault would declare nothing."""
    fault = Fault("nan", "NaN", Shows(), lambda row: row.make())
    row = Row("hvp", list, differs={"a NaN": Right()})
    with pytest.raises(AssertionError, match="a NaN"):
        list(Kind("objects", [fault], [row]).trials())
    with pytest.raises(AssertionError, match="two faults"):
        list(Kind("objects", [fault, fault], [Row("hvp", list)]).trials())


@pytest.mark.parametrize(
    "outcome",
    [
        Raises(ValueError, "needs"),
        Raises(TypeError, ""),
        Reports("indefinite"),
        Shows(),
        Right(lambda x: x == 2),
    ],
)
def test_the_judge_finds_what_is_silently_wrong(outcome):
    """Oracle: a finite wrong number, and a message that names nothing."""

    def bad() -> float:
        raise ValueError("something is wrong")

    row = Row("hvp", lambda: 3.0)
    for feed in (lambda row: row.make(), lambda row: bad()):
        fault = Fault("nan", "a wrong number", outcome, feed)
        assert verdict(Trial(row, fault, outcome))


def test_the_page_is_what_the_catalogue_says():
    """Oracle: the generator; `python tests/reliability.py --write` writes it anew."""
    assert PAGE.read_text() == page()
