"""Fixtures for pytest (`-p vm.fixtures`): image -> machine -> restored, each made of the one before.

Override `vm_prepare` to do something in the machine before its state is frozen, for instance to
install what is under test. With pytest-xdist each worker has a machine of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vm import backend, cli, image, processes
from vm.image import Image
from vm.machine import Machine
from vm.options import Wanted
from vm.options import add as add_options
from vm.pool import Pool


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite, flavour and provider."""
    group = parser.getgroup("vm", "disposable machines")
    add_options(group.addoption, "suite", "flavour", "provider", "init", prefix="--vm-")


def pytest_configure() -> None:
    """Lets testinfra know `--hosts=vm://SUITE`."""
    backend.register()
    processes.end_in_order()


@pytest.fixture(scope="session")
def vm_image(request: pytest.FixtureRequest) -> Image:
    """The image, built when it is not cached."""
    options = request.config.option
    return image.build(options.vm_suite, options.vm_flavour, say=cli.say)


@pytest.fixture(scope="session")
def vm_prepare() -> Callable[[Machine], None]:
    """What is done in the machine before it is frozen: nothing, unless overridden."""
    return lambda machine: None


@pytest.fixture(scope="session")
def vm_machine(
    request: pytest.FixtureRequest, vm_image: Image, vm_prepare: Callable[[Machine], None]
) -> Iterator[Machine]:
    """One machine for the whole session, prepared."""
    wanted = Wanted.given(request.config.option, "vm_")
    with wanted.made_by.up(wanted, cli.say) as machine:
        vm_prepare(machine)
        yield machine


@pytest.fixture(scope="session")
def vm_pool(vm_machine: Machine) -> Iterator[Pool]:
    """The frozen state of the session's machine."""
    vm_machine.snapshot("prepared")
    with Pool(vm_machine, "prepared") as pool:
        yield pool


@pytest.fixture
def vm_restored(vm_pool: Pool) -> Iterator[Machine]:
    """A fresh machine for this test."""
    with vm_pool.take() as machine:
        yield machine
