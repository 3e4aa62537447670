"""A sample of the points of `make torture`, and that its driver does what it says."""

import os
from pathlib import Path
from typing import Any

import pytest

from .calls import KILL
from .crew import Case, Crew, plan, sample, torture
from .supervisor import Point, Supervisor
from .worker import Trial, Worker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: run as root")
POINTS = 100
SCENES = ["overlay", "share", "start", "bridge"]  # `make torture` has the others too


def mkdir_under(point: Point | None, folder: Path) -> tuple[Supervisor, int | None, str]:
    """A shell that makes two folders, disturbed there."""
    supervisor = Supervisor(folder, point)
    command = f"mkdir {folder}/one && mkdir {folder}/two; exit $?"
    done = supervisor.run("boot", ["/bin/sh", "-c", command])
    supervisor.close()
    return supervisor, done.status, done.err


def test_each_call_of_each_process_has_a_number_that_stays(tmp_path: Path) -> None:
    first, status, _ = mkdir_under(None, tmp_path)
    assert status == 0
    found = [call for call in first.calls if call.name == "mkdir"]
    assert [(call.process, call.detail) for call in found] == [
        ("boot.1", f"{tmp_path}/one"),
        ("boot.2", f"{tmp_path}/two"),
    ]
    for name in ("one", "two"):
        (tmp_path / name).rmdir()
    again, _, _ = mkdir_under(None, tmp_path)
    # Which of two processes comes first may differ, but not the numbers within one.
    assert sorted(call[:3] for call in again.calls) == sorted(call[:3] for call in first.calls)


@pytest.mark.parametrize(
    ("action", "status", "told"), [("ENOSPC", 1, "No space left"), (KILL, 137, "Killed")]
)
def test_just_the_point_is_disturbed(action: str, status: int, told: str, tmp_path: Path) -> None:
    whole, _, _ = mkdir_under(None, tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).rmdir()
    call = next(each for each in whole.calls if each.detail.endswith("/two"))
    point = Point(call.process, call.number, call.name, action)
    supervisor, found, err = mkdir_under(point, tmp_path)
    assert (found, told in err) == (status, True), err
    assert supervisor.hit and supervisor.hit[:3] == point[:3]
    assert (tmp_path / "one").exists() and not (tmp_path / "two").exists()


def test_a_command_that_lies_or_breaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge, without a subhost."""
    from .supervisor import Done

    def judged(status: int | None, err: str) -> list[str]:
        trial = Trial()
        Worker.judge(object.__new__(Worker), Done(status, "", err, 0.1), "overlay-boot", trial)
        return trial.faults

    assert judged(0, "") == [] and judged(1, "overlay-boot: no room\n") == []
    for status, err in (
        (None, ""),
        (1, ""),
        (1, "overlay-boot: one\noverlay-boot: two\n"),
        (1, "Traceback (most recent call last):\nOSError\n"),
        (0, "another: message\n"),
        (-11, ""),
    ):
        assert judged(status, err), (status, err)


def test_a_sample_of_the_calls_can_fail(tmp_path: Path) -> None:
    """overlay-boot, interrupted, undo-files, stop-leftovers: see docs/reliability.md."""
    crew = Crew("p")
    try:
        cases = sample(plan(crew, SCENES), POINTS, seed=1)
    finally:
        crew.close()
    wrong: list[str] = []
    met: list[Case] = []

    def tell(case: Case, answer: dict[str, Any]) -> None:
        if answer["hit"]:
            met.append(case)
        if answer["faults"]:
            wrong.append("\n".join([str(case), *answer["faults"], answer.get("log", "")]))

    torture(cases, os.cpu_count() or 1, tell)
    assert not wrong, "\n".join(wrong)
    assert len(met) >= 0.9 * POINTS, f"only {len(met)} of {POINTS} were met again"
