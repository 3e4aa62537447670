"""The spec's virtual target: what it makes of a URL and of machines that break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vm
from spec.targets import TargetError
from spec.virtual import Virtual, fresh_each

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("url", "machine", "fresh"),
    [
        ("vm://sid", "vm://sid", True),
        ("vm://sid?fresh=no", "vm://sid", False),
        ("vm://sid?flavour=mta&fresh=no&init=small", "vm://sid?flavour=mta&init=small", False),
        ("vm://sid?fresh=no&flavour=mta", "vm://sid?flavour=mta", False),
        ("vm://sid?flavour=mta", "vm://sid?flavour=mta", True),
    ],
)
def test_fresh_is_the_targets_own_word(url: str, machine: str, fresh: bool) -> None:
    assert fresh_each(url) == (machine, fresh)


class Fake:
    """A machine of which nothing is asked but states."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.closed = broken, False

    def snapshot(self, name: str) -> None:
        if self.broken == "snapshot":
            raise vm.MachineError("no state can be kept\nand more")

    def close(self) -> None:
        self.closed = True


class FakePool:
    """A pool whose first restore fails."""

    def __init__(self, machine: Fake, name: str) -> None:
        self.error: Exception | None = vm.MachineError("did not come back")
        self.closed = False

    @contextmanager
    def take(self) -> Iterator[Fake]:
        error, self.error = self.error, None
        if error:
            raise error
        yield Fake()

    def close(self) -> None:
        self.closed = True
        raise vm.MachineError("one that hangs")


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a target of a machine that breaks in some way."""

    def make(broken: str = "") -> Virtual:
        monkeypatch.setattr(vm, "from_url", lambda url: Fake(broken))
        monkeypatch.setattr(vm, "Pool", FakePool)
        return Virtual("vm://sid")

    return make


def test_without_states_the_results_say_so(target: Any) -> None:
    virtual = target("snapshot")
    virtual.freeze()
    assert not virtual.disposable
    assert virtual.note == "all tests in one machine: no state can be kept"
    with virtual.fresh():
        assert virtual.machine is virtual.first


def test_a_restore_that_fails_is_the_targets_trouble(target: Any) -> None:
    virtual = target()
    virtual.freeze()
    with pytest.raises(TargetError, match="no fresh machine: did not come back"), virtual.fresh():
        raise AssertionError("there is none")
    with virtual.fresh():
        assert virtual.machine is not virtual.first


def test_all_is_closed_whatever_fails(target: Any) -> None:
    virtual = target()
    virtual.freeze()
    with pytest.raises(vm.MachineError, match="hangs"):
        virtual.close()
    assert virtual.first.closed and virtual.pool.closed


FLAKY = """
from contextlib import contextmanager
import pytest
from spec.conftest import subhost
from spec.targets import Result, Target, TargetError

class Flaky(Target):
    disposable, tries = True, 0
    def run(self, command, **how): return Result(command, 0, "1.00\\n", "")  # of /proc/uptime
    @contextmanager
    def fresh(self):
        self.tries += 1
        if self.tries <= self.bad:
            raise TargetError("broke")
        yield

@pytest.fixture
def target(request):
    made = Flaky()
    made.bad = request.param
    return made
"""
TESTS = """
import pytest

@pytest.mark.parametrize("target", [0, 1, 2], indirect=True)
def test_it(subhost, target):
    assert target.tries == target.bad + 1
"""


def test_a_machine_that_breaks_before_its_test_is_replaced_once(
    pytester: pytest.Pytester,
) -> None:
    """At its second failure it is an error, and no verdict on what was to be tested."""
    pytester.makeconftest(FLAKY)
    pytester.makepyfile(TESTS)
    root = str(Path(__file__).parents[2])
    done = pytester.runpytest_subprocess("-p", "spec.plugin", f"--rootdir={root}")
    done.assert_outcomes(passed=2, errors=1)
    done.stdout.fnmatch_lines(["*TargetError: broke*"])
