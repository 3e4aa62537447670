"""What is tested: the implementation put on a target, and what is found there of it in the end."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from spec.clauses import PageError
from spec.targets import Target, TargetError

COMMANDS = tuple(
    f"overlay-{end}" for end in ("boot", "diff", "diskfile", "go", "list", "share", "stop")
)
BIN = "/opt/implementation"  # where a package's commands are linked on the target
GIVEN = "/opt/package"

# Each command on PATH: its name, the file that it is in the end, and that file's SHA-256.
FOUND = rf"""
for name in {" ".join(COMMANDS)}; do
    file=$(command -v $name) && file=$(readlink -f "$file") || continue
    echo "$name $(sha256sum < "$file" | cut -c 1-64) $file"
done"""

# The same of the commands in the package that was given.
PACKED = rf"""
set -e
rm -rf {GIVEN}.root; dpkg-deb -x {GIVEN}.deb {GIVEN}.root; cd {GIVEN}.root
for file in usr/sbin/overlay-* usr/bin/overlay-*; do
    name=${{file##*/}}
    while [ -L "$file" ]; do
        link=$(readlink "$file")
        case $link in /*) file=.$link ;; *) file=${{file%/*}}/$link ;; esac
    done
    [ ! -f "$file" ] || echo "$name $(sha256sum < "$file" | cut -c 1-64) $file"
done"""


def page_of(given: Path | None) -> str:
    """Whose promises what is given is held to: 1.6 for Debian's own package, else ours.

    Raises PageError for a package that cannot be read.
    """
    if given is None or given.suffix != ".deb":
        return "ours"
    command = ["dpkg-deb", "--field", str(given), "Package"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise PageError(f"{given}: say --page, since there is no dpkg-deb: {error}") from None
    except subprocess.CalledProcessError as error:
        raise PageError(f"{given}: no package of Debian: {error.stderr.strip()}") from None
    return "1.6" if done.stdout.strip() == "overlay-boot" else "ours"


def install(target: Target, folder: Path | None, deb: Path | None) -> dict[str, str]:
    """Put a folder of commands or a package on the target, or neither where it has them already.

    Returns what is tested: name, version and source, the commands with their SHA-256, and for a
    package its name, file name and SHA-256. Raises TargetError where that cannot be, and where the
    commands that are found on PATH then are not those of the package.
    """
    if folder and folder.suffix == ".deb":
        folder, deb = None, folder
    where = None
    about = _package(target, deb) if deb else {}
    if folder and not target.install(folder):
        where = target.place(folder)
        target.path = f"{where}:{target.path}"
    found = _digests(target, FOUND)
    if "overlay-boot" not in found:
        raise TargetError("no overlay-boot on the target's PATH: give --implementation or --deb")
    paths = target.run(f"for name in {' '.join(found)}; do command -v $name; done").out.split("\n")
    boot = paths[0]
    if where and (
        others := [path for path in paths if path and path != f"{where}/{Path(path).name}"]
    ):
        raise TargetError(f"{folder} lacks commands that are elsewhere: {', '.join(others)}")
    tried = target.run("overlay-boot --help < /dev/null")
    if tried.status in (126, 127):
        raise TargetError(f"{boot} cannot be run on {target.name}: {tried.err.strip()}")
    if deb:
        _compare(target, deb, found)
    else:
        about = _source(target, boot, folder)
    listed = (f"{digest}  {file}" for digest, file in found.values())
    return about | {"commands": "\n".join(listed)}


def _digests(target: Target, script: str) -> dict[str, tuple[str, str]]:
    """Command names with their SHA-256 and file, as a script of the above prints them."""
    rows = (line.split(" ", 2) for line in target.succeed(script, timeout=60).splitlines())
    return {name: (digest, file) for name, digest, file in rows}


def _package(target: Target, deb: Path) -> dict[str, str]:
    """Put a package on the target; what it is."""
    target.put(f"{GIVEN}.deb", deb.read_bytes())
    wanted = "dpkg-deb -W --showformat '${Package} ${Version}' " + f"{GIVEN}.deb"
    name, version = target.succeed(wanted).split()
    digest = target.succeed(f"sha256sum < {GIVEN}.deb").split()[0]
    if not target.install(deb):
        if name != "overlay-boot":
            raise TargetError(f"{deb.name} has modules of Python: test it in a vm:// target")
        target.succeed(
            f"""cd /opt && dpkg-deb -x {GIVEN}.deb unpacked && mkdir -p {BIN} &&
            for link in unpacked/usr/sbin/* unpacked/usr/bin/*; do
                [ ! -L $link ] || ln -sf /opt/unpacked$(readlink $link) {BIN}/
            done; ls {BIN}/overlay-boot""",
            timeout=60,
        )
        target.path = f"{BIN}:{target.path}"
    return {
        "name": "debian" if name == "overlay-boot" else "ours",
        "version": version,
        "source": deb.name,
        "package": f"{name} {version}",
        "sha256": digest,
    }


def _compare(target: Target, deb: Path, found: dict[str, tuple[str, str]]) -> None:
    """Raise TargetError where a command on the target is not the package's."""
    packed = _digests(target, PACKED)
    target.succeed(f"rm -rf {GIVEN}.root {GIVEN}.deb")
    lines = [f"{name} is missing there" for name in packed if name not in found]
    lines += [
        f"{name} there is {file}, not the package's"
        for name, (digest, file) in found.items()
        if packed.get(name, ("",))[0] != digest
    ]
    if lines:
        raise TargetError(f"{deb.name} is not what {target.name} runs: {'; '.join(lines)}")


def _source(target: Target, boot: str, folder: Path | None) -> dict[str, str]:
    """Where commands that were not given as a package come from."""
    where = shlex.quote(boot)
    # dpkg does not know /bin/x where the package has /usr/bin/x.
    script = f"""dpkg-query -W -f '${{Package}} ${{Version}}' "$(
        dpkg -S {where} "$(readlink -f {where})" | sed -n 's/:.*//p;q')" """
    owner = target.run(script).out.split()
    name = "debian" if owner[:1] == ["overlay-boot"] else "ours"
    if owner:
        return {"name": name, "version": owner[1], "source": boot, "package": " ".join(owner)}
    version = folder and _commit(folder)
    if not version:
        said = target.run("overlay-boot --version < /dev/null")
        words = said.out.split()
        version = words[-1][:40] if not said.status and 0 < len(words) < 4 else ""
    return {"name": name, "version": version, "source": boot}


def _commit(folder: Path) -> str:
    """The commit of this project's working tree that a folder is in, where git knows it."""
    git = f"git -C {shlex.quote(str(folder))}"
    tracked = f"{git} ls-files --error-unmatch :/bin/overlay-boot > /dev/null 2>&1"
    command = ["sh", "-c", f"{tracked} && {git} describe --always --dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
