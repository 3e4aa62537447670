"""Images: a Debian tree made by mmdebstrap, as an ext4 disk with the kernel and initrd beside it.

vm/recipe.py says what goes in; its hash names the image in the cache, so a changed recipe is another
image. No loop device and, where user namespaces allow it, no root is needed. What is half-made lies
in the cache's `building` folder and is swept later.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vm import folders
from vm.machine import MachineError
from vm.recipe import (
    AGENT,
    BOOT_MODULES,
    DISK,
    EXCLUDED,
    FLAVOURS,
    GUEST,
    INIT,
    SUITES,
    Recipe,
    recipe,
)

Say = Callable[[str], None]

#: What goes wrong with apt, told by its own words, and what to do about it.
TROUBLE = (
    (r"Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable",
     "the mirror cannot be reached: check the network, or name another one with MIRROR="),
    (r"No space left on device", "no space left: free some, or set VM_CACHE (python -m vm prune)"),
    (r"NO_PUBKEY|keyring .* not|public key is not available|not signed",
     "the suite's signature cannot be checked: install a newer debian-archive-keyring"),
    (r"does not have a Release file|404 +Not Found", "the mirror does not have this suite"),
    (r"Release file .* is expired",
     "the mirror's index is out of date: name another MIRROR=, or allow it in apt's configuration"),
    (r"(?m)^(E|unshare|newuidmap): .*(uid_map|unshare|user namespace|newuidmap|not permitted)",
     "no user namespaces for this user: run as root, or install uidmap"),
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    """A finished image: disk.qcow2, vmlinuz, initrd, ssh keys and image.json in a folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system's disk, to be used as a backing file only."""
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        """The kernel to boot directly: unpacked where that could be done, some seconds faster."""
        unpacked = self.folder / "vmlinux"
        return unpacked if unpacked.exists() else self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The small initrd that goes with the kernel."""
        return self.folder / "initrd"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*"))


def cached() -> list[Image]:
    """All images in the cache."""
    return [Image(file.parent) for file in sorted(folders.cache().glob("images/*/image.json"))]


def prune(*, everything: bool = False) -> int:
    """Remove images of older recipes, or every image, and tell the bytes freed.

    One that a running machine uses stays. What Vagrant keeps is made again when it is wanted.
    """
    current = {recipe(suite, flavour).key for suite in SUITES for flavour in FLAVOURS}
    used = "".join(file.read_text() for file in folders.run().glob("*/machine.json"))
    freed = 0
    for one in cached():
        if str(one.folder) not in used and (everything or one.folder.name not in current):
            freed += one.size
            folders.remove(one.folder)
            folders.remove(one.folder.with_suffix(".log"))
    unused = [
        f
        for f in folders.cache().glob("boxes/*.box")
        if everything or f.stem.rpartition("-")[0] not in current
    ]
    if everything:
        unused.append(folders.cache() / "packages")
    if not list(folders.run().glob("vagrant-*")):
        unused.append(folders.cache() / "vagrant")
    for path in unused:
        parts = [path, *path.rglob("*")] if path.exists() else []
        freed += sum(part.lstat().st_blocks * 512 for part in parts)
        folders.remove(path)
    return freed


def build(suite: str, flavour: str = "plain", *, say: Say = print, fresh: bool = False) -> Image:
    """The image of the current recipe: from the cache, else built. Raises MachineError.

    A second process that wants the same image waits for the first one's.
    """
    wanted = recipe(suite, flavour)
    target = folders.private(folders.cache() / "images") / wanted.key
    if target.exists() and not fresh:
        return Image(target)
    building = folders.private(folders.cache() / "building")
    turn = folders.Lock(building / f"{wanted.key}.turn", wait=True)
    try:
        if target.exists() and not fresh:
            return Image(target)
        work, lock = folders.claim(building, wanted.key)
        (work / "log").touch()
        try:
            try:
                _build(wanted, work, say)
            except OSError as error:
                raise MachineError(explain(f"image {suite}", str(error))) from error
            finally:
                with contextlib.suppress(OSError):  # a full disk has been told of already
                    shutil.copy(work / "log", target.with_suffix(".log"))
            old = work / "old"
            if target.exists():
                target.rename(old)
            (work / "image").rename(target)
        finally:
            folders.remove(work)
            lock.release()
    finally:
        turn.release()
    return Image(target)


def _build(wanted: Recipe, work: Path, say: Say) -> None:
    """Make the folder `image` in a work folder."""
    begin = time.monotonic()

    def step(text: str) -> None:
        say(f"image {wanted.suite}: {text} ({time.monotonic() - begin:.0f} s)")

    missing = [
        c
        for c in ("mmdebstrap", "mke2fs", "qemu-img", "cpio", "cc", "ssh-keygen")
        if not shutil.which(c)
    ]
    if missing:
        raise MachineError(f"commands missing here: {' '.join(missing)} (see docs/vm.md)")
    tree, result = work / "tree", work / "image"
    result.mkdir()
    step(f"installing Debian's packages from {wanted.sources[0].split()[1]}")
    _run(["cc", "-static", "-Os", "-s", "-o", str(work / "vm-agent"), str(AGENT)], work)
    key = str(result / "id_ed25519")
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", wanted.key, "-f", key], work)
    _bootstrap(wanted, _guest(work), work)
    step("making the disk")
    _run([*folders.as_root(), "sh", "-ec", _DISK, "sh", str(tree), str(work / "raw"), DISK], work)
    _run(["qemu-img", "convert", "-O", "qcow2", str(work / "raw"), f"{result}/disk.qcow2"], work)
    _initrd(tree, work)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, result / "vmlinuz")
    unpack_kernel(result / "vmlinuz", result / "vmlinux")
    keys = sorted((tree / "etc/ssh").glob("ssh_host_*_key.pub"))
    (result / "known_hosts").write_text("".join(f"* {key.read_text()}" for key in keys))
    about = asdict(wanted) | {
        "made": time.strftime("%FT%TZ", time.gmtime()),
        "kernel": kernel.name,
    }
    about["seconds"] = round(time.monotonic() - begin, 1)
    (result / "image.json").write_text(json.dumps(about, indent=2) + "\n")
    _run([*folders.as_root(), "rm", "-rf", str(tree)], work)
    step("done")


#: Reproducible: the same tree gives the same bytes. The mount points of the kernel's file systems
#: are there, whatever the tree was made under.
_DISK = """
chmod 755 "$1"
truncate -s "$3" "$2"
mke2fs -q -t ext4 -d "$1" -L root -U 6f76-6c79 -m 0 -E lazy_itable_init=1,nodiscard "$2"
""".replace("6f76-6c79", "6f766572-6c61-4f00-8000-626f6f740000")


def _guest(work: Path) -> Path:
    """The guest's own files with the agent and the key among them, modes as they should be."""
    guest = work / "guest"
    shutil.copytree(GUEST, guest)
    shutil.move(work / "vm-agent", guest / "usr/local/sbin/vm-agent")
    (guest / "root/.ssh").mkdir(parents=True)
    shutil.copy(work / "image/id_ed25519.pub", guest / "root/.ssh/authorized_keys")
    for path in guest.rglob("*"):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return guest


def _bootstrap(wanted: Recipe, guest: Path, work: Path) -> None:
    """Fill the folder `tree`. The way over a tar stream is the same for root and for others."""
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    options += [f"--aptopt={setting}" for setting in _apt_settings()]
    hooks = [f"copy-in {path} /" for path in sorted(guest.iterdir())]
    hooks += ['chroot "$1" sh /customize', 'rm "$1/customize"']
    if wanted.scripts:
        hooks.append(_SCRIPTS.format(" ".join(wanted.scripts)))
    options += [f"--customize-hook={hook}" for hook in hooks]
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(wanted.packages)}"]
    command += [*options, wanted.suite, "-", *wanted.sources]
    (work / "tree").mkdir()
    with (work / "log").open("ab") as log:
        maker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert maker.stdout is not None
        try:
            unpack = [*folders.as_root(), "tar", "-xp", "--numeric-owner", "--exclude=./dev/*"]
            taker = subprocess.run(
                [*unpack, "-C", work / "tree"], stdin=maker.stdout, stderr=log, check=False
            )
            maker.stdout.close()
            failed = maker.wait() or taker.returncode
        except BaseException:
            maker.stdout.close()
            maker.terminate()
            maker.wait()
            raise
    if failed:
        reason = explain(f"image {wanted.suite}", (work / "log").read_text(errors="replace"))
        raise MachineError(f"{reason} (log: {folders.cache()}/images/{wanted.key}.log)")


#: A hook of mmdebstrap, run outside of the new tree "$1" with its apt.
_SCRIPTS = """
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/scripts" && cd "$1/scripts" && apt-get download orphan-sysvinit-scripts
dpkg-deb -x orphan-*.deb . && cd usr/share/orphan-sysvinit-scripts
cp {} "$1/etc/init.d/" && rm -r "$1/scripts"
"""


def _apt_settings() -> list[str]:
    """How this machine's own apt is set up to fetch: proxies, and what it takes for valid."""
    command = ["apt-config", "dump", "--format=%f %v%n", "Acquire"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.partition(" ")[::2] for line in listing.splitlines()]
    wanted = r"Acquire::(https?::.*Proxy.*|Check-Valid-Until|Retries)"
    return [f'{name} "{value}"' for name, value in pairs if value and re.fullmatch(wanted, name)]


def explain(what: str, log: str) -> str:
    """One line on why something could not be made, from what mmdebstrap or apt wrote."""
    for pattern, advice in TROUBLE:
        if re.search(pattern, log):
            return f"{what}: {advice}"
    lines = [line for line in log.splitlines() if re.match(r"E: |[\w-]+: .*error", line)]
    lines = lines[:1] or log.splitlines()[-1:] or ["failed without a word"]
    return f"{what}: {lines[0]}"


def _run(command: list[str], work: Path) -> None:
    """Run a step's command; its words go to work/log and, when it fails, into the error."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    with (work / "log").open("a") as log:
        log.write(done.stdout)
    if done.returncode:
        raise MachineError(explain(command[0], done.stdout))


def _initrd(tree: Path, work: Path) -> None:
    """An initrd with busybox and only the modules that the root disk and the channel need."""
    root = work / "initrd"
    for folder in ("bin", "dev", "proc", "root"):
        (root / folder).mkdir(parents=True)
    shutil.copy(tree / "bin/busybox", root / "bin/busybox")
    for name in ["sh", "mount", "umount", "cat", "insmod", "sleep", "switch_root"]:
        (root / "bin" / name).symlink_to("busybox")
    (library,) = (tree / "lib/modules").iterdir()
    listed = []
    for path in modules((library / "modules.dep").read_text(), BOOT_MODULES):
        data = (library / path).read_bytes()
        name = Path(path).name.removesuffix(".xz")
        (root / name).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
        listed.append(name)
    (root / "modules").write_text("\n".join(listed) + "\n")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    pack = "find . | sort | cpio --quiet -o -H newc -R 0:0 --reproducible > ../image/initrd"
    _run(["sh", "-ec", f"cd '{root}'; {pack}"], work)


#: How a kernel's payload is unpacked, by its first bytes.
UNPACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\xfd7zX": "xz"}


def unpack_kernel(packed: Path, target: Path) -> None:
    """Write the ELF kernel inside a bzImage, which QEMU starts by its PVH entry.

    The place of the payload is in the image's header (Documentation/arch/x86/boot.rst); its last
    four bytes are the unpacked size. What is packed in another way is left alone.
    """
    data = packed.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (data[0x1F1] + 1) * 512 + offset
    payload = data[start : start + length - 4]
    tool = UNPACKERS.get(payload[:4])
    if tool and shutil.which(tool):
        done = subprocess.run([tool, "-dc"], input=payload, capture_output=True, check=False)
        if done.stdout.startswith(b"\x7fELF"):
            target.write_bytes(done.stdout)


def modules(dependencies: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of kernel modules in the order to load them, from the text of modules.dep."""
    needs = dict(line.split(":", 1) for line in dependencies.splitlines() if ":" in line)
    paths = {re.sub(r"\.ko.*", "", Path(path).name).replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in wanted:
        if name not in paths:
            continue  # built into the kernel
        for path in (*reversed(needs[paths[name]].split()), paths[name]):
            if path not in order:
                order.append(path)
    return order
