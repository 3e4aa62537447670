"""The short forms of `make lives`, and that they would notice what is wrong."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spec.targets import Result, Target
from tests.reliability import put

from . import races
from .machine import live
from .model import Life, Settings, told
from .report import write_part
from .world import First, Link, World, place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: run as root")
PID = 7


@pytest.fixture(scope="module")
def here() -> Iterator[Target]:
    with place("here", None) as target:
        yield target


def test_random_lives_have_no_surprise() -> None:
    """overlay-boot(8) and all others, in orders that nobody thought of."""
    found = live(50, seed=3, length=9, lives=4)
    assert not found["problems"], "\n".join(found["problems"])
    assert found["done"] >= 50


@pytest.mark.parametrize(
    ("race", "rounds", "less"),
    [
        (races.boots, 1, {"at_once": 10}),
        (races.cycles, 2, {}),
        (races.signals, 6, {}),
        (races.hammer, 2, {"count": 3, "workers": 4}),
    ],
)
def test_races_have_no_surprise(
    here: Target, race: Callable[..., races.Race], rounds: int, less: dict[str, int]
) -> None:
    """boot-race, interrupted, stop-once, end-restart: see docs/reliability.md."""
    done = race(here, rounds, **less)
    assert not done.problems, "\n".join(done.problems)
    assert done.done >= rounds


def running() -> tuple[Life, World]:
    """One that runs, with a service and a cable, and a world in which all is as it must be."""
    life = Life("a", "overlay", Settings("br0=", "/srv/one", True))
    life.starts()
    life.pid = PID
    world = World(
        first={"a": First(PID, "net", True)},
        names={"a": "net"},
        links={"a0": Link(3, "br0", True, 1500, "")},
        records={"a"},
        listed={"a": {"name": "a", "pid": PID, "configuration": life.conf}},
    )
    return life, world


@pytest.mark.parametrize(
    "change",
    [
        {"first": {}},
        {"first": {"a": First(8, "net", True)}},
        {"first": {"a": First(PID, "net", False)}},
        {"names": {}},
        {"names": {"a": "another"}},
        {"links": {}},
        {"links": {"a0": Link(3, "", True, 1500, "")}},
        {"links": {"a0": Link(3, "br0", False, 1500, "")}},
        {"listed": {}},
        {"listed": {"a": {"name": "a", "pid": 8, "configuration": "/a.conf"}}},
    ],
)
def test_what_is_wrong_with_one_that_runs_is_noticed(change: dict[str, Any]) -> None:
    life, world = running()
    assert life.problems(world) == []
    assert life.problems(replace(world, **change))
    assert life.not_yet(world), "its service is not there"


@pytest.mark.parametrize(
    "change",
    [
        {"first": {"a": First(PID, "net", False)}},
        {"names": {"a": "net"}},
        {"records": {"a"}},
        {"cgroups": {"a"}},
        {"mounts": ["/opt/subhost/a/live"]},
        {"listed": {"a": {"name": "a", "pid": PID}}},
    ],
)
def test_what_is_left_of_one_that_ended_is_noticed(change: dict[str, Any]) -> None:
    life, _ = running()
    life.stopped()
    assert life.problems(World()) == []
    assert life.problems(World(**change))


def test_a_command_that_lies_is_noticed() -> None:
    assert told(Result("x", 0, "", ""), 0) == []
    assert told(Result("x", 0, "", "overlay-stop: warning: no log\n"), 0) == []
    assert told(Result("x", 3, "", "overlay-stop: a is not running\n"), 0, 3) == []
    assert told(Result("x", 2, "", "/x:4: no bridge\n/x:6: no size\n"), 2) == []
    assert told(Result("x", 2, "", "/x:4: no bridge\nno size\n"), 2)
    for status, err in [(1, "x: y\n"), (0, "x: y\n"), (3, ""), (3, "x\ny\n"), (3, "Traceback\n")]:
        assert told(Result("x", status, "", err), 0, *([3] if err != "Traceback\n" else []))


def test_a_surprise_is_printed_as_shell_commands(here: Target) -> None:
    """An implementation that does nothing and says that all is well surprises at the first boot."""
    lines = "#!/bin/sh\n"
    folder = "/tmp/liar"
    for name in ("boot", "diskfile", "go", "list", "share", "stop"):
        body = "echo '[]'\n" if name == "list" else "exit 0\n"
        here.put(f"{folder}/overlay-{name}", lines + body, 0o755)
    path, here.path = here.path, f"{folder}:{here.path}"
    try:
        race = races.boots(here, 1, at_once=3)
    finally:
        here.path = path
    assert any("3 of 3 won" in problem for problem in race.problems)
    assert any("it does not run" in problem for problem in race.problems)


def test_the_page_keeps_what_it_does_not_write(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Head\n\n## Result\n")
    put(page, "Hostile files", "## Hostile files\n\nnone\n")
    for count in (5, 6):
        write_part(page, {"boots": {"done": count, "problems": [], "seconds": 61}})
    text = page.read_text()
    assert text.startswith("# Head\n\n## Result\n\n## Random lives and races\n")
    assert "| 6 rounds | 0 | 1 min |" in text and "5 rounds" not in text
    assert text.endswith("\n\n## Hostile files\n\nnone\n")
    put(page, "", "# New head\n")
    assert page.read_text() == text.replace("# Head\n\n## Result\n", "# New head\n")
