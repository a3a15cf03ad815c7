import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cag_daemon.front import watch as watch_module
from cag_daemon.front.watch import Watcher, events_come

DEADLINE = 30


class Watched:
    """One watched document, and how often something happened to it."""

    def __init__(self, watcher: Watcher, path: Path) -> None:
        self.watcher, self.path, self.count = watcher, path, 0

    async def until(self, condition) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "nothing was reported"
            await asyncio.sleep(0.01)

    async def reports(self, change) -> None:
        """A change is reported, and then there is rest."""
        before = self.count
        await asyncio.to_thread(change)
        await self.until(lambda: self.count > before)
        await self.rest()

    async def rest(self, seconds=0.8) -> None:
        count, since = self.count, time.monotonic()
        while time.monotonic() < since + seconds:
            await asyncio.sleep(0.05)
            if self.count != count:
                count, since = self.count, time.monotonic()

    async def ignores(self, change) -> None:
        await self.rest(2)
        before = self.count
        await asyncio.to_thread(change)
        await self.rest()
        assert self.count == before


@contextlib.asynccontextmanager
async def watching(path: Path, *, mode: str = "events"):
    def on_change(changed: Path) -> None:
        assert changed == path
        assert threading.current_thread() is threading.main_thread()
        watched.count += 1

    watcher = Watcher(on_change, asyncio.get_running_loop(), polling=mode == "polling")
    watched = Watched(watcher, path)
    try:
        watcher.watch(path)
        await watched.until(lambda: watcher.mode(path) == mode)
        yield watched
    finally:
        began = time.monotonic()
        watcher.close()
        assert time.monotonic() - began < 1.5


@pytest.fixture(autouse=True)
def only_events(monkeypatch):
    """So that a test of events cannot pass by the slow look, and one of polling is quick."""
    monkeypatch.setattr(watch_module, "_HEARTBEAT", 1000)
    monkeypatch.setattr(watch_module, "_POLL", 0.1)


@pytest.fixture
def new_folder(tmp_path):
    if not events_come(str(tmp_path), watch_module._mounts()):
        pytest.skip("no events come from here")
    numbers = itertools.count()

    def new_folder():
        folder = tmp_path / str(next(numbers)) / "project" / "docs"
        folder.mkdir(parents=True)
        (folder / "document.txt").write_text("old")
        return folder

    return new_folder


@pytest.fixture
def folder(new_folder):
    return new_folder()


def in_both_modes(new_folder, story, *things):
    """Tell a story for each mode and thing; all at once, since most of it is waiting."""

    async def main():
        cases = itertools.product(("events", "polling"), things or [()])
        await asyncio.gather(*(story(new_folder(), mode, *thing) for mode, thing in cases))

    asyncio.run(main())


def in_place(file):
    file.write_text("new and longer")


def append(file):
    with file.open("a") as stream:
        stream.write("more")


def by_rename(file):
    temporary = file.with_name("document.txt.tmp.1234")
    temporary.write_text("new")
    os.replace(temporary, file)  # noqa: PTH105


def from_elsewhere(file):
    temporary = file.parent.parent / "elsewhere"
    temporary.write_text("new")
    temporary.replace(file)


def vim(file):
    file.rename(file.with_name("document.txt~"))
    file.write_text("new")
    file.with_name("document.txt~").unlink()


def sed(file):
    subprocess.run(["sed", "-i", "s/old/new/", str(file)], check=True)


def same_size_same_time(file):
    times = file.stat()
    file.write_text("NEW")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def delete(file):
    file.unlink()


def delete_and_create(file):
    file.unlink()
    file.write_text("new")


def move_away(file):
    file.rename(file.parent.parent / "away")


CHANGES = [in_place, append, by_rename, from_elsewhere, vim, same_size_same_time, delete, delete_and_create, move_away]
if sys.platform == "linux" and shutil.which("sed"):
    CHANGES.append(sed)


def test_a_change_is_seen(new_folder):
    async def story(folder, mode, change):
        async with watching(folder / "document.txt", mode=mode) as watched:
            await watched.reports(lambda: change(folder / "document.txt"))
            # And the next one too.
            await watched.reports(lambda: (folder / "document.txt").write_text("once more, with other words"))

    in_both_modes(new_folder, story, *zip(CHANGES, strict=True))


def test_what_is_no_change(new_folder):
    def others(folder):
        (folder / "document.txt.swp").write_text("x")
        (folder / "other.txt").write_text("x")
        (folder / "other.txt").rename(folder / "third.txt")
        (folder / "document").mkdir()
        (folder.parent / "document.txt").write_text("x")
        (folder / "third.txt").unlink()

    async def story(folder, mode):
        file = folder / "document.txt"
        async with watching(file, mode=mode) as watched:
            await watched.ignores(lambda: (file.read_text(), list(folder.iterdir()), others(folder)))
            await asyncio.to_thread(file.chmod, 0o600)
            await watched.rest()
            await watched.reports(lambda: in_place(file))

    in_both_modes(new_folder, story)


def test_a_burst_is_one_report(folder):
    file = folder / "document.txt"

    def burst():
        for i in range(2000):
            file.write_text(str(i))

    async def main():
        async with watching(file) as watched:
            await watched.reports(burst)
            assert watched.count < 200

    asyncio.run(main())


def replace_folder(folder):
    """As git checkout does where a folder has become another."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "document.txt").write_text("new")


def swap_folder(folder):
    new = folder.with_name("new")
    new.mkdir()
    (new / "document.txt").write_text("new")
    folder.rename(folder.with_name("old"))
    new.rename(folder)


def replace_project(folder):
    shutil.rmtree(folder.parent)
    folder.mkdir(parents=True)
    (folder / "document.txt").write_text("new")


def replace_slowly(folder):
    shutil.rmtree(folder.parent)
    time.sleep(0.3)
    folder.parent.mkdir()
    time.sleep(0.3)
    folder.mkdir()
    time.sleep(0.3)
    (folder / "document.txt").write_text("new")


def test_a_folder_that_is_replaced(new_folder):
    async def story(folder, mode, change):
        async with watching(folder / "document.txt", mode=mode) as watched:
            for _ in range(2):
                await watched.reports(lambda: change(folder))
                await watched.reports(lambda: by_rename(folder / "document.txt"))
                shutil.rmtree(folder.with_name("old"), ignore_errors=True)

    in_both_modes(new_folder, story, (replace_folder,), (swap_folder,), (replace_project,), (replace_slowly,))


def test_a_folder_that_comes_later(new_folder):
    def create(file):
        file.parent.mkdir(parents=True)
        file.write_text("new")

    async def story(folder, mode):
        file = folder / "not" / "yet" / "there" / "document.txt"
        async with watching(file, mode=mode) as watched:
            await watched.reports(lambda: create(file))
            await watched.reports(lambda: in_place(file))
            await watched.reports(lambda: shutil.rmtree(folder / "not"))
            await watched.reports(lambda: create(file))

    in_both_modes(new_folder, story)


def test_a_folder_that_is_a_file_at_first(folder):
    file = folder / "document.txt" / "document.txt"

    def create():
        file.parent.unlink()
        file.parent.mkdir()
        file.write_text("new")

    async def main():
        async with watching(file) as watched:
            await watched.reports(create)
            await watched.reports(lambda: in_place(file))

    asyncio.run(main())


def test_links_are_followed(new_folder):
    """One to the file, by way of one to its folder, each in a folder of its own."""

    def retarget(link, target):
        (link.parent / "temporary").symlink_to(target)
        (link.parent / "temporary").replace(link)

    async def story(folder, mode):
        first, second, other = folder.parent / "first", folder.parent / "second", folder / "other.txt"
        for link in (first, second):
            link.mkdir()
        (second / "folder").symlink_to(os.path.relpath(folder, second))
        (first / "link").symlink_to(second / "folder" / ".." / "docs" / "document.txt")
        other.write_text("other")
        async with watching(first / "link", mode=mode) as watched:
            await watched.reports(lambda: in_place(folder / "document.txt"))
            await watched.reports(lambda: by_rename(folder / "document.txt"))
            await watched.reports(lambda: retarget(first / "link", second / "folder" / "other.txt"))
            await watched.reports(lambda: in_place(other))
            await watched.ignores(lambda: in_place(folder / "document.txt"))
            await watched.reports(lambda: retarget(second / "folder", folder.parent))
            await watched.reports(lambda: (folder.parent / "other.txt").write_text("x"))
            await watched.reports((first / "link").unlink)

    in_both_modes(new_folder, story)


def test_links_that_lead_nowhere_and_round(folder):
    (folder / "dangling").symlink_to("later.txt")
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")

    async def main():
        async with watching(folder / "dangling") as watched:
            await watched.reports(lambda: (folder / "later.txt").write_text("x"))
        async with watching(folder / "a") as watched:
            await watched.reports((folder / "b").unlink)
            await watched.reports(lambda: (folder / "b").write_text("x"))

    asyncio.run(main())


def test_watch_and_unwatch(folder):
    seen = []
    files = [folder / name for name in ("a", "b")]

    async def main():
        watcher = Watcher(seen.append, asyncio.get_running_loop())
        watched = Watched(watcher, files[0])
        watcher.unwatch(files[0])
        for file in [*files, files[0]]:
            watcher.watch(file)
        await watched.until(lambda: all(watcher.mode(file) == "events" for file in files))
        for file in files:
            file.write_text("x")
        await watched.until(lambda: set(seen) == set(files))
        await asyncio.sleep(0.5)
        watcher.unwatch(files[0])
        seen.clear()
        for file in files:
            file.write_text("xx")
        await watched.until(lambda: seen)
        await asyncio.sleep(0.5)
        assert set(seen) == {files[1]}
        watcher.unwatch(files[1])
        await watched.until(lambda: not watcher._watches)
        watcher.close()
        watcher.close()
        watcher.watch(files[0])
        watcher.unwatch(files[0])
        assert watcher.mode(files[0]) == "polling"

    asyncio.run(main())


def test_what_happens_while_watching_begins_is_not_lost(folder):
    async def main():
        for i in range(5):
            file, seen = folder / f"{i}.txt", []
            watcher = Watcher(seen.append, asyncio.get_running_loop())
            watcher.watch(file)
            file.write_text("x")
            await Watched(watcher, file).until(lambda seen=seen: seen)
            watcher.close()

    asyncio.run(main())


def test_nothing_is_reported_after_the_end(folder):
    seen = []

    async def main():
        watcher = Watcher(seen.append, asyncio.get_running_loop())
        watcher.watch(folder / "document.txt")
        await Watched(watcher, folder).until(lambda: watcher.mode(folder / "document.txt") == "events")
        in_place(folder / "document.txt")
        # The report is on its way to the loop when this one ends it all.
        time.sleep(0.5)
        watcher.close()
        await asyncio.sleep(0.3)
        return watcher

    watcher = asyncio.run(main())
    assert not watcher._thread.is_alive()
    assert seen == []


def test_a_loop_that_is_closed_first(folder):
    loop = asyncio.new_event_loop()
    watcher = Watcher(lambda path: None, loop, polling=True)
    watcher.watch(folder / "document.txt")
    loop.close()
    in_place(folder / "document.txt")
    time.sleep(0.5)
    assert watcher._thread.is_alive()
    watcher.close()


def test_no_thread_and_no_descriptor_remain(folder):
    async def main():
        async with watching(folder / "document.txt") as watched:
            await watched.reports(lambda: replace_folder(folder))

    def descriptors():
        return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208

    asyncio.run(main())
    before, threads = descriptors(), threading.active_count()
    for _ in range(3):
        asyncio.run(main())
    deadline = time.monotonic() + DEADLINE
    # Fewer are well, too: those of the first time may still have been going when they were counted.
    while threading.active_count() > threads or descriptors() > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def falls_back(folder):
    async def main():
        file, seen = folder / "document.txt", []
        watcher = Watcher(seen.append, asyncio.get_running_loop())
        watcher.watch(file)
        await asyncio.sleep(0.5)
        assert watcher.mode(file) == "polling"
        in_place(file)
        await Watched(watcher, file).until(lambda: seen)
        watcher.close()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["observer", "schedule", "eventless", "unreadable"])
def test_no_events_to_be_had(folder, monkeypatch, where):
    def refuse(*_, **__):
        raise OSError(28, "inotify watch limit reached")

    if where == "observer":
        monkeypatch.setattr(watch_module, "_start_observer", refuse)
    elif where == "schedule":
        from watchdog.observers.api import BaseObserver

        monkeypatch.setattr(BaseObserver, "schedule", refuse)
    elif where == "eventless":
        monkeypatch.setattr(watch_module, "_mounts", lambda: "1 0 0:1 / / rw - 9p none rw")
    else:
        # As root may read everything.
        monkeypatch.setattr(watch_module.os, "access", lambda *_: False)
    falls_back(folder)


def test_what_no_event_tells(folder, monkeypatch):
    """A folder far above is renamed: we listen only around the document's folder."""
    monkeypatch.setattr(watch_module, "_HEARTBEAT", 0.3)
    deep = folder / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "document.txt").write_text("old")

    def swap():
        shutil.copytree(folder, folder.parent / "copy")
        folder.rename(folder.parent / "away")
        (folder.parent / "copy" / "a/b/c/document.txt").write_text("new")
        (folder.parent / "copy").rename(folder)

    async def main():
        async with watching(deep / "document.txt") as watched:
            await watched.reports(swap)
            monkeypatch.setattr(watch_module, "_HEARTBEAT", 1000)
            await watched.reports(lambda: in_place(deep / "document.txt"))
            await watched.reports(lambda: in_place(deep / "document.txt"))

    asyncio.run(main())


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /mnt/c rw,noatime - 9p C:\134 rw,aname=drvfs
31 22 0:31 / /mnt/c/local rw - tmpfs tmpfs rw
32 22 0:32 / /home/me/My\040Drive rw - fuse.rclone remote: rw
33 22 0:33 / /net rw - autofs auto rw
34 33 0:34 / /net rw - nfs4 server:/ rw
35 22 0:35 / /srv rw master:3 propagate_from:2 - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("folder", "come"),
    [
        ("/", True),
        ("/home/me", True),
        ("/mnt/c", False),
        ("/mnt/c/Users/me", False),
        ("/mnt/cc", True),
        ("/mnt/c/local/x", True),
        ("/home/me/My Drive/docs", False),
        ("/net/x", False),
        ("/srv/x", True),
    ],
)
def test_which_file_systems_send_events(folder, come):
    assert events_come(folder, MOUNTS) is come
    assert events_come(folder, "")
