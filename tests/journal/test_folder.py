"""Where a journal may be: on a local disk, in a directory that this process may write to."""

from __future__ import annotations

import os

import pytest

from locus_tiered.core.errors import JournalError, JournalLocked, StackConfigError
from locus_tiered.stores import journal_folder
from locus_tiered.stores.journal import check_journal_path
from locus_tiered.stores.journal_folder import Folder, network_file_system
from tests.journal.parts import journal_in, seats

MOUNTS = r"""proc /proc proc rw,nosuid 0 0
/dev/vda1 / ext4 rw,relatime 0 0
overlay /containers/one overlay rw,lowerdir=/a,upperdir=/b 0 0
tmpfs /run tmpfs rw 0 0
filer:/export /mnt/nfs nfs4 rw,vers=4.2 0 0
filer:/export /mnt/nfs/inner ext4 rw 0 0
//server/share /mnt/my\040share cifs rw 0 0
//server/other /mnt/tab\011and\134slash smb3 rw 0 0
me@host:/home /mnt/ssh fuse.sshfs rw 0 0
bucket /mnt/s3 fuse.s3fs rw 0 0
/dev/fuse /mnt/local fuse.ntfs-3g rw 0 0
pool/data /mnt/zfs zfs rw 0 0
old /mnt/twice ext4 rw 0 0
filer:/export /mnt/twice nfs rw 0 0
host9p /mnt/vm 9p rw 0 0

short line
"""


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/home/me/journal", None),
        ("/containers/one/journal", None),
        ("/run/journal", None),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/journal", "nfs4"),
        ("/mnt/nfs/inner/journal", None),
        ("/mnt/nfsother/journal", None),
        ("/mnt/my share/journal", "cifs"),
        ("/mnt/tab\tand\\slash/journal", "smb3"),
        ("/mnt/ssh/journal", "fuse.sshfs"),
        ("/mnt/s3/journal", "fuse.s3fs"),
        ("/mnt/local/journal", None),
        ("/mnt/zfs/journal", None),
        ("/mnt/twice/journal", "nfs"),
        ("/mnt/vm/journal", "9p"),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(tmp_path, where, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert network_file_system(journal_folder.Path(where), mounts) == kind


def test_without_a_list_of_mounts_nobody_can_tell(tmp_path):
    assert network_file_system(tmp_path, tmp_path / "none") is None


async def test_a_journal_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"filer:/export {tmp_path.resolve()} nfs4 rw 0 0\n")
    monkeypatch.setattr(network_file_system, "__defaults__", (mounts,))
    with pytest.raises(JournalError, match=r"is on a network file system \(nfs4\).*put it on a local disk"):
        async with journal_in(tmp_path / "j"):
            pass
    assert seats(tmp_path / "j") == []


async def test_a_path_that_is_a_file_is_refused_and_works_once_it_is_gone(tmp_path):
    path = tmp_path / "j"
    path.write_text("something else")
    for _ in range(3):
        with pytest.raises(JournalError, match=r"cannot be made .* Give it a directory that this process may write to"):
            async with journal_in(path):
                pass
    assert path.read_text() == "something else"
    path.unlink()
    async with journal_in(path) as journal:
        assert journal.is_open


async def test_a_directory_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    usual = os.open

    def denied(path, flags, *more, **options):
        if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))  # what everybody but root meets
        return usual(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(JournalError, match=r"could not be opened \(PermissionError, errno 13\).*who may write there"):
        async with journal_in(tmp_path):
            pass
    monkeypatch.undo()
    async with journal_in(tmp_path) as journal:
        assert journal.is_open


async def test_a_former_journal_that_this_process_may_not_open_is_left_alone(tmp_path, monkeypatch, caplog):
    theirs = tmp_path / "1-0123456789ab"
    theirs.mkdir()
    usual = os.open

    def denied(path, *more, **options):
        if str(path).startswith(str(theirs)):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *more, **options)

    monkeypatch.setattr(os, "open", denied)
    async with journal_in(tmp_path) as journal:
        assert journal.pending().left == 1
    assert "cannot be taken over (errno 13); left alone" in caplog.text


def test_a_file_system_whose_locks_do_not_hold_is_told(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    monkeypatch.setattr(Folder, "_take", staticmethod(lambda entry: None))
    with pytest.raises(
        JournalLocked, match=r"locked by somebody else; nothing was saved\. Is it on a file system with"
    ):
        folder.new()


@pytest.mark.parametrize("path", [None, 7, "", "a\0b", b"bytes", True])
def test_a_path_that_is_none_is_a_mistake_in_the_stack(path):
    with pytest.raises(StackConfigError, match="pass the path of a local directory"):
        check_journal_path(path)


def test_what_appears_and_what_goes_is_synced_in_its_directory(tmp_path, monkeypatch):
    """Else a power cut takes a new journal with it, or brings back one that was taken over."""
    done: list[tuple[str, object]] = []
    for owner, name, where in ((journal_folder, "_sync_directory", 0), (os, "mkdir", 0), (os, "rename", 1)):
        usual = getattr(owner, name)

        def noted(*arguments, usual=usual, name=name, where=where, **options):
            result = usual(*arguments, **options)
            done.append((name, journal_folder.Path(arguments[where])))
            return result

        monkeypatch.setattr(owner, name, noted)
    path = tmp_path / "new" / "journal"
    folder = Folder(path)
    folder.prepare()
    seat = folder.new()
    made = {each for name, each in done if name == "mkdir"}
    assert made == {path.parent, path, seat.path}
    for each in made:
        assert ("_sync_directory", each.parent) in done[done.index(("mkdir", each)) :]
    done.clear()
    seat.remove()
    assert done == [("rename", path / f".gone-{seat.path.name}"), ("_sync_directory", path)]
    done.clear()
    seat = folder.new()
    aside = seat.put_aside()
    assert done[-3:] == [("rename", aside), ("_sync_directory", path / ".damaged"), ("_sync_directory", path)]
