"""A model's files from the hub into its local cache. The only room that uses the network.

What is fetched is what is loaded later: the configuration, the tokenizer and ``model*.safetensors``; never the same
weights in another format. huggingface_hub does the work: requests, logins, errors, the layout of its cache, which
other tools share. Its own downloads are not gone on with when interrupted (seen in 2.4: a file of a new name each
time, removed at the end), so the partial file is kept here, and its `http_get` is asked to go on behind it. The
branch is pointed at the new files last: an interrupted download leaves whatever was there before in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from cag_daemon.brought import brought_of
from cag_daemon.errors import ModelFailed, ModelNotFound
from cag_daemon.refusals import Circumstances, disk_full

FETCHED = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|chat_template\.(?:jinja|json)|tokenizer\.model(?:\.v\w+)?|tekken\.json"
    r"|model\.safetensors|model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors"
)
WEIGHTS = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")
TOKENIZER = re.compile(r"tokenizer\.json|tekken\.json|tokenizer\.model(?:\.v\w+)?")
NAME = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")  # of a revision or a content: they become names of files here
# What says whether a model is one of ours; looked at before the gigabytes.
FIRST = ("config.json", "tokenizer_config.json", "model.safetensors.index.json")
PAGE_SECONDS = 20  # until the hub has answered what a model consists of
SPARE = 200_000_000  # bytes that stay free on the disk
BLOCK = 2**20

# Told what is being done, and how many bytes of it are done.
Show = Callable[[str, int], None]


@dataclass(frozen=True)
class File:
    """A file of a model on the hub.

    Attributes:
        name: in the repository.
        size: in bytes.
        key: what the cache calls its content: its SHA-256, for a small file its git name.
        large: whether the key is a SHA-256.
    """

    name: str
    size: int
    key: str
    large: bool

    def digest(self) -> Any:
        """What the key is computed with."""
        return hashlib.sha256() if self.large else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class Download:
    """One model on its way into the cache.

    Args:
        model: its hub id.
        note: called with what the user should know meanwhile.

    Attributes:
        revision: the commit that is fetched.
        files: what it consists of.
        storage, snapshot: its folders in the hub cache: of everything, and of this revision.
    """

    def __init__(self, model: str, note: Callable[[str], object]) -> None:
        # Before its first import; its own words and bars would stand in the midst of ours.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_SYMLINKS_WARNING", "1")
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import logging

        logging.set_verbosity(logging.CRITICAL)
        # Its ten megabytes at a time would be ten seconds without a sign of life on a slow line, and lost when killed.
        constants.DOWNLOAD_CHUNK_SIZE = BLOCK
        self.model, self._note = model, note
        self._endpoint = constants.ENDPOINT
        self._url: Callable[[str], str] = lambda name: hf_hub_url(
            model, name, revision=self.revision, endpoint=self._endpoint
        )
        self.page = f"{self._endpoint}/{model}"
        folder: str = repo_folder_name(repo_id=model, repo_type="model")
        self.storage: Path = Path(constants.HF_HUB_CACHE).expanduser() / folder
        self._brought = brought_of(self.storage.parent, folder, model)
        self.revision = ""
        self.files: list[File] = []

    @property
    def snapshot(self) -> Path:
        """Where this revision of the model is."""
        return self.storage / "snapshots" / self.revision

    @property
    def missing(self) -> int:
        """Bytes that are not here."""
        return sum(each.size - self._have(each) for each in self.files)

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(each.size for each in self.files)

    def look(self) -> None:
        """See what the model consists of, and whether it is one of ours: by a few small files of it.

        Raises:
            ModelFailed, ModelNotFound: it is not.
        """
        self._list()
        for file in (each for each in self.files if each.name in FIRST):
            self._fetch(file, lambda what, have: None)
        self._check(whole=False)
        self._select()
        self._check_disk(self.missing)

    def fetch(self, show: Show) -> None:
        """Fetch what is missing, check all of it, and point the branch at it."""
        self._fetch_all(show)
        self._check(whole=True)
        self._point_branch()

    def _fetch_all(self, show: Show) -> None:
        done = 0
        for number, file in enumerate(self.files, 1):
            place = f"{number} of {len(self.files)}"

            def part(what: str, have: int, place: str = place, done: int = done) -> None:
                show(f"{what} {place}", done + have)

            self._fetch(file, part)
            done += file.size

    def _list(self) -> None:
        from huggingface_hub import HfApi

        info = HfApi(endpoint=self._endpoint).model_info(self.model, files_metadata=True, timeout=PAGE_SECONDS)
        if not NAME.fullmatch(info.sha):
            raise ValueError("a revision that is none")
        self.revision = info.sha
        names = {each.rfilename for each in info.siblings}
        self._refuse_others(names)
        for each in sorted(info.siblings, key=lambda each: (each.rfilename not in FIRST, each.rfilename)):
            if FETCHED.fullmatch(each.rfilename):
                key = each.lfs.sha256 if each.lfs else each.blob_id
                if not NAME.fullmatch(key):
                    raise ValueError(f"{each.rfilename} has no checksum")
                self.files.append(File(each.rfilename, each.size, key, each.lfs is not None))

    def _refuse_others(self, names: set[str]) -> None:
        """Say before anything is fetched what makes a model none for us, where the names of its files tell."""
        where = f"{self.model} ({self.page})"
        endings = {name.rpartition(".")[2] for name in names}
        if "adapter_config.json" in names:
            raise ModelFailed(f"{where} is an adapter (LoRA), not a whole model: fetch a model it is merged into.")
        weights = any(WEIGHTS.fullmatch(name) for name in names)
        if not weights and "gguf" in endings:
            raise ModelFailed(
                f"{where} has GGUF files only, cag-daemon reads safetensors: fetch the original model, "
                "and set quantization to int8 or int4 to save memory."
            )
        if not weights and any(name.startswith("consolidated") for name in names):
            raise ModelFailed(f"{where} is in Mistral's own format only: fetch a model in the format of transformers.")
        if not weights and endings & {"bin", "pt", "pth"}:
            raise ModelFailed(f"{where} has pickled weights only, cag-daemon reads safetensors: choose another model.")
        if not weights or "config.json" not in names:
            lacks = "config.json" if weights else "model.safetensors"
            raise ModelFailed(f"{where} has no {lacks}, so it is no model that could be loaded: choose another.")
        if not any(TOKENIZER.fullmatch(name) for name in names):
            raise ModelFailed(f"{where} has no tokenizer, so it could not be asked anything: choose another model.")

    def _select(self) -> None:
        """Of the weights only those that are loaded: the one file, or what the index names."""
        one = any(each.name == "model.safetensors" for each in self.files)
        index = self.snapshot / "model.safetensors.index.json"
        named = set() if one or not index.exists() else set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(named - {each.name for each in self.files})
        if missing or not (one or named):
            lacks = missing[0] if missing else index.name
            raise ModelFailed(f"{self.model} ({self.page}) has no {lacks} on the hub: choose another model.")
        kept = {"model.safetensors"} if one else named | {index.name}
        self.files = [each for each in self.files if each.name in kept or not each.name.startswith("model")]

    def _check(self, *, whole: bool) -> None:
        """As it is checked before it is loaded; at first it has no weights, which is not held against it."""
        from cag_daemon.engine.folder import ModelFolder, check_folder

        try:
            check_folder(ModelFolder(self.snapshot, self.model, "just fetched"))
        except ModelNotFound:
            if whole:
                raise

    def _check_disk(self, missing: int) -> None:
        place = next(each for each in (self.storage, *self.storage.parents) if each.exists())
        free = shutil.disk_usage(place).free
        if missing + (SPARE if missing else 0) > free:
            raise ModelFailed(disk_full(self.model, missing, free, self.storage.parent))

    def _blob(self, file: File) -> Path:
        return self.storage / "blobs" / file.key

    def _partial(self, file: File) -> Path:
        return self.storage / "blobs" / f"{file.key}.incomplete"

    def _have(self, file: File) -> int:
        """Bytes of a file that are here."""
        path = self._here(file) or self._partial(file)
        return min(path.stat().st_size, file.size) if path.exists() else 0

    def _here(self, file: File) -> Path | None:
        """Where the content of a file is; where there are no symbolic links, the snapshot itself holds it."""
        return next((path for path in (self._blob(file), self.snapshot / file.name) if path.exists()), None)

    def _fetch(self, file: File, show: Show) -> None:
        """Fetch what is missing of a file, check the whole of it, and give it its name in the snapshot."""
        paths = self._blob(file), self._partial(file), self.snapshot / file.name
        with self._brought.fetching(self.revision, *paths):
            self._fetch_noted(file, show)

    def _fetch_noted(self, file: File, show: Show) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        blob, partial = self._blob(file), self._partial(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        here = self._here(file)
        if here is not None and not _is_whole(here, file, show):
            self._note(f"{file.name} was damaged: it is fetched again.")
            here.unlink()
            here = None
        if here is None:
            if partial.exists() and partial.stat().st_size > file.size:
                partial.unlink()
            with _Counted(partial, show) as stream:
                http_get(
                    self._url(file.name),
                    stream,
                    resume_size=stream.tell(),
                    headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                    expected_size=file.size,
                )
            if not _is_whole(partial, file, show):
                partial.unlink()
                raise ModelFailed(
                    f"{file.name} of {self.model} arrived damaged (not the content that {self.page} names), "
                    "and was removed: run the command again to fetch it anew."
                )
            partial.replace(blob)
        # The content is there, so this only gives it its name, in the way that this file system allows.
        hf_hub_download(self.model, file.name, revision=self.revision, endpoint=self._endpoint)
        if blob.exists() and not (self.snapshot / file.name).is_symlink():
            blob.unlink()  # it was copied, and nobody wants gigabytes twice

    def _point_branch(self) -> None:
        # Another tool's list of all files of this revision: with it, a snapshot without those that are left out here
        # counts as incomplete. It is only a cache.
        (self.storage / "trees" / f"{self.revision}.json").unlink(missing_ok=True)
        branch = self.storage / "refs" / "main"
        branch.parent.mkdir(parents=True, exist_ok=True)
        new = branch.with_name("main.new")
        new.write_text(self.revision, "utf-8")
        new.replace(branch)

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Nobody else fetches this model meanwhile, or a `ModelFailed` says so."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        lock = self.storage.parent / ".locks" / self.storage.name / "cag-daemon-pull.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.1))
            except Timeout:
                raise ModelFailed(f"{self.model} is being fetched by another cag-daemon pull: wait for that.") from None
            yield

    def so_far(self) -> str:
        """How much is here, in words."""
        have = 0
        with contextlib.suppress(OSError):
            have = sum(self._have(each) for each in self.files)
        if not have:
            return "nothing has been fetched yet"
        return f"{decimal(have)} of {decimal(self.size)} are here, and the same command goes on from there"

    def circumstances(self) -> Circumstances:
        """What an error is explained by."""
        from huggingface_hub import get_token

        token = None
        with contextlib.suppress(Exception):  # what is wrong with a stored token must not hide what went wrong
            token = get_token()
        return Circumstances(
            model=self.model,
            endpoint=self._endpoint,
            so_far=self.so_far(),
            cache=self.storage.parent,
            logged_in=token is not None,
            is_a_hub=bool(self.revision),
        )


class _Counted:
    """A partial file that is gone on with, and tells after each piece how much of it there is.

    Unbuffered, so that a process that is killed has lost nothing.
    """

    def __init__(self, path: Path, show: Show) -> None:
        path.touch()
        # Not "append": from a server that cannot go on in the middle all comes again, from an earlier place.
        self._file, self._show = path.open("r+b", buffering=0), show
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._show("Fetching", self.tell())
        return len(data)

    def tell(self) -> int:
        """Where the next piece goes."""
        return self._file.tell()

    def seek(self, place: int) -> int:
        """Go there."""
        return self._file.seek(place)

    def truncate(self) -> int:
        """End the file here."""
        return self._file.truncate()


def _is_whole(path: Path, file: File, show: Show) -> bool:
    if path.stat().st_size != file.size:
        return False
    digest = file.digest()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            show("Checking", file.size)
    return bool(digest.hexdigest() == file.key)
