"""Fixtures of the spec: the target, the implementation on it, and a subhost for each test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from spec import waiting
from spec.installed import install
from spec.leftovers import Seen, difference, look
from spec.plugin import describe, judge_run, precondition, record_evidence
from spec.subhost import MAKE_TINY, ROOT, TINY, Subhost
from spec.targets import OWN, Here, Host, Ssh, Target, TargetError
from spec.virtual import Virtual, fresh_each

WORKERS = "one machine cannot be shared: -n 1, or no -n, with this target"


def _implementation(config: pytest.Config) -> Path | None:
    """What is to be tested; on this machine by default the commands on PATH, else the clone's own.

    Raises TargetError where there is none.
    """
    given: Path | None = config.getoption("--implementation")
    mine = config.getoption("--target") in ("here", "host")
    if given and mine and not (given.suffix == ".deb" or (given / "overlay-boot").exists()):
        raise TargetError(f"there is no command {given}/overlay-boot: name their folder")
    if given or config.getoption("--deb"):
        return given
    if not mine or shutil.which("overlay-boot", path=Target.path):
        return None
    for folder in (Path(sys.executable).parent, Path(__file__).parents[1] / ".venv/bin"):
        if (folder / "overlay-boot").exists():
            return folder
    raise TargetError(
        "there is no overlay-boot here: run `make setup` in a clone, or give --implementation or --deb"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse what cannot work before the first test, and prepare virtual machines once for all
    workers, with its progress on the terminal."""
    target = session.config.getoption("--target")
    if target.startswith("vm://") and find_spec("vm"):
        from vm.processes import end_in_order

        end_in_order()
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    kind = target.partition("://")[0]
    if kind not in ("here", "host", "ssh", "vm"):
        raise pytest.UsageError(
            f"--target {target}: here, host, ssh://[user@]machine[:port], vm://SUITE"
        )
    if kind in ("here", "host") and os.geteuid() != 0:
        raise pytest.UsageError(
            f"--target {target} makes namespaces and mounts: run the spec as root"
        )
    try:
        if kind != "vm":
            _look(session.config)
    except TargetError as error:
        raise pytest.UsageError(str(error)) from None
    several = (session.config.getoption("numprocesses", None) or 0) > 1
    url, fresh = fresh_each(target)
    if several and (kind in ("host", "ssh") or not fresh):
        raise pytest.UsageError(f"--target {target}: {WORKERS}")
    if kind != "vm":
        return
    if not find_spec("vm"):
        raise pytest.UsageError(f"--target {target}: disposable machines are in the clone only")
    import vm

    given = [session.config.getoption(name) for name in ("--implementation", "--deb")]
    try:
        for what in filter(None, given):
            vm.look(what, commands=["overlay-boot"])
        vm.prepare(url, say=lambda line: print(line, flush=True))
    except vm.VmError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the machines of workers that xdist had to kill."""
    mine = not hasattr(config, "workerinput") and find_spec("vm")
    if mine and config.getoption("--target").startswith("vm://"):
        import vm
        from vm.folders import sweep

        with suppress(vm.VmError):  # a folder that cannot be used has been told of
            sweep()


def tree_of(folder: Path) -> Path:
    """All that commands in a folder may need beside it: what a bin has beside it, and for a virtual
    environment of Python what that is in."""
    if folder.name not in ("bin", "sbin"):
        return folder
    tree = folder.parent
    around = tree.parent if (tree / "pyvenv.cfg").exists() else tree
    hidden = (*OWN, "/")  # of which the sandbox shows only what is in them
    return next((each for each in (around, tree) if str(each) not in hidden), folder)


def make_target(config: pytest.Config) -> Target:
    """The target that --target names. Raises TargetError."""
    wanted = config.getoption("--target")
    folder = _implementation(config)
    if wanted == "here":
        return Here(
            [Path(__file__).parent.parent, *([tree_of(folder.resolve())] if folder else [])]
        )
    if wanted == "host":
        return Host()
    if wanted.startswith("ssh://"):
        return Ssh(wanted)
    return Virtual(wanted)


def _look(config: pytest.Config) -> None:
    """Raise TargetError where the target or the implementation is not there at all, which all the
    tests would say."""
    place = make_target(config)
    try:
        place.succeed("true")
    finally:
        place.close()


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Where the subhosts run, with the implementation installed."""
    place = make_target(request.config)
    try:
        about, where = prepare(place, request.config)
        describe(request.config, implementation=about, target=where)
        if place.disposable:
            yield place
            return
        before, started = look(place), waiting.clock(place)
        yield place
        judge_leftovers(request.config, place, before, started)
    finally:
        place.close()


def prepare(place: Target, config: pytest.Config) -> tuple[dict[str, str], dict[str, str]]:
    """Measure the target and install the implementation there; what and where that is."""
    waiting.learn(place, config.getoption("--patience"))
    about = install(place, _implementation(config), config.getoption("--deb"))
    system = place.succeed(". /etc/os-release; echo $PRETTY_NAME; uname -r; uname -m").splitlines()
    where = {
        "name": place.name,
        "system": system[0],
        "kernel": system[1],
        "machine": system[2],
        "pace": f"{place.pace * 1000:.1f} ms for a fork with a mount namespace",
    }
    place.succeed(f"mkdir -p {ROOT}")
    place.succeed(MAKE_TINY)
    place.freeze()
    return about, where | ({"note": place.note} if place.note else {})


def judge_leftovers(config: pytest.Config, place: Target, before: Seen, started: int) -> None:
    """Tell tests that leave something behind from a look that breaks."""
    promise = "A run leaves nothing behind."
    try:
        found = difference(place, before, started)
        place.run(f"rm -r {TINY}")
    except TargetError as error:
        judge_run(config, promise, str(error), "error")
    else:
        judge_run(config, promise, str(found) or None, "fail" if found.mine else "error")


@pytest.fixture
def subhost(target: Target, request: pytest.FixtureRequest) -> Iterator[Subhost]:
    """A subhost of the test's own; whatever the test does, it is gone afterwards."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    number = request.config.stash.setdefault(_COUNT, [0])
    number[0] += 1
    commands: list[str] = []
    with ExitStack() as stack:

        def make() -> Subhost:
            stack.enter_context(target.fresh())
            return Subhost(target, f"s{worker}x{number[0]}", commands.append)

        try:
            made = make()
        except TargetError as error:  # a machine that breaks before the test has begun
            record_evidence(request, "another machine broke at once", str(error))
            stack.close()
            made = make()
        record_evidence(request, "to reproduce by hand", commands)
        record_evidence(request, "the subhost", made.evidence)
        try:
            yield made
        finally:
            if not target.disposable:
                made.clear()


_COUNT = pytest.StashKey[list[int]]()


@pytest.fixture
def vlans(subhost: Subhost) -> None:
    """Only where the kernel has VLANs."""
    made = subhost.target.run(
        "modprobe 8021q; ip link add vlanprobe type veth && "
        "ip link add link vlanprobe name vlanprobe.7 type vlan id 7"
    )
    subhost.target.run("ip link delete vlanprobe")
    if made.status:
        precondition("the target's kernel has no VLANs (module 8021q)")


@pytest.fixture
def interfaces(subhost: Subhost) -> Iterator[None]:
    """The target's interfaces(5), put back as it was; only where there is ifupdown."""
    if subhost.target.run("command -v ifup && [ -e /etc/network/interfaces ]").status:
        precondition("the target has no ifupdown, or no /etc/network/interfaces")
    subhost.prepare_host("cp -a /etc/network/interfaces /etc/network/interfaces.spec")
    yield
    if not subhost.target.disposable:  # what ifup took up is taken down by the same stanzas
        subhost.target.run(f"overlay-stop {subhost.conf}", timeout=60)
        subhost.target.run("mv /etc/network/interfaces.spec /etc/network/interfaces")
