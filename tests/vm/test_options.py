"""That the options of a machine are declared once, and what is made of them."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from vm import cli, options
from vm.errors import HostError, MachineError, RequestError, VmError
from vm.machine import Machine
from vm.options import Provider, Wanted
from vm.processes import Say


def test_a_new_suite_is_one_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, URLs and recipes take it, and nothing else has to be told of it."""
    with pytest.raises(RequestError, match="suite 'duke' is not known"):
        Wanted.from_url("vm://duke")
    monkeypatch.setitem(options.recipe.SUITES, "duke", options.recipe.Suite(pockets=("updates",)))
    monkeypatch.setenv("MIRROR", "http://mirror.example/debian")
    assert Wanted.from_url("vm://duke").suite == "duke"
    assert options.recipe.recipe("duke").sources == (
        "deb http://mirror.example/debian duke main",
        "deb http://mirror.example/debian duke-updates main",
    )
    assert cli.parser().parse_args(["up", "duke"]).suite == "duke"
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["up", "--help"])
    assert "duke" in capsys.readouterr().out


class Paper(Provider):
    """A provider that only says what was wanted of it."""

    can = frozenset({"network"})

    def up(self, wanted: Wanted, say: Say) -> Machine:
        say(f"up {wanted}")
        raise MachineError("of paper")

    def prepare(self, wanted: Wanted, say: Say) -> None:
        say(f"prepare {wanted}")


def test_a_new_provider_is_one_class_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(options.PROVIDERS, "paper", f"{__name__}:Paper")
    wanted = Wanted.from_url("vm://sid?provider=paper&network=yes")
    said: list[str] = []
    wanted.made_by.prepare(wanted, said.append)
    with pytest.raises(MachineError, match="of paper"):
        wanted.made_by.up(wanted, said.append)
    assert [line.split()[0] for line in said] == ["prepare", "up"] and "network=True" in said[0]
    for wish in ("init=small", "cold=yes"):
        with pytest.raises(RequestError, match="provider paper cannot do .*, but network"):
            Wanted.from_url(f"vm://sid?provider=paper&{wish}")


def test_options_go_through_a_parser_and_back() -> None:
    parser = argparse.ArgumentParser()
    options.add(parser.add_argument, "suite", "init", "network", prefix="--vm-")
    given = parser.parse_args(["--vm-suite", "sid", "--vm-init", "small", "--vm-network"])
    wanted = Wanted.given(given, "vm_", detached=True)
    assert wanted == Wanted("sid", init="small", network=True, detached=True)
    assert Wanted.given(parser.parse_args([]), "vm_") == Wanted()


@pytest.mark.parametrize("fault", [HostError, MachineError, RequestError])
def test_whose_fault_it_is_is_told_by_the_class(fault: Any) -> None:
    """Each is a VmError, and none of them another's."""
    others = {HostError, MachineError, RequestError} - {fault}
    assert issubclass(fault, VmError) and not any(issubclass(fault, other) for other in others)
