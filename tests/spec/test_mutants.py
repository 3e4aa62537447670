"""The faults that the spec is tried on: see tests/mutants."""

from __future__ import annotations

from tests.mutants import __main__ as mutants


def test_every_fault_fits_and_every_promise_has_one() -> None:
    """Each edit is found once in the sources, and every must and default clause has a fault."""
    assert len(mutants.load()) >= 60
