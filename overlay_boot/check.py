"""What is wrong with values, as far as it can be told before the kernel is touched."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlay_boot.subhost import Share, Subhost

MANY = 10  # mistakes of one variable that are told one by one


class Mistake(ValueError):
    """What is wrong with a value, a line each."""

    def __init__(self, *lines: str) -> None:
        more = [f"{lines[0].split(':')[0]}: and {len(lines) - MANY} more mistakes"]
        self.lines = lines if len(lines) <= MANY else (*lines[:MANY], *more)
        super().__init__("\n".join(self.lines))


class Pending(str):
    """What stands in for a value that only a "!" command can tell, while none is run (--check)."""

    __slots__ = ()


def name_problem(name: str) -> str:
    """What is wrong with a NAME; empty when nothing is."""
    if not 1 <= len(name) <= 12:
        return f"{name[:40]!r} has {len(name)} characters: use 1 to 12"
    if not all("!" <= character <= "~" for character in name) or "/" in name:
        return f"{name!r}: use printable ASCII characters without spaces or /"
    if name.startswith(("-", ".")):
        return f"{name!r} must not start with - or ."
    return ""


def size_problem(text: str) -> str:
    """What is wrong with a RAM_SIZE: tmpfs takes a number above zero with k, m, g, t, p, e or %
    (tmpfs(5))."""
    digits = text[:-1] if text[-1:].lower() in tuple("kmgtpe%") else text
    right = digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0
    if text == "none" or right:
        return ""
    return f"{text[:40]!r} is not a size: write such as 50M, 1G, 10% or none"


def program_problem(path: str) -> str:
    """What keeps a program from being run."""
    if not os.path.isfile(path):
        return f"{path} is not there: correct the path"
    if not os.access(path, os.X_OK):
        return f"{path} is not executable: chmod +x {path}"
    return ""


def folders(subhost: Subhost) -> Iterator[tuple[str, str]]:
    """What is wrong with the folders of a subhost, with each one's variable."""
    paths = {name: getattr(subhost, name.lower()) for name in ("BASE", "LIVE", "UPPER", "LOWER")}
    known = {name: path for name, path in paths.items() if not isinstance(path, Pending)}
    if (
        len(known) == 4
        and subhost.root_kind == "overlay"
        and not isinstance(subhost.work, Pending)
    ):
        known["WORK"] = subhost.work
    if "BASE" in known and _folder_problem(subhost.base):
        # It need not be said again of all that is in it.
        inside = [name for name, path in known.items() if _inside(path, subhost.base)]
        known = {name: known[name] for name in known if name not in inside or name == "BASE"}
    bad = [(name, text) for name, path in known.items() if (text := _folder_problem(path))]
    yield from (
        (name, f"{name}: {text}: create it with mkdir, or correct {name}") for name, text in bad
    )
    if not bad and "WORK" in known:
        yield from _overlay(subhost)


def share_problem(subhost: Subhost, share: Share) -> str:
    """What is wrong with one SHARE; empty when nothing is."""
    if not share.source.startswith("/"):
        return f"{share.text!r} is not an absolute path: start it with /"
    if not os.path.normpath(share.target).strip("/"):
        return f"{share.text!r} would hide the subhost's whole root: name a path below it"
    if ".." in share.target.split("/"):
        return f"{share.text!r} has .. in the subhost's path: write it without"
    if isinstance(subhost.lower, Pending) or not os.path.isdir(subhost.lower):
        return ""  # not known yet, or said already
    try:
        os.close(share.open(subhost.lower))
    except OSError as error:
        where = f" below LOWER {subhost.lower}" if share.under_lower else ""
        return f"{share.source}{where}: {os.strerror(error.errno or 0)}: create it first"
    return ""


def packages_warning(subhost: Subhost) -> str:
    """What is to be said where LOWER's packages have changed since the subhost's own dpkg wrote down
    what is installed; empty where all is well."""
    try:
        own, lower = (
            os.lstat(f"{layer}/var/lib/dpkg/status") for layer in (subhost.upper, subhost.lower)
        )
    except OSError:
        return ""  # one of the two has no dpkg; where they are one, it is as old as itself
    if not stat.S_ISREG(own.st_mode) or own.st_mtime_ns >= lower.st_mtime_ns:
        return ""
    return (
        f"the packages of LOWER {subhost.lower} have changed since {subhost.name}'s own dpkg last "
        f"ran: see what that means with overlay-diff {subhost.name}"
    )


def _folder_problem(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if stat.S_ISDIR(mode) else f"{path} is not a directory"


def _inside(path: str, folder: str) -> bool:
    outer = os.path.realpath(folder).rstrip("/") + "/"
    return (os.path.realpath(path) + "/").startswith(outer)


def _overlay(subhost: Subhost) -> Iterator[tuple[str, str]]:
    """What the kernel refuses in an overlay mount (Documentation/filesystems/overlayfs.rst)."""
    upper, work, live = subhost.upper, subhost.work, subhost.live
    if _inside(work, upper) or _inside(upper, work):
        yield "WORK", f"WORK: {work} and UPPER {upper} lie inside one another: keep them apart"
    if any(os.path.samefile(live, other) for other in (upper, subhost.lower)):
        yield "LIVE", f"LIVE: {live} is UPPER or LOWER too: an overlay needs its own"
    types = _mount_types()
    mounts = {}
    for name, path in (("UPPER", upper), ("WORK", work)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        mounts[name] = _mount_of(fd)
        os.close(fd)
        if types.get(mounts[name]) == "overlay":
            yield (
                name,
                f"{name}: {path} is on an overlay itself, which the kernel refuses: put it "
                + "on another file system, such as a tmpfs",
            )
        if not os.access(path, os.W_OK) and os.geteuid() == 0:
            yield name, f"{name}: {path} cannot be written: mount its file system read-write"
    if mounts["UPPER"] != mounts["WORK"]:
        yield "WORK", f"WORK: {work} is on another mount than UPPER {upper}: move it beside UPPER"


def _mount_of(fd: int) -> int:
    """The id of the mount that an open file is on (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return int(next(line for line in lines if line.startswith("mnt_id:")).split()[1])


def _mount_types() -> dict[int, str]:
    """The file system type of each mount in this namespace, by mount id (proc(5), mountinfo)."""
    types = {}
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split()
            types[int(fields[0])] = fields[fields.index("-", 6) + 1]
    return types
