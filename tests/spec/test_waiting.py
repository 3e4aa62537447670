"""Waits that run out: a verdict only where the target shows that all has come to rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spec import waiting
from spec.subhost import ROOT, Subhost
from spec.targets import CUT, Here, NoAnswer
from tests.conftest import needs_root

pytestmark = needs_root
BUSY = "sh -c 'while :; do :; done' > /dev/null 2>&1 < /dev/null &"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Here]:
    """A sandbox, measured."""
    made = Here([tmp_path])
    waiting.learn(made)
    yield made
    made.close()


@pytest.fixture
def subhost(target: Here) -> Subhost:
    """One with a folder, and nothing in it that would run."""
    target.succeed(f"mkdir -p {ROOT}")
    return Subhost(target, "s", lambda _: None)


def test_the_patience_follows_from_what_was_measured(
    target: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < target.pace < 1 and target.patience >= 1
    for pace, factor, patience in ((0.004, 1, 1), (0.4, 1, 10), (0.4, 3, 30)):
        monkeypatch.setattr(waiting, "measure", lambda _, pace=pace: pace)
        waiting.learn(target, factor)
        assert (target.pace, target.patience) == (pace, pytest.approx(patience))


def test_what_comes_true_in_time_is_seen(subhost: Subhost) -> None:
    subhost.target.run("(sleep 0.5; touch /tmp/there) > /dev/null 2>&1 &")
    assert subhost.wait("[ -e /tmp/there ]", 5)


def test_at_rest_without_it_is_a_verdict(subhost: Subhost) -> None:
    """A sleeper, a zombie and a kernel thread are no work; the seconds are those that were given."""
    subhost.target.run("sleep 999 > /dev/null 2>&1 &")
    begin = time.monotonic()
    assert not subhost.wait("[ -e /tmp/there ]", 1)
    assert 1 <= time.monotonic() - begin < 20


def test_what_was_at_work_before_does_not_count(subhost: Subhost) -> None:
    subhost.target.run(BUSY)
    time.sleep(0.1)
    subhost.started = waiting.clock(subhost.target)
    assert not subhost.wait("[ -e /tmp/there ]", 1)


@pytest.mark.parametrize("work", [BUSY, "(while :; do sleep 0.01; done) > /dev/null 2>&1 &"])
def test_what_is_still_at_work_has_no_verdict(subhost: Subhost, work: str) -> None:
    subhost.target.run(work)
    told = r"no answer in \d+ s on a machine that takes 0\.\d+ s for a fork now(.|\n)*\(s"
    with pytest.raises(NoAnswer, match=told):
        subhost.wait("[ -e /tmp/there ]", 0.5)


def test_a_command_that_only_takes_long_has_no_verdict(subhost: Subhost) -> None:
    with pytest.raises(NoAnswer, match="no answer in"):
        subhost.target.run("sleep 99", timeout=0.1)
    with pytest.raises(NoAnswer, match="still at work"):
        subhost.on_host("while :; do :; done", timeout=0.1)
    assert subhost.on_host("sleep 1; echo said", timeout=0.5).out == "said\n"


def test_a_command_at_rest_without_an_end_has_one(subhost: Subhost) -> None:
    done = subhost.on_host("echo begun; sleep 999", timeout=0.1)
    assert (done.status, done.out) == (CUT, "begun\n") and "come to rest" in done.err
    assert not subhost.target.run("pgrep -f '^sleep 999'").out


def test_a_limit_in_time_is_a_verdict_only_on_a_machine_as_fast_as_before(
    subhost: Subhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    subhost.target.patience = 1
    assert subhost.in_time(1, 2)
    monkeypatch.setattr(waiting, "measure", lambda _: subhost.target.pace)
    assert not subhost.in_time(3, 2)
    monkeypatch.setattr(waiting, "measure", lambda _: 2 * subhost.target.pace)
    with pytest.raises(NoAnswer, match="should have taken 2 s"):
        subhost.in_time(3, 2)


def test_work_of_children_that_are_never_seen_counts(subhost: Subhost) -> None:
    """On a slow machine with one processor a look may meet nothing but parents that wait."""
    subhost.prepare_host("mkfifo /tmp/begin /tmp/done")
    work = "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done"
    subhost.target.run(
        f"(read -r x; {work}; echo > /tmp/done; sleep 999) > /dev/null 2>&1 < /tmp/begin &"
    )
    looks = subhost.target.succeed(
        f"{waiting._TOOLS}\nexec 3> /tmp/begin; sleep 0.2; at_work {subhost.started} > /tmp/1\n"
        f"echo >&3; read -r x < /tmp/done; sleep 0.2; at_work {subhost.started} > /tmp/2\n"
        "grep taken /tmp/1 /tmp/2"
    )
    before, after = (line.split() for line in looks.splitlines())
    assert before[2] == after[2] == "0", "nothing is seen at work"
    assert int(after[1]) >= int(before[1]) + 10
