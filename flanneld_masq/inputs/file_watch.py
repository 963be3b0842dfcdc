"""Reports that a file may have changed: it was written, replaced by rename, or appeared with its directory.

Watches directories, never the file itself, with watchdog, which uses inotify. Symbolic links on the way are followed,
and the directory of each is watched too: another program may point it elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify_buffer import InotifyBuffer

from flanneld_masq.inputs import path_patterns
from flanneld_masq.inputs.path_steps import Step, steps
from flanneld_masq.inputs.text import why
from flanneld_masq.model import SLOTS

JOIN_SECONDS = 0.2  # watchdog 2.1.6 takes up to 1 s to stop; its threads are daemons, so the process need not wait
MAX_DIRECTORIES = 8  # for one file
MAX_ROUNDS = 16  # a link that another program keeps changing must not hold up the daemon
_MEANWHILE = "; changes there are found at the resync only"
_RAISE = "; raise it with sysctl, fs.inotify.{}, then `systemctl reload flanneld-masq`"
_REMEDIES = {errno.ENOSPC: _RAISE.format("max_user_watches"), errno.EMFILE: _RAISE.format("max_user_instances")}
_READS = frozenset({"opened", "closed_no_write"})  # the daemon's own reading must not wake it

# watchdog waits half a second for the second half of a rename before it reports that a file has left the directory, and
# keeps back what comes after. Both halves mean the same here: the file may be another one.
InotifyBuffer.delay = 0.0


@dataclass(frozen=True, **SLOTS)
class Directory:
    """A directory to watch: its device and inode, and the paths of the entries in it that matter. The last part of such
    a path may be a pattern."""

    path: str
    identity: tuple[int, int]
    only: frozenset[str]

    def matters(self, path: str) -> bool:
        """Return True if a change of this path matters."""
        if path in self.only:
            return True
        directory, name = os.path.split(path)
        parts = (os.path.basename(entry) for entry in self.only)  # noqa: PTH119  no objects for each event
        return directory == self.path and any(path_patterns.matches(name, part) for part in parts)


class FileWatch:
    """Calls `changed` from a thread of its own. After each call the owner must call `refresh`, which moves the watches
    to the directories that exist now. All methods are for one thread. `complain` gets a message for each directory
    that cannot be watched."""

    def __init__(self, changed: Callable[[], None], complain: Callable[[str], None]) -> None:
        self._changed = changed
        self._complain = complain
        self._hopeless: set[Directory] = set()
        self._observer = Observer()
        self._watches: dict[Directory, tuple[ObservedWatch, _Handler]] = {}
        self._paths: tuple[str, ...] = ()

    def start(self, paths: tuple[str, ...]) -> None:
        self._observer.start()
        self.follow(paths)

    def follow(self, paths: tuple[str, ...]) -> None:
        """Watch these files, patterns and directories of files from now on, and no others. What could not be watched
        is tried again."""
        self._paths = paths
        self._hopeless.clear()
        self.refresh()

    def refresh(self, *, prune: bool = True) -> None:
        """Watch the directories that exist now. Repeats until none is new: a watch does not report the past.

        The kernel takes 15 ms to end a watch. Without `prune`, up to MAX_DIRECTORIES watches that are of no use stay
        until a later call.
        """
        for _ in range(MAX_ROUNDS):
            if not self._update(prune):
                break

    def stop(self) -> None:
        self._observer.stop()
        self._observer.join(JOIN_SECONDS)

    def _update(self, prune: bool) -> bool:
        wanted = directories(path for entry in self._paths for path in _watched_paths(entry)) - self._hopeless
        ended = {directory for directory, (_, handler) in self._watches.items() if handler.ended}
        fresh = wanted - (self._watches.keys() - ended)
        adapted = {new for new in fresh for old in self._watches.keys() - wanted - ended if self._adapt(old, new)}
        stale, paths = self._watches.keys() - (wanted - ended), {directory.path for directory in wanted}
        if not prune and len(stale) <= MAX_DIRECTORIES:
            stale = {directory for directory in stale if directory.path in paths}
        for directory in stale:
            self._observer.unschedule(self._watches.pop(directory)[0])
        scheduled = [directory for directory in fresh - adapted if self._schedule(directory)]
        return bool(adapted or stale or scheduled)

    def _adapt(self, old: Directory, new: Directory) -> bool:
        """Return True if both are the same directory, and let its watch serve the other entries from now on."""
        if (old.path, old.identity) != (new.path, new.identity) or old not in self._watches:
            return False
        watch, handler = self._watches.pop(old)
        self._watches[new] = (watch, _Handler(new, self._changed))
        self._observer.add_handler_for_watch(self._watches[new][1], watch)
        self._observer.remove_handler_for_watch(handler, watch)
        return True

    def _schedule(self, directory: Directory) -> bool:
        handler = _Handler(directory, self._changed)
        try:
            # watchdog hides this error, and waits for ever when such a watch is to end
            if not os.access(directory.path, os.R_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory.path)
            watch = self._observer.schedule(handler, directory.path)
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._forget(directory)
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                return False  # gone since the look-up; the watch on the directory above reports it
            self._hopeless.add(directory)  # each try may cost a file descriptor that watchdog does not close
            reason = why(error, directory.path) if isinstance(error, OSError) else str(error)
            remedy = _REMEDIES.get(getattr(error, "errno", None) or 0, "")
            self._complain(f"{directory.path} cannot be watched: {reason}{_MEANWHILE}{remedy}")
            return False
        self._watches[directory] = (watch, handler)
        return True

    def _forget(self, directory: Directory) -> None:
        """Remove a watch that failed: watchdog 2.1.6 keeps it, and would then ignore the next try."""
        with contextlib.suppress(KeyError):  # later versions do not keep it
            self._observer.unschedule(ObservedWatch(directory.path, recursive=False))


def _watched_paths(entry: str) -> Iterator[str]:
    """Yield the paths, also with a pattern as their last part, that tell what an entry stands for: its files may be
    links."""
    yield from path_patterns.watched(entry)
    yield from path_patterns.expand(entry).files


def directories(paths: Iterable[str]) -> frozenset[Directory]:
    """Return the directories whose changes may change what these paths lead to."""
    entries: dict[str, set[str]] = {}
    for path in paths:
        for step in _watched_steps(path):
            entries.setdefault(step.directory, set()).add(step.entry)
    watchable = set()
    for directory, names in entries.items():
        with contextlib.suppress(OSError):  # just gone, or not to be looked at: the one above tells when that changes
            status = Path(directory).stat()
            watchable.add(Directory(directory, (status.st_dev, status.st_ino), frozenset(names)))
    return frozenset(watchable)


def _watched_steps(path: str) -> Iterator[Step]:
    """Yield each step that another program may replace: every link, and the last two steps.

    The steps nearest to the file come first, in at most MAX_DIRECTORIES directories: each costs two threads.
    """
    seen: set[str] = set()
    for ahead, step in enumerate(reversed(list(steps(path)))):
        if step.is_link or ahead == 0 or (ahead == 1 and step.directory != "/"):
            seen.add(step.directory)
            if len(seen) > MAX_DIRECTORIES:
                return
            yield step


class _Handler(FileSystemEventHandler):
    """`ended` is True once the directory was removed. The kernel ends the watch then, and may give the inode to the
    next directory of that name."""

    def __init__(self, directory: Directory, changed: Callable[[], None]) -> None:
        super().__init__()
        self.ended = False
        self._directory = directory
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type == "deleted" and os.fsdecode(event.src_path) == self._directory.path:
            self.ended = True
        if event.event_type not in _READS and self._concerns(event):
            self._changed()

    def _concerns(self, event: FileSystemEvent) -> bool:
        paths = {os.fsdecode(path) for path in (event.src_path, getattr(event, "dest_path", "")) if path}
        # inotify reports a change in a directory as a modification of the directory too
        gone = event.event_type != "modified" and self._directory.path in paths
        return gone or any(self._directory.matters(path) for path in paths)
