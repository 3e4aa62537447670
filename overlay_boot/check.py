"""What is wrong with values, as far as it can be told before the kernel is touched."""

from __future__ import annotations

import os
import stat

from overlay_boot import ConfigError, lines_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlay_boot.subhost import Share, Subhost

MANY = 10  # mistakes of one variable that are told one by one

KERNELS_OWN = (  # kinds of mounts that hold nobody's files
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl "
    "hugetlbfs mqueue nfsd nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs"
)


class Mistake(ConfigError):
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


def bridges(subhost: Subhost) -> Iterator[str]:
    """What is wrong with the bridges that CABLES names."""
    from overlay_boot.records import interface_index

    if isinstance(subhost.cables, Pending):
        return
    for bridge in dict.fromkeys(cable.bridge for cable in subhost.cables if cable.bridge):
        folder = f"/sys/class/net/{bridge}"
        what = "" if interface_index(bridge) else "not there"
        if not what and os.path.isdir(folder) and not os.path.isdir(f"{folder}/bridge"):
            what = "not a bridge"
        if what:
            yield (
                f"CABLES: {bridge} is {what}: create it with ip link add {bridge} type bridge, "
                "or correct CABLES"
            )


def warnings(subhost: Subhost) -> Iterator[tuple[str, str]]:
    """What a boot does all the same but is hardly meant so, with each one's variable."""
    folders = (subhost.upper, subhost.lower, subhost.live)
    if any(isinstance(path, Pending) or not os.path.isdir(path) for path in folders):
        return
    unseen = list(_unseen_mounts(subhost))
    if unseen:
        more = [f"{len(unseen) - MANY} more"] if len(unseen) > MANY else []
        where = ", ".join(unseen[:MANY] + more)
        what = f"the subhost does not see what the main host has mounted on {where}"
        yield "LOWER", f"LOWER: {what}: SHARE what it needs"
    if newer := _newer_packages(subhost):
        yield "LOWER", f"LOWER: {newer}"
    hooks = [subhost.init, subhost.postmount, subhost.premount]
    if not all(hook.ours or hook.systemd for hook in hooks):
        return  # whatever these do with START, or put into the root
    hidden = {*unseen, *(os.path.normpath(share.target) for share in subhost.shares)}
    if subhost.init.systemd and (text := _no_systemd(subhost, hidden)):
        yield "INIT", text
    words = [word for word in subhost.start if not isinstance(word, Pending)]
    wrong = [text for word in words if (text := _service_problem(subhost, word, hidden))]
    yield from (("START", text) for text in (Mistake(*wrong).lines if wrong else ()))


def _unseen_mounts(subhost: Subhost) -> Iterator[str]:
    """Where file systems of the main host are mounted below LOWER, as the subhost names these
    paths: an overlay does not have them. Not what is shared, nor where the subhost has a mount of
    its own, nor below another one."""
    if subhost.root_kind == "plain":
        return  # it is bound with all that is mounted in it
    lower = os.path.realpath(subhost.lower).rstrip("/") + "/"
    known = [os.path.realpath(path) for path in (subhost.upper, subhost.work, subhost.live)]
    known += [path for share in subhost.shares if (path := _host_path(share, subhost.lower))]
    own = ["dev", "proc", "sys", *(["run"] if subhost.ram_size != "none" else [])]
    known += [lower + name for name in own]
    for _, point, kind in sorted(_mounts(), key=lambda mount: mount[1]):
        below = point.rstrip("/") + "/"
        if not below.startswith(lower) or below == lower or kind in KERNELS_OWN.split():
            continue
        if not any(below.startswith(f"{path}/") for path in known):
            known.append(point)
            yield point[len(lower) - 1 :]


def _host_path(share: Share, lower: str) -> str:
    """The main host's path of what is shared, without links; empty where there is none."""
    try:
        fd = share.open(lower)
    except OSError:
        return ""
    path = os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)
    return path


def _service_problem(subhost: Subhost, word: str, hidden: set[str]) -> str:
    """Why a word of START will not be started; empty where it will, or nothing is known."""
    layers = _layers(subhost)
    path = word if word.startswith("/") else f"/etc/init.d/{word}"
    shown = word if len(word) <= 60 else f"{word[:60]}..."
    try:
        unit = not word.startswith("/") and _has_unit(layers, word, hidden)
        if unit and subhost.init.systemd:
            return ""
        found = _look_up(layers, path, hidden)
        if found and stat.S_ISREG(found.st_mode) and found.st_mode & 0o111:
            return ""
        if found:
            what = f"START: {path} in the subhost is not an executable file"
            if word.startswith("/"):
                return f"{what}: chmod +x it"
            return f"{what}, as when its package was removed: install that, or correct START"
        if word.startswith("/"):
            return f"START: the subhost has no {shown}: create it, or correct START"
    except (LookupError, PermissionError):
        return ""
    if unit:
        return (
            f"START: {shown} has only a systemd unit in the subhost and no /etc/init.d/{shown}: run "
            "that with INIT= overlay-init-systemd, or write a start/stop script and name its full path"
        )
    if subhost.init.systemd:
        return (
            f"START: {shown} has no systemd unit in the subhost: install it there or on the main "
            "host, or correct START"
        )
    return (
        f"START: {shown} has no /etc/init.d/{shown} in the subhost: install it there or on the "
        "main host, or correct START"
    )


def _no_systemd(subhost: Subhost, hidden: set[str]) -> str:
    """What is to be said where the subhost will have no systemd."""
    try:
        if _look_up(_layers(subhost), "/lib/systemd/systemd", hidden):
            return ""
    except (LookupError, PermissionError):
        return ""
    return "INIT: the subhost has no /lib/systemd/systemd: install systemd"


def _layers(subhost: Subhost) -> list[str]:
    """What the subhost's root is made of, the uppermost first."""
    return [subhost.upper] + ([subhost.lower] if subhost.root_kind == "overlay" else [])


def _has_unit(layers: list[str], word: str, hidden: set[str]) -> bool:
    """Whether there is a systemd unit for a word of START, be it an instance of a template."""
    from overlay_boot.systemd import unit_of

    name, at, instance = unit_of(word).partition("@")
    names = [name + at + instance, *([f"{name}@.{instance.rpartition('.')[2]}"] if at else [])]
    folders = [
        f"{folder}/systemd/system" for folder in ("/etc", "/usr/local/lib", "/lib", "/usr/lib")
    ]
    return any(
        _look_up(layers, f"{folder}/{name}", hidden) for folder in folders for name in names
    )


def _look_up(layers: list[str], path: str, hidden: set[str]) -> os.stat_result | None:
    """What a path leads to, links followed, in an overlay of these layers, the uppermost first;
    None for nothing. Raises LookupError where it comes to a path that something else will be mounted
    on or is, and PermissionError (Documentation/filesystems/overlayfs.rst)."""
    for _ in range(40):
        active, here, found = layers, "", None
        names = [name for name in path.split("/") if name not in ("", ".")]
        for number, name in enumerate(names):
            folder, rest = here, names[number + 1 :]
            if name == "..":
                path = "/".join([folder.rpartition("/")[0], *rest])
                break
            here = f"{folder}/{name}"
            if here in hidden:
                raise LookupError
            found, active = _merged(active, here)
            if not found:
                return None
            if stat.S_ISLNK(found[0].st_mode):
                target = os.readlink(found[1] + here)
                path = "/".join([*([] if target.startswith("/") else [folder]), target, *rest])
                break
        else:
            return found[0] if found else None
    return None


def _merged(layers: list[str], path: str) -> tuple[tuple[os.stat_result, str] | None, list[str]]:
    """What is at a path, with the layer that has it, and the layers that make a folder of it."""
    found, active = None, []
    for layer in layers:
        try:
            status = os.lstat(layer + path)
        except PermissionError:
            raise
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            break  # a whiteout
        found = found or (status, layer)
        if not stat.S_ISDIR(status.st_mode):
            break
        active.append(layer)
        if layer is not layers[-1] and _is_opaque(layer + path):
            break
    return found, active


def _is_opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _newer_packages(subhost: Subhost) -> str:
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
    types = {number: kind for number, _, kind in _mounts()}
    mounts = {}
    for name, path in (("UPPER", upper), ("WORK", work)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        mounts[name] = mount_of(fd)
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


def mount_of(fd: int) -> int:
    """The id of the mount that an open file is on (proc(5), fdinfo)."""
    lines = lines_of(f"/proc/self/fdinfo/{fd}")
    return int(next(line for line in lines if line.startswith("mnt_id:")).split()[1])


def _mounts() -> Iterator[tuple[int, str, str]]:
    """Id, mount point and type of each mount in this namespace (proc(5), mountinfo)."""
    for line in lines_of("/proc/self/mountinfo")[:-1]:
        fields = line.split(" ")
        first, *rest = fields[4].split("\\")
        point = first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
        yield int(fields[0]), point, fields[fields.index("-", 6) + 1]
