"""What the hub, the network or the disk answered instead of a model: one sentence each, with the next step.

Errors are told apart by the names of their types, through all that caused them: the hub's own are not imported where
nothing is fetched, and the library below, whose types say what the network did, has another name in each version.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from cag_daemon.errors import ModelFailed, ModelNotFound, RequestFailed

LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Circumstances:
    """In which something went wrong.

    Attributes:
        model, endpoint: what is fetched, and from where.
        so_far: what is here, in words.
        cache: the folder it goes into.
        logged_in: whether there is a token.
        is_a_hub: whether it has answered as a hub does.
    """

    model: str
    endpoint: str
    so_far: str
    cache: Path
    logged_in: bool
    is_a_hub: bool

    @property
    def page(self) -> str:
        """The model's page, where its terms are."""
        return f"{self.endpoint}/{self.model}"


def explained(error: Exception, here: Circumstances) -> RequestFailed:
    """What went wrong, whatever was raised."""
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    response = next((found for each in _causes(error) if (found := getattr(each, "response", None)) is not None), None)
    status = getattr(response, "status_code", None)
    said = str(getattr(response, "headers", {}).get("X-Error-Message") or "")
    if "GatedRepoError" in kinds:
        return _gated(said, here)
    if "DisabledRepoError" in kinds:
        return ModelFailed(f"{here.model} was disabled by its owner or the hub: see {here.page}, or choose another.")
    if "RepositoryNotFoundError" in kinds:
        private = "" if here.logged_in else f" (if it is a private one, {LOGIN})"
        return ModelNotFound(f"There is no model {here.model} on the hub, {here.page}: check its name{private}.")
    if "OfflineModeIsEnabled" in kinds:
        which = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        return ModelFailed(
            f"{here.model} can't be fetched while {which} is set: unset it for this command ({here.page})."
        )
    if status is not None:
        return _refused(status, said, here)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFailed(disk_full(here.model, None, shutil.disk_usage(here.cache).free, here.cache))
    first = _first(error)
    if "ProxyError" in kinds:
        return ModelFailed(f"The proxy refuses ({first}): check HTTPS_PROXY; {here.so_far} ({here.page}).")
    if "TransportError" in kinds:
        return ModelFailed(
            f"The hub at {here.endpoint} can't be reached ({first}): check the network, and HTTPS_PROXY if there is "
            f"a proxy; {here.so_far} ({here.page})."
        )
    if "Consistency check failed" in str(error):
        return ModelFailed(f"A file of {here.model} broke off: {here.so_far} ({here.page}).")
    if isinstance(error, OSError) and error.filename is not None:
        return ModelFailed(
            f"{error.filename} can't be used ({error.strerror}): change its permissions, or set HF_HOME to another "
            "folder."
        )
    if not here.is_a_hub or "FileMetadataError" in kinds:
        return ModelFailed(
            f"What answers at {here.endpoint} is not a model hub ({first}): check for a login page of this network, "
            f"the proxy, and HF_ENDPOINT ({here.page})."
        )
    return ModelFailed(
        f"{here.model} could not be fetched ({type(error).__name__}: {first}): {here.so_far} ({here.page})."
    )


def disk_full(model: str, missing: int | None, free: int, cache: Path) -> str:
    """The sentence for a disk without room: before anything is fetched, or (missing: None) when it has filled up."""
    needs = f"needs {decimal(missing)} more" if missing is not None else "does not fit"
    return (
        f"{model} {needs} on the disk of {cache}, and {decimal(free)} are free: "
        "make room, or set HF_HOME to a folder on another disk."
    )


def _gated(said: str, here: Circumstances) -> RequestFailed:
    if not here.logged_in:
        return ModelFailed(
            f"{here.model} is gated, and you are not logged in: accept its terms at {here.page}, {LOGIN}, "
            "then run the command again."
        )
    if "fine-grained" in said:
        return ModelFailed(
            f"Your token may not read gated models such as {here.model} ({here.page}): "
            f"allow that in its settings at {here.endpoint}/settings/tokens."
        )
    if "awaiting" in said:
        return ModelFailed(
            f"Your request to use {here.model} is not granted yet: see {here.page}, and try again later."
        )
    return ModelFailed(
        f"{here.model} is gated, and you have not accepted its terms: do so at {here.page}, as the user whose token "
        "is used here, then run the command again."
    )


def _refused(status: int, said: str, here: Circumstances) -> RequestFailed:
    if status == 401:
        which = "in HF_TOKEN" if os.environ.get("HF_TOKEN") else "stored by `hf auth login`"
        return ModelFailed(
            f"The hub does not accept the token {which}: make another at {here.endpoint}/settings/tokens, "
            f"then run the command again ({here.page})."
        )
    if status == 429:
        return ModelFailed(f"The hub wants fewer requests: wait a few minutes; {here.so_far} ({here.page}).")
    blame = "has trouble" if status >= 500 else "refuses"
    return ModelFailed(
        f"The hub {blame} (HTTP {status}{': ' + said if said else ''}): try again later, and check the proxy "
        f"if there is one; {here.so_far} ({here.page})."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _first(error: BaseException) -> str:
    """What all began with, in half a line."""
    cause = list(_causes(error))[-1]
    return (next(iter(str(cause).splitlines()), "") or type(cause).__name__)[:120]
