"""SHARE, and overlay-share(8)."""

from __future__ import annotations

import pytest

from spec.clauses import clause
from spec.errors import FAILED, one_line
from spec.subhost import Subhost


@clause("share", "share-many")
def test_shares_are_seen_by_both(subhost: Subhost) -> None:
    """Every SHARE shows the same folder to the main host and to the subhost."""
    folder = subhost.folder
    for name in ("one", "two"):
        subhost.put(f"{name}/from", "host\n")
        subhost.put(f"root{folder}/{name}/.here", "")  # the mount point
    # 1.6 looks a single path up on the main host, 1.2 under LOWER: here that is the same.
    subhost.boot(f"LOWER= /\nSHARE= {folder}/one\nSHARE= {folder}/two")
    said = subhost.inside(f"cat {folder}/one/from {folder}/two/from; echo sub > {folder}/two/new")
    assert said == "host\nhost\n"
    assert subhost.target.read(f"{folder}/two/new") == "sub\n"
    subhost.prepare_host(f"echo later > {folder}/two/new")
    assert subhost.inside(f"cat {folder}/two/new") == "later\n"


@clause("share-lower")
def test_a_single_path_is_lowers(subhost: Subhost) -> None:
    """Without a colon the path is looked up under LOWER."""
    lower = subhost.fill("lower")
    subhost.put("lower/srv/only/from", "lower\n")
    subhost.boot(f"LOWER= {lower}\nSHARE= /srv/only")
    subhost.inside("echo sub > /srv/only/new")
    assert subhost.target.read(f"{lower}/srv/only/new") == "sub\n"


@clause("share-other-path")
def test_a_share_on_another_path(subhost: Subhost) -> None:
    """SHARE= /host/dir:/sub/dir mounts the main host's folder on the other path in the subhost."""
    subhost.put("outside/from", "host\n")
    subhost.put("root/srv/inside/.here", "")
    subhost.boot(f"LOWER= /\nSHARE= {subhost.folder}/outside:/srv/inside")
    assert subhost.inside("cat /srv/inside/from; echo sub > /srv/inside/new") == "host\n"
    assert subhost.target.read(f"{subhost.folder}/outside/new") == "sub\n"


@clause("share-file", "share-submounts", "share-mountpoint")
def test_files_and_submounts_are_shared(subhost: Subhost) -> None:
    """A file can be shared, and what is mounted below a shared folder comes along."""
    subhost.put("outside/sub/x", "hidden\n")
    subhost.put("file", "file\n")
    subhost.prepare_host(f"mount -t tmpfs deep {subhost.folder}/outside/sub")
    try:
        subhost.put("outside/sub/x", "deep\n")
        subhost.boot(
            f"SHARE= {subhost.folder}/outside:/new/place\nSHARE= {subhost.folder}/file:/new/file"
        )
        assert subhost.inside("cat /new/place/sub/x /new/file") == "deep\nfile\n"
        assert subhost.host.file(f"{subhost.folder}/root/new/file").exists
    finally:
        stop = f"overlay-stop {subhost.conf}; umount {subhost.folder}/outside/sub"
        subhost.target.run(stop, timeout=60)


@clause("share-no-command")
def test_share_runs_no_command(subhost: Subhost) -> None:
    """A ! has no special meaning in SHARE."""
    subhost.start(f"SHARE=!touch {subhost.folder}/ran")
    assert subhost.settled()
    assert not subhost.host.file(f"{subhost.folder}/ran").exists


@clause("share-symlink")
def test_links_in_the_subhost_do_not_lead_a_share_out(subhost: Subhost) -> None:
    """A link in UPPER is resolved inside the subhost: nothing is made or mounted on the host."""
    subhost.put("outside/from", "host\n")
    subhost.put("victim/.x", "")
    subhost.put(f"root{subhost.folder}/victim/inside", "")
    subhost.prepare_host(f"ln -s {subhost.folder}/victim {subhost.folder}/root/link")
    subhost.boot(f"SHARE= {subhost.folder}/outside:/link/new")
    assert subhost.inside("cat /link/new/from") == "host\n"
    assert subhost.target.run(f"ls -A {subhost.folder}/victim").out == ".x\n"


def shared_folder(subhost: Subhost) -> str:
    """A folder of the main host that is there in the subhost, too."""
    shared = subhost.put("shared/from", "host\n").removesuffix("/from")
    subhost.put(f"root{shared}/.here", "")
    return shared


@clause("runtime-share-end")
def test_share_ends_with_the_subhost(subhost: Subhost) -> None:
    """When the subhost ends the share's content stays, and there is no mount that would
    outlast it."""
    shared = shared_folder(subhost)
    subhost.boot()
    subhost.on_host(f"overlay-share {shared} {subhost.name}")
    subhost.stop()
    assert subhost.target.read(f"{shared}/from") == "host\n"
    assert shared not in subhost.target.read("/proc/self/mounts")
    subhost.boot()
    assert subhost.inside(f"ls -A {shared}") == ".here\n"


@clause("runtime-share", "runtime-share-both", "runtime-share-example")
def test_share_with_a_running_subhost(subhost: Subhost) -> None:
    """After overlay-share a running subhost and the main host have the folder in common."""
    shared = shared_folder(subhost)
    subhost.boot()
    done = subhost.on_host(f"overlay-share {shared} {subhost.name}")
    assert done.status == 0, done
    assert subhost.inside(f"cat {shared}/from; echo sub > {shared}/new") == "host\n"
    assert subhost.target.read(f"{shared}/new") == "sub\n"
    subhost.prepare_host(f"echo later > {shared}/new")
    assert subhost.inside(f"cat {shared}/new") == "later\n"


@clause("runtime-share-mountpoint")
def test_share_makes_the_mount_point(subhost: Subhost) -> None:
    """A folder that the subhost does not have is shared all the same."""
    shared = subhost.put("shared/from", "host\n").removesuffix("/from")
    subhost.boot()
    assert subhost.on_host(f"overlay-share {shared} {subhost.name}").status == 0
    assert subhost.inside(f"cat {shared}/from") == "host\n"


@clause("runtime-share-conf")
def test_share_takes_the_configuration_file(subhost: Subhost) -> None:
    """overlay-share takes the configuration file in place of the name."""
    shared = shared_folder(subhost)
    subhost.boot()
    assert subhost.on_host(f"overlay-share {shared} {subhost.conf}").status == 0
    assert subhost.inside(f"cat {shared}/from") == "host\n"


@clause("runtime-share-missing")
def test_share_refuses_what_is_not_there(subhost: Subhost) -> None:
    """overlay-share refuses in one line what is not there."""
    subhost.boot()
    missing = f"{subhost.folder}/missing"
    done = subhost.on_host(f"overlay-share {missing} {subhost.name}")
    one_line(done, FAILED, missing)


@clause("runtime-share-file", "runtime-share-again", "runtime-share-remove")
def test_a_file_is_shared_once_and_no_more(subhost: Subhost) -> None:
    """Sharing a file twice makes one mount, and --remove takes it away again, and only once."""
    subhost.boot()
    file = subhost.put("some file", "shared\n", 0o644)
    for _ in range(2):
        done = subhost.on_host(f"overlay-share '{file}' {subhost.name}")
        assert done.status == 0, done
    assert subhost.inside(f"cat '{file}'") == "shared\n"
    assert subhost.inside("grep -c some /proc/mounts") == "1\n"
    done = subhost.on_host(f"overlay-share --remove '{file}' {subhost.name}")
    assert done.status == 0, done
    assert subhost.inside("grep -c some /proc/mounts; :") == "0\n"
    again = subhost.on_host(f"overlay-share --remove '{file}' {subhost.name}")
    one_line(again, 1)
    assert subhost.target.read(file) == "shared\n"


@clause("runtime-share-remove", "runtime-share-again")
def test_a_shared_file_that_was_replaced(subhost: Subhost) -> None:
    """A shared file that was replaced, as an editor does, is shared anew by the same command,
    and --remove takes it away, also when the main host has removed it."""
    subhost.boot()
    file = subhost.put("file", "old\n", 0o644)
    assert subhost.on_host(f"overlay-share {file} {subhost.name}").status == 0
    subhost.prepare_host(f"echo new > {file}.new && mv {file}.new {file}")
    done = subhost.on_host(f"overlay-share {file} {subhost.name}")
    assert done.status == 0 and subhost.inside(f"cat {file}") == "new\n", done
    subhost.prepare_host(f"rm {file}")
    done = subhost.on_host(f"overlay-share --remove {file} {subhost.name}")
    assert done.status == 0, done
    assert subhost.inside(f"grep -c {file} /proc/mounts; :") == "0\n"
    assert subhost.on_host(f"overlay-share --remove /proc {subhost.name}").status == 1
    assert subhost.inside("cat /proc/1/comm") == ".reaper\n"


@clause("share-root")
@pytest.mark.parametrize("path", ["/", "/.", "/..", "//x/..", "/etc:/.", "/etc:/x/.."])
def test_the_whole_root_is_not_shared(subhost: Subhost, path: str) -> None:
    """A SHARE of the subhost's whole root is refused with status 2, however it is spelled."""
    done = subhost.refused(f"SHARE= {path}")
    one_line(done, 2, "SHARE")


@clause("share-root")
def test_a_link_to_the_root_is_not_shared_onto(subhost: Subhost) -> None:
    """A SHARE onto a link that leads to the subhost's root fails the boot in one line."""
    subhost.prepare_host(f"ln -s / {subhost.folder}/root/link")
    done = subhost.refused("SHARE= /srv:/link")
    one_line(done, 1, "SHARE")


@clause("share-dangling")
def test_a_mount_point_below_a_link_that_leads_nowhere_yet(subhost: Subhost) -> None:
    """A mount point below a link that leads nowhere yet is made where the link leads, in the
    subhost's own tree, and the share shows there."""
    subhost.prepare_host(
        f"cd {subhost.folder} && echo name > given && mkdir root/etc && "
        "ln -s ../run/resolve/stub.conf root/etc/resolv.conf && ln -s /srv/deep root/etc/folder"
    )
    given = f"{subhost.folder}/given"
    subhost.boot(f"SHARE= {given}:/etc/resolv.conf\nSHARE= {subhost.folder}:/etc/folder/x")
    assert subhost.inside("cat /etc/resolv.conf /run/resolve/stub.conf") == "name\nname\n"
    assert subhost.inside("ls /srv/deep/x/given") == "/srv/deep/x/given\n"
