"""The faults that the spec is tried on: see tests/mutants."""

from __future__ import annotations

from pathlib import Path

from spec.where import misfit
from tests.mutants import __main__ as mutants


def test_every_fault_fits_and_every_promise_has_one() -> None:
    """Each edit is found once in the sources, and every must and default clause has a fault."""
    assert mutants.load()


def test_a_fault_that_no_longer_fits_is_told(tmp_path: Path) -> None:
    """Also where its file is gone."""
    edit = {"file": "boot.py", "find": "def boot", "replace": "def b"}
    assert misfit(edit) == "" and misfit(edit, tmp_path) == "boot.py is not there"
    assert misfit({**edit, "find": "no such text"}) == "boot.py has 0 times: 'no such text'"
