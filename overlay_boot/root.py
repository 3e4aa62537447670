"""The root file system of a subhost, step by step (overlay-boot(8), ROOT FILE SYSTEM).

All of this happens in the subhost's own mount namespace with the main host still as root, so the
main host's mount table never shows it.
"""

from __future__ import annotations

import os
import stat

from overlay_boot import OverlayBootError, commands, explain, hooks
from overlay_boot.check import mount_of
from overlay_boot.linux import bind, detach, mount
from overlay_boot.steps import Step
from overlay_boot.tree import PASSED_ON, Made, Tree, at, open_folder
from overlay_boot.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from overlay_boot.subhost import Hook, Share, Subhost


class Root:
    """What turns LIVE into the subhost's root. `made` is what UPPER lacked before."""

    def __init__(self, subhost: Subhost, waiter: Waiter) -> None:
        self.subhost = subhost
        self.waiter = waiter
        self.made = Made(subhost.upper)
        self.made_in_work = Made(subhost.work)

    def steps(self) -> list[Step]:
        """The steps in order; when they and `undo_files` are undone, UPPER and WORK are as
        before."""
        subhost, live, kind = self.subhost, self.subhost.live, self.subhost.root_kind
        plan = []
        if kind != "plain":
            plan.append(Step(f"run PREMOUNT {subhost.premount} {subhost.upper}", self._premount))
        if kind == "overlay":
            name = f"mount an overlay of {subhost.upper} over {subhost.lower} on {live}"
            plan.append(Step(name, self._mount_overlay, lambda: detach(live)))
        else:  # plain binds LIVE to itself, since pivot_root(2) wants a mount point
            name = f"bind {subhost.upper} on {live}"
            do = lambda: bind(subhost.upper, live, recursive=kind == "plain")
            plan.append(Step(name, do, lambda: detach(live)))
        name = f"run POSTMOUNT {subhost.postmount} {live} {subhost.upper}"
        plan.append(Step(name, self._postmount))
        plan += [self._share_step(share) for share in subhost.shares]
        plan.append(Step("make the mount point of /proc", self._make_proc))
        return plan

    def _share_step(self, share: Share) -> Step:
        name = f"share {share.source} as {share.target}"
        return Step(name, lambda: self._share(share))

    def undo_files(self) -> None:
        """Remove what was made in UPPER and WORK, once nothing is mounted on LIVE any more."""
        self.made.undo()
        self.made_in_work.undo()

    def init_script(self) -> str:
        """The commands that pid 1 runs: what INIT prints."""
        if self.subhost.init.ours:
            return hooks.init(self.subhost.start)
        if self.subhost.init.systemd:
            from overlay_boot import systemd

            return systemd.init(self.subhost.name, self.subhost.start, self.subhost.upper)
        script = os.fsdecode(self._run("INIT", self.subhost.init, [], capture=True))
        if "\0" in script:
            raise OverlayBootError(f"INIT {self.subhost.init} printed a zero byte: correct INIT")
        return script

    def _premount(self) -> None:
        subhost = self.subhost
        if subhost.premount.ours:
            upper, lower = subhost.upper, subhost.lower
            hooks.premount(upper, lower, subhost.name, subhost.cables, self.made)
        else:
            self._run("PREMOUNT", subhost.premount, [subhost.upper])

    def _mount_overlay(self) -> None:
        """Mount UPPER over LOWER on LIVE. Overlayfs splits options at commas and layers at colons;
        a backslash keeps either (Documentation/filesystems/overlayfs.rst)."""
        subhost = self.subhost
        self._hide_layers()
        self.made_in_work.note("work")  # the kernel makes it
        options = []
        layers = {"lower": subhost.lower, "upper": subhost.upper, "work": subhost.work}
        for key, path in layers.items():
            for special in "\\,:":
                path = path.replace(special, "\\" + special)
            options.append(f"{key}dir={path}")
        try:
            mount(subhost.name, subhost.live, "overlay", data=",".join(options))
        except OSError as error:
            raise OverlayBootError(
                f"cannot mount the overlay on {subhost.live}: {explain(error)}: dmesg says why"
            ) from error

    def _hide_layers(self) -> None:
        """Where LOWER has UPPER and WORK in it, as / has, the kernel answers a look at these two in
        the overlay with ELOOP. Opaque folders in UPPER take their places (overlayfs.rst)."""
        lower = os.path.realpath(self.subhost.lower).rstrip("/") + "/"
        root = open_folder(lower)
        for layer in map(os.path.realpath, (self.subhost.upper, self.subhost.work)):
            fd = open_folder(layer)
            if layer.startswith(lower) and mount_of(fd) == mount_of(root):
                self._hide(lower, layer.removeprefix(lower))
            os.close(fd)
        os.close(root)

    def _hide(self, lower: str, path: str) -> None:
        """An opaque folder at a path in UPPER, in folders that are like LOWER's."""
        self.made.note(path)
        here = open_folder(self.subhost.upper)
        try:
            for name in path.split("/"):
                lower = os.path.join(lower, name)
                try:
                    os.mkdir(name, 0o700, dir_fd=here)
                    made = True
                except FileExistsError:
                    made = False
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    inner = os.open(name, flags, dir_fd=here)
                except OSError:
                    return  # the subhost has deleted or replaced it: nothing of LOWER shows
                os.close(here)
                here = inner
                if made:
                    status = os.stat(lower)
                    os.fchown(here, status.st_uid, status.st_gid)
                    os.fchmod(here, stat.S_IMODE(status.st_mode))
            try:
                os.setxattr(here, "trusted.overlay.opaque", b"y")
            except OSError:
                pass  # the kernel takes such a file system for UPPER all the same
        finally:
            os.close(here)

    def _postmount(self) -> None:
        subhost = self.subhost
        if subhost.postmount.ours:
            hooks.postmount(subhost.live, subhost.ram_size, subhost.start, self.made)
        else:
            self._run("POSTMOUNT", subhost.postmount, [subhost.live, subhost.upper])

    def _share(self, share: Share) -> None:
        """Bind one SHARE into the subhost, its submounts with it (overlay-boot(8), share)."""
        source = share.open(self.subhost.lower)
        with Tree(self.subhost.live, self.made) as tree:
            target = tree.open(share.target, stat.S_ISDIR(os.fstat(source).st_mode))
            if os.path.sameopenfile(target, tree.fd):
                raise OverlayBootError(
                    f"SHARE: {share.text!r} leads to the subhost's whole root: name a path below it"
                )
        bind(at(source), at(target))
        os.close(source)
        os.close(target)

    def _make_proc(self) -> None:
        """/proc itself is mounted by pid 1, in its own pid namespace."""
        with Tree(self.subhost.live, self.made) as tree:
            os.close(tree.open("proc"))

    def _run(
        self, variable: str, hook: Hook, arguments: list[str], capture: bool = False
    ) -> bytes:
        """Run a command of the configuration in BASE, its messages into the log; returns its output
        if that is to be captured. Raises OverlayBootError if it fails."""
        command = [*hook.words, *arguments]
        environment = {**self.subhost.environment(), PASSED_ON: self.made.path()}
        try:
            done = commands.run(
                command, environment, self.waiter, folder=self.subhost.base, capture=capture
            )
        except OSError as error:
            raise OverlayBootError(
                f"{variable} {command[0]} cannot be run: {error.strerror}: correct {variable}"
            ) from error
        if done.status:
            raise OverlayBootError(
                f"{variable} {' '.join(command)} failed with exit status {done.status}: "
                f"its messages are in {self.subhost.log}"
            )
        return done.output
