"""Where the front that all editors share is, how one becomes it, and how one talks to it. Standard library only.

There is a socket in the user's runtime folder, named after this very installation: another version, or another state of
the code, has a front of its own, and both may live side by side. Who holds the lock beside the socket is the front. A
forwarder is to take a dozen megabytes: what is imported here is small, and what is not is imported late.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import sys
import time
import zlib

from cag_daemon import __version__

try:
    import fcntl
except ImportError:  # Windows: there is no shared mode there
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, BinaryIO

LONGEST = 100  # bytes of a socket's path: 104 is where some systems end
START_SECONDS = 30.0
GREETING_SECONDS = 10.0
POLL_SECONDS = 0.02
PACKAGE = os.path.dirname(os.path.abspath(__file__))
STARTS = 2  # of a front that ends at once, before that is an error
# A front is no child of who starts it: an editor that kills its server with all its children shall not end the others'.
DETACHED = '"$@" </dev/null >&2 & echo $!'
FRONT = "import sys; sys.path[0] = sys.argv.pop(1); from cag_daemon.front.host import main; main()"
# What of an editor's environment counts: what our settings are, where models are, and what they can run on.
TOLD = ("HOME", "PATH", "TMPDIR", "LANG", "PYTHONPATH")
TOLD_PREFIXES = (
    *("CAG_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "CUDA_", "HIP_", "ROCR_", "NVIDIA_"),
    *("PYTORCH_", "TORCH_", "OMP_", "MKL_", "XDG_"),
)


class RuntimeUnusable(Exception):
    """There can be no shared daemon here; the message says why, and what to do."""


# ── where ───────────────────────────────────────────────────────────────────────────────────


def shareable() -> bool:
    """Whether this system has what shared mode needs."""
    return fcntl is not None and hasattr(socket, "AF_UNIX")


def folder_path() -> Path:
    """The runtime folder, whether it is there or not."""
    from pathlib import Path

    return Path(_folders()[0])


def runtime_folder() -> Path:
    """The runtime folder, made if it was not there, for nobody but this user.

    Raises:
        RuntimeUnusable: it is somebody else's, or can't be made.
    """
    from pathlib import Path

    return Path(_runtime_folder())


def socket_path() -> Path:
    """The socket of this installation's front.

    Raises:
        RuntimeUnusable: see `runtime_folder`.
    """
    from pathlib import Path

    return Path(_socket_path())


def log_file() -> str:
    """Where the front, and what it is started with, writes what happened."""
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Logs/cag-daemon/daemon.log")
    state = os.environ.get("XDG_STATE_HOME", "").strip() or os.path.expanduser("~/.local/state")
    return os.path.join(state, "cag-daemon", "log", "daemon.log")


def _folders() -> list[str]:
    """Where sockets may be, the first choice first; their names may not be long."""
    if not hasattr(os, "getuid"):  # Windows: there are no sockets there, and the folder is the user's own anyway
        return [os.path.join(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~"), "cag-daemon", "run")]
    uid = os.getuid()
    temporary = [each for each in (os.environ.get("TMPDIR", ""), "/tmp") if os.path.isabs(each)]
    wanted = [os.path.join(each, f"cag-daemon-{uid}") for each in temporary]
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and not _is_anothers(given, uid):
        wanted.insert(0, os.path.join(given, "cag-daemon"))
    name = len("/0123456789ab.sock.new")
    return [each for each in wanted if len(os.fsencode(each)) + name < LONGEST] or wanted[-1:]


def _is_anothers(path: str, uid: int) -> bool:
    """`su` leaves the variable of the user before: what root made in there, that user could not use."""
    try:
        return os.stat(path).st_uid != uid
    except OSError:
        return False


def _runtime_folder() -> str:
    problem = ""
    for path in _folders():
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            found = os.lstat(path)
        except OSError as error:
            problem = problem or f"The folder {path} cannot be made: {error.strerror}; free it, or set XDG_RUNTIME_DIR."
            continue
        if not stat.S_ISDIR(found.st_mode):
            problem = f"{path} is no folder; remove it, or set XDG_RUNTIME_DIR to a folder of yours."
        elif not hasattr(os, "getuid"):
            return path
        elif found.st_uid != os.getuid():
            problem = f"The folder {path} is another user's; set XDG_RUNTIME_DIR to a folder of yours."
        elif found.st_mode & 0o077:
            problem = f"Others may use the folder {path}: run chmod 700 on it, or set XDG_RUNTIME_DIR."
        else:
            return path
        break  # not somewhere else in silence: it would be where an attacker wants it
    raise RuntimeUnusable(problem)


def _socket_path() -> str:
    return os.path.join(_runtime_folder(), f"{_installation()}.sock")


def _installation() -> str:
    """A name for this state of the code, run by this interpreter."""
    newest = 0
    for folder, _, names in os.walk(PACKAGE):
        for name in names:
            if name.endswith(".py"):
                with contextlib.suppress(OSError):  # an update is under way
                    newest = max(newest, os.stat(os.path.join(folder, name)).st_mtime_ns)
    told = "\0".join((__version__, PACKAGE, str(newest), sys.executable))
    code = os.fsencode(told)
    return f"{zlib.crc32(code):08x}{zlib.crc32(code[::-1]) & 0xFFFF:04x}"


def is_told(name: str) -> bool:
    """Whether a variable of the environment is among those that a front is told."""
    return name in TOLD or name.startswith(TOLD_PREFIXES)


# ── talking to the front ────────────────────────────────────────────────────────────────────


def hello(purpose: str, arguments: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """What one says first: what one wants, and how this process was started."""
    told = {name: value for name, value in os.environ.items() if is_told(name)}
    try:
        folder = os.getcwd()
    except OSError:  # it was deleted
        folder = "/"
    return {
        "purpose": purpose,
        "version": __version__,
        "arguments": list(arguments),
        "environment": told,
        "folder": folder,
    }


def connect(timeout: float = 2.0) -> socket.socket | None:
    """A connection to the front of this installation; None: nobody listens.

    Raises:
        RuntimeUnusable: who listens is another user, or takes nobody any more.
    """
    path = _socket_path()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    late = time.monotonic() + timeout
    while True:
        try:
            connection.connect(path)
            break
        except (BlockingIOError, TimeoutError):  # it is there, and its queue is full
            if time.monotonic() > late:
                connection.close()
                raise RuntimeUnusable(
                    f"The shared daemon at {path} takes no connection; see {log_file()}, or end its process."
                ) from None
            time.sleep(POLL_SECONDS)
        except OSError:
            connection.close()
            return None
    if (uid := peer(connection)) not in (None, os.getuid()):
        connection.close()
        raise RuntimeUnusable(f"What listens at {path} belongs to another user (id {uid}); set XDG_RUNTIME_DIR.")
    return connection


def peer(connection: socket.socket) -> int | None:
    """The user id of who is at the other end; None: this system does not say."""
    if hasattr(socket, "SO_PEERCRED"):
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[1])
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):  # struct xucred, by LOCAL_PEERCRED of SOL_LOCAL
            return int(struct.unpack("2I", connection.getsockopt(0, 1, 8))[1])
    return None


def greet(connection: socket.socket, words: dict[str, Any], seconds: float = GREETING_SECONDS) -> dict[str, Any] | None:
    """Say hello; the front's answer, or None if it had none. The connection stays open."""
    try:
        connection.settimeout(seconds)
        connection.sendall(json.dumps(words).encode("ascii") + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            # One byte at a time: what comes behind the line is not ours.
            if not (piece := connection.recv(1)):
                return None
            answer += piece
        connection.settimeout(None)
        told = json.loads(answer)
        return told if isinstance(told, dict) else None
    except (OSError, ValueError):
        return None


def join(words: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
    """A connection to the front, which is started if there is none, and what it answered.

    Raises:
        RuntimeUnusable: there is none, and none can be started.
    """
    late = time.monotonic() + START_SECONDS
    while True:
        connection = connect() or _start(late)
        answer = greet(connection, words)
        if answer is not None:
            return connection, answer
        connection.close()  # it ends just now, and makes way for another
        if time.monotonic() > late:
            raise RuntimeUnusable(f"The shared daemon does not answer; see {log_file()}, or run cag-daemon stop.")
        time.sleep(POLL_SECONDS)


def _start(late: float) -> socket.socket:
    """Start a front, unless somebody else does so at this moment, and connect to it."""
    path = _socket_path()
    turnstile, child, starts, size = None, 0, 0, 0
    try:
        while True:
            if (connection := connect()) is not None:
                return connection
            if turnstile is None:
                turnstile = _locked(path + ".start")
                if turnstile is not None:
                    continue  # who held it before may have done the work
            elif child and birth(child) is not None:
                pass  # it is on its way
            elif not _is_held(path + ".lock"):  # otherwise one is about to listen, or to end
                if starts == STARTS:
                    what = _last_line(size) or "it wrote nothing"
                    raise RuntimeUnusable(
                        f"The shared daemon ended as soon as it was started: {what}; see {log_file()}."
                    )
                size, child = _spawn()
                starts += 1
            if time.monotonic() > late:
                raise RuntimeUnusable(f"The shared daemon did not come within {START_SECONDS:.0f} s; see {log_file()}.")
            time.sleep(POLL_SECONDS)
    finally:
        if turnstile is not None:
            _remove(turnstile, path + ".start")


def _spawn() -> tuple[int, int]:
    """Start a front; how long the log was before, and the number of the process."""
    import subprocess

    log = _open_log()
    try:
        size = os.fstat(log).st_size
        told = subprocess.run(
            ["/bin/sh", "-c", DETACHED, "sh", sys.executable, "-c", FRONT, os.path.dirname(PACKAGE)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            start_new_session=True,
            check=True,
        )
        return size, int(told.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise RuntimeUnusable(f"No process can be started for the shared daemon: {error}; see {log_file()}.") from None
    finally:
        os.close(log)


def _open_log() -> int:
    path = log_file()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _last_line(since: int) -> str:
    with contextlib.suppress(OSError), open(log_file(), "rb") as file:
        file.seek(since)
        lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _opened(path: str) -> BinaryIO:
    """A file of ours for a lock."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")
    except OSError as error:
        raise RuntimeUnusable(f"{path} cannot be opened: {error.strerror}; set XDG_RUNTIME_DIR.") from None


def _locked(path: str) -> BinaryIO | None:
    """The file, made if need be, and locked until it is closed; None: somebody else has it."""
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        if _is_still(file, path):
            return file
        file.close()  # whoever held it before has removed it just now


def _remove(lock: BinaryIO, path: str) -> None:
    """Leave a lock, and no file behind."""
    if _is_still(lock, path):
        with contextlib.suppress(OSError):
            os.unlink(path)
    lock.close()


def _is_held(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def birth(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None: it is not alive."""
    if pid <= 0:
        return None
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        told = file.read().rpartition(b")")[2].split()
        return None if told[0] in (b"Z", b"X") else told[19].decode("ascii")
    try:  # no /proc here, or it hides others' processes
        os.kill(pid, 0)
    except PermissionError:
        return "alive"
    except (OSError, OverflowError):
        return None
    return "alive"


# ── being the front ─────────────────────────────────────────────────────────────────────────


class Claim:
    """The right to be the front, held for life; and its socket.

    Attributes:
        listener: the socket that listens.
        path: its name.
    """

    def __init__(self, path: str, lock: BinaryIO) -> None:
        from pathlib import Path

        self.path = Path(path)
        self._lock = lock
        self._lock_path = path + ".lock"
        self.listener = self._listen()

    @classmethod
    def take(cls) -> Claim | None:
        """Become the front; None: another one lives.

        Raises:
            RuntimeUnusable: see `runtime_folder`.
            OSError: the socket can't be made.
        """
        path = _socket_path()
        lock = _locked(path + ".lock")
        if lock is None:
            return None
        try:
            if (other := connect()) is None:
                return cls(path, lock)
            other.close()  # somebody has deleted the lock of one that lives
        except BaseException:
            _remove(lock, path + ".lock")
            raise
        _remove(lock, path + ".lock")
        return None

    def holds(self) -> bool:
        """Whether the name still is our socket's."""
        return self._named(self._inode) and _is_still(self._lock, self._lock_path)

    def renew(self) -> bool:
        """Make a socket that was deleted anew; False: somebody else is the front by now.

        `listener` is another one then; the caller closes the one before.

        Raises:
            OSError: the socket can't be made.
        """
        try:
            if str(self.path.parent) != _runtime_folder():
                return False
            if not _is_still(self._lock, self._lock_path):
                lock = _locked(self._lock_path)
                if lock is None:
                    return False
                self._lock.close()
                self._lock = lock
                if not self._named(self._inode) and (other := connect()) is not None:
                    other.close()
                    return False
        except RuntimeUnusable:
            return False
        self.listener = self._listen()
        return True

    def release(self) -> None:
        """Stop listening, and leave nothing behind."""
        if not self._lock.closed:
            if self._named(self._inode):
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            _remove(self._lock, self._lock_path)
        turnstile = f"{self.path}.start"  # of a forwarder that was killed on its way
        with contextlib.suppress(RuntimeUnusable):
            if os.path.exists(turnstile) and (lock := _locked(turnstile)) is not None:
                _remove(lock, turnstile)

    def _listen(self) -> socket.socket:
        """A socket under its name: nobody ever finds it there before it listens."""
        new = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o077)
        try:
            listener.bind(new)
            listener.listen(64)
            os.rename(new, self.path)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        found = os.stat(self.path)
        self._inode = (found.st_dev, found.st_ino)
        return listener

    def _named(self, inode: tuple[int, int]) -> bool:
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == inode


def sweep(path: str) -> None:
    """Remove what a front that died has left: nobody listens at that socket, and nobody holds its lock."""
    lock = _locked(f"{path}.lock")
    if lock is None:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        if connection.connect_ex(path) in (errno.ECONNREFUSED, errno.ENOENT):
            for each in (path, f"{path}.new", f"{path}.start"):
                with contextlib.suppress(OSError):
                    os.unlink(each)
    _remove(lock, f"{path}.lock")


def others() -> list[Path]:
    """The sockets of other installations' fronts."""
    from pathlib import Path

    mine = _socket_path()
    return [path for path in sorted(Path(mine).parent.glob("*.sock")) if str(path) != mine]


def _is_still(file: BinaryIO, path: str) -> bool:
    """Whether that name still is the file that is open."""
    try:
        named, opened = os.stat(path), os.fstat(file.fileno())
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
