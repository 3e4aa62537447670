"""The root file system of a subhost, step by step (LIVE, UPPER, LOWER, SHARE and the hooks).

All of this happens in the subhost's own mount namespace with the main host still as root, so the
main host's mount table never shows it.
"""

from __future__ import annotations

import os
import stat

from overlay_boot import OverlayBootError, explain, hooks
from overlay_boot.check import open_source
from overlay_boot.config import Share, Subhost, program
from overlay_boot.linux import bind, detach, mount
from overlay_boot.steps import BROKEN_OFF, Step
from overlay_boot.tree import Tree, at, remove


def steps(subhost: Subhost) -> list[Step]:
    """What turns LIVE into the subhost's root, in order; undone, UPPER and WORK are as before."""
    made: list[str] = []
    live, kind = subhost.live, subhost.kind
    work = os.path.join(subhost.work, "work")
    if kind == "overlay" and not os.path.lexists(work):
        made.append(work)  # the kernel makes it
    hook = {
        "PREMOUNT": lambda: hooks.premount(
            subhost.upper, subhost.name, subhost.values["CABLES"], made
        ),
        "POSTMOUNT": lambda: hooks.postmount(live, subhost.upper, subhost.ram_size, made),
    }

    def hook_step(variable: str, command: list[str], arguments: list[str]) -> Step:
        do = hook[variable]
        if command != [program(f"overlay-{variable.lower()}")]:
            do = lambda: void(run_command(subhost, variable, command + arguments))
        return Step(f"run {variable} {' '.join(command + arguments)}", do)

    plan = [Step("watch what is made in UPPER and WORK", lambda: None, lambda: remove(made))]
    if kind != "plain":
        plan.append(hook_step("PREMOUNT", subhost.premount, [subhost.upper]))
    if kind == "overlay":
        name = f"mount an overlay of {subhost.upper} over {subhost.lower} on {live}"
        plan.append(Step(name, lambda: mount_overlay(subhost), lambda: detach(live)))
    else:  # plain binds LIVE to itself, since pivot_root(2) wants a mount point
        name = f"bind {subhost.upper} on {live}"
        do = lambda: bind(subhost.upper, live, recursive=kind == "plain")
        plan.append(Step(name, do, lambda: detach(live)))
    plan.append(hook_step("POSTMOUNT", subhost.postmount, [live, subhost.upper]))
    plan += [share_step(subhost, share, made) for share in subhost.shares]

    def proc() -> None:  # mounted by pid 1, in its own pid namespace
        with Tree(live, subhost.upper, made) as tree:
            os.close(tree.open("proc"))

    plan.append(Step("make /proc's mount point", proc))
    return plan


def void(_: object) -> None:
    """Drop a result."""


def mount_overlay(subhost: Subhost) -> None:
    """Mount UPPER over LOWER on LIVE. Overlayfs splits options at commas and layers at colons;
    a backslash keeps either (Documentation/filesystems/overlayfs.rst)."""
    options = []
    for key, path in (("lower", subhost.lower), ("upper", subhost.upper), ("work", subhost.work)):
        for special in "\\,:":
            path = path.replace(special, "\\" + special)
        options.append(f"{key}dir={path}")
    try:
        mount(subhost.name, subhost.live, "overlay", data=",".join(options))
    except OSError as error:
        raise OverlayBootError(
            f"cannot mount the overlay on {subhost.live}: {explain(error)}: dmesg says why"
        ) from error


def run_command(
    subhost: Subhost, variable: str, command: list[str], capture: bool = False
) -> bytes:
    """Run a command of the configuration in BASE, its messages into the log; returns its output
    if that is to be captured. Raises OverlayBootError if it fails."""
    import signal
    import subprocess

    def end(*_: object) -> None:
        raise OverlayBootError(BROKEN_OFF)

    before = signal.signal(signal.SIGTERM, end)  # which also ends the command
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=subhost.base,
            env=subhost.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
        )
    except OSError as error:
        raise OverlayBootError(
            f"{variable} {command[0]} cannot be run: {error.strerror}: correct {variable}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if done.returncode:
        raise OverlayBootError(
            f"{variable} {' '.join(command)} failed with exit status {done.returncode}: "
            f"its messages are in {subhost.log}"
        )
    return done.stdout or b""


def share_step(subhost: Subhost, share: Share, made: list[str]) -> Step:
    """Bind one SHARE into the subhost, its submounts with it (decision 10)."""

    def do() -> None:
        source = open_source(subhost, share)
        with Tree(subhost.live, subhost.upper, made) as tree:
            target = tree.open(share.target, stat.S_ISDIR(os.fstat(source).st_mode))
        bind(at(source), at(target))
        os.close(source)
        os.close(target)

    return Step(f"share {share.source} as {share.target}", do)


def init_script(subhost: Subhost) -> str:
    """The commands that pid 1 runs: what INIT prints."""
    if subhost.init == [program("overlay-init")]:
        return hooks.init(subhost.start)
    return os.fsdecode(run_command(subhost, "INIT", subhost.init, capture=True))
