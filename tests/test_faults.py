"""Every fault of the catalogue ends as declared, and nothing is left out of it."""

import pytest
from faults import CATALOGUE, names_to_try
from faulty import KINDS, Fault, Raises, Reports, Right, Shows, public_names, verdict
from reliability import PAGE, page


@pytest.mark.parametrize(
    "fault", CATALOGUE, ids=[f"{f.name}-{f.kind}-{i}" for i, f in enumerate(CATALOGUE)]
)
def test_a_fault_ends_as_declared(fault):
    """Oracle: the catalogue. An error names the call and says what to do."""
    assert not verdict(fault), f"{fault.what} -> {verdict(fault)}"


def test_every_public_name_is_in_the_catalogue():
    """Oracle: the public surface, parsed."""
    tried = {fault.name for fault in CATALOGUE}
    assert not names_to_try() - tried
    assert not tried - set(public_names())


def test_every_kind_of_fault_is_tried():
    """Oracle: the list of kinds."""
    assert {fault.kind for fault in CATALOGUE} == set(KINDS)


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
    """Oracle: a finite number that is none of it, and a message that names nothing."""

    def bad() -> float:
        raise ValueError("something is wrong")

    assert verdict(Fault("hvp", "nan", "a wrong number", lambda: 3.0, outcome))
    assert verdict(Fault("hvp", "nan", "a nameless error", bad, outcome))


def test_the_page_is_what_the_catalogue_says():
    """Oracle: the generator; `python tests/reliability.py --write` writes it anew."""
    assert PAGE.read_text() == page()
