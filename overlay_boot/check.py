"""Everything about a Subhost that can be checked before the kernel is touched."""

from __future__ import annotations

import os
import stat

from overlay_boot.config import VARIABLES, Share, Subhost
from overlay_boot.linux import OVERLAY_TYPE, mount_of, mount_types, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Mistake = tuple[str, str]  # the variable's name, the message


def mistakes(subhost: Subhost) -> list[Mistake]:
    """What is wrong with a subhost's values; those of commands yet to run ("!") are passed over."""
    values = subhost.values
    found = [("NAME", text) for text in _name(subhost.name)]
    if not values["BASE"]:
        found.append(("BASE", "BASE is missing: add a line such as BASE=. for this folder"))
        return found
    known = {name for name, value in values.items() if not value.startswith("!")}
    if "BASE" not in known:
        return found  # every other path depends on it
    folders: list[str] = [name for name in ("BASE", "LIVE", "UPPER", "LOWER") if name in known]
    if {"UPPER", "LOWER", "WORK"} <= known and subhost.kind == "overlay":
        folders.append("WORK")
    if _folder("BASE", subhost.base):  # it need not be said again of all that is in it
        folders = [name for name in folders if not _inside(values[name], subhost.base)]
        folders.insert(0, "BASE")
    bad = [(name, text) for name in folders if (text := _folder(name, values[name]))]
    found += bad
    if not bad and {"UPPER", "LOWER", "WORK", "LIVE"} <= known and subhost.kind == "overlay":
        found += _overlay(subhost)
    if "RAM_SIZE" in known and not _is_size(subhost.ram_size):
        message = f"RAM_SIZE: {subhost.ram_size!r} is no size: write such as 50M, 1G, 10% or none"
        found.append(("RAM_SIZE", message))
    for name in known:
        if VARIABLES[name].kind == "command" and (text := _executable(values[name])):
            found.append((name, f"{name}: {text}"))
    return found


def share_mistake(subhost: Subhost, share: Share) -> str:
    """What is wrong with one SHARE (decision 10); empty when nothing is."""
    if not share.source.startswith("/"):
        return f"SHARE: {share.text!r} is not an absolute path: start it with /"
    if share.target.strip("/") == "":
        return f"SHARE: {share.text!r} would hide the subhost's whole root: name a path below it"
    if not os.path.isdir(subhost.lower):
        return ""  # said already, or not known yet
    try:
        os.close(open_source(subhost, share))
    except OSError as error:
        where = f" below LOWER {subhost.lower}" if share.under_lower else ""
        return f"SHARE: {share.source}{where}: {os.strerror(error.errno or 0)}: make it first"
    return ""


def open_source(subhost: Subhost, share: Share) -> int:
    """An O_PATH descriptor of what a SHARE shares: below LOWER, links resolved inside it, or the
    main host's own path where the line names two. Raises OSError."""
    if not share.under_lower:
        return os.open(share.source, os.O_PATH | os.O_CLOEXEC)
    root = os.open(subhost.lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in_root(root, share.source, os.O_PATH)
    finally:
        os.close(root)


def _name(name: str) -> Iterator[str]:
    """Decision 6."""
    if name.startswith("!"):
        return
    if not 1 <= len(name) <= 12:
        yield f"NAME: {name!r} has {len(name)} characters: use 1 to 12"
    if not all("!" <= character <= "~" for character in name) or "/" in name:
        yield f"NAME: {name!r}: use printable ASCII characters without spaces or /"
    if name.startswith(("-", ".")):
        yield f"NAME: {name!r} must not start with - or ."


def _folder(name: str, path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"{name}: {path}: {error.strerror}: make it with mkdir, or correct {name}"
    if not stat.S_ISDIR(mode):
        return f"{name}: {path} is not a directory: correct {name}"
    return ""


def _inside(path: str, folder: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(folder) or os.path.realpath(path).startswith(
        os.path.realpath(folder).rstrip("/") + "/"
    )


def _overlay(subhost: Subhost) -> Iterator[Mistake]:
    """What the kernel refuses in an overlay mount (Documentation/filesystems/overlayfs.rst)."""
    upper, work = subhost.upper, subhost.work
    if _inside(work, upper) or _inside(upper, work):
        yield "WORK", f"WORK: {work} and UPPER {upper} lie inside one another: keep them apart"
    if os.path.realpath(subhost.live) in (
        os.path.realpath(upper),
        os.path.realpath(subhost.lower),
    ):
        yield "LIVE", f"LIVE: {subhost.live} is UPPER or LOWER too: an overlay needs its own"
    types = mount_types()
    mounts = {}
    for name, path in (("UPPER", upper), ("WORK", work)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        mounts[name] = mount_of(fd)
        os.close(fd)
        if types.get(mounts[name]) == OVERLAY_TYPE:
            yield (
                name,
                f"{name}: {path} is on an overlay itself, which the kernel refuses: put it "
                + "on another file system, such as a tmpfs",
            )
        if not os.access(path, os.W_OK) and os.geteuid() == 0:
            yield name, f"{name}: {path} cannot be written: mount its file system read-write"
    if mounts["UPPER"] != mounts["WORK"]:
        yield "WORK", f"WORK: {work} is on another mount than UPPER {upper}: move it beside UPPER"


def _is_size(text: str) -> bool:
    """What tmpfs takes as size (tmpfs(5)): a number with k, m, g, t, p, e or %, above zero."""
    digits = text[:-1] if text[-1:].lower() in tuple("kmgtpe%") else text
    return text == "none" or (digits.isascii() and digits.isdigit() and int(digits) > 0)


def _executable(command: str) -> str:
    path = command.split()[0] if command else ""
    if not os.path.isfile(path):
        return f"{path} is not there: correct the path"
    if not os.access(path, os.X_OK):
        return f"{path} is not executable: chmod +x {path}"
    return ""
