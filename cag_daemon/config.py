"""Settings: one schema for command-line flags, environment variables and the editor's section ``cag``.

A value is taken from the flags, else from the environment, else from the editor, else the default. A value that is
not accepted is a `Problem` in words, and the default is used: a typing error in a settings file stops no daemon.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import platformdirs
import psutil
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

DEFAULT_SYSTEM_PROMPT = (
    "Answer the question briefly, from the document below and nothing else. "
    "Use the document's own words where you can. If the answer is not in the document, say: The document does not say."
)


def physical_cores_less_one() -> int:
    """The default of ``threads``: the editor keeps a core to itself."""
    return max(1, (psutil.cpu_count(logical=False) or os.cpu_count() or 2) - 1)


Text = Annotated[str, StringConstraints(min_length=1)]


class Settings(BaseModel):
    """What can be set. Field descriptions are what the command line's help and the README's table say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: Text = Field("document.txt", description="one text file, relative to the workspace folder, or absolute")
    system_prompt: str | None = Field(
        None, description="comes before the document; unset: the model's own, or the default"
    )
    max_new_tokens: int = Field(256, ge=1, le=4096, description="upper bound of an answer, in tokens")
    refresh: Literal["auto", "save", "ask"] = Field("auto", description="when a changed text is read")
    model: Text = Field("auto", description="a hub id, a folder, embedded, or auto")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?|cuda\+cpu)$",
        description="auto, cpu, cuda, cuda:N, cuda+cpu or mps",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="the type of the weights")
    quantization: Literal["none", "int8", "int4"] = Field(
        "none", description="of the weights: none, int8 or int4; never chosen silently"
    )
    threads: int = Field(default_factory=physical_cores_less_one, ge=1, le=1024, description="of the worker")
    idle_unload_minutes: float = Field(
        30, ge=0, allow_inf_nan=False, description="the model leaves memory after this; 0: never"
    )
    linger_seconds: float = Field(
        60, ge=0, allow_inf_nan=False, description="the shared daemon ends this long after its last editor"
    )
    cache_directory: Text = Field(
        default_factory=lambda: platformdirs.user_cache_dir("cag-daemon"),
        description="KV caches and quantised weights on disk",
    )
    cache_max_gigabytes: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="KV caches on disk at most; 0: nothing is written; unset: 20, or a tenth of the free disk",
    )
    memory_max_gigabytes: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="KV caches in memory at most; unset: half of what is free"
    )

    @property
    def memory_bytes(self) -> int | None:
        """``memory_max_gigabytes`` in bytes."""
        return None if self.memory_max_gigabytes is None else int(self.memory_max_gigabytes * 1e9)

    @property
    def cache_bytes(self) -> int | None:
        """``cache_max_gigabytes`` in bytes."""
        return None if self.cache_max_gigabytes is None else int(self.cache_max_gigabytes * 1e9)

    @property
    def kept_in(self) -> str | None:
        """The folder in which caches and quantised weights are kept; None: nothing is written."""
        return None if self.cache_max_gigabytes == 0 else self.cache_directory


# What is a setting's name in each of the three places.
KEYS: dict[str, str] = {name: to_camel(name) for name in Settings.model_fields}
ENVIRONMENT: dict[str, str] = {name: f"CAG_{name.upper()}" for name in Settings.model_fields}
FLAGS: dict[str, str] = {name: "--" + name.replace("_", "-") for name in Settings.model_fields}

# A change of one of these needs another worker, or another reading.
WORKER_FIELDS = frozenset({"model", "device", "dtype", "quantization", "threads"})


@dataclass(frozen=True)
class Problem:
    """A value that was not accepted: what stood where and what is accepted, in words; and what is used instead."""

    message: str
    instead: str

    def __str__(self) -> str:
        return f"{self.message}; using {self.instead}."


def resolve(
    flags: Mapping[str, Any], environment: Mapping[str, str], editor: Mapping[str, Any]
) -> tuple[Settings, list[Problem]]:
    """The settings in force, and what was wrong with those given.

    Args:
        flags: by field name (``max_new_tokens``); None is "not given". Values may be strings.
        environment: the process's environment.
        editor: the editor's section, by camelCase key; unknown keys are ignored; null is "not given".
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in Settings.model_fields:
        if flags.get(name) is not None:
            label, value, strict = FLAGS[name], flags[name], False
        elif environment.get(ENVIRONMENT[name]):
            label, value, strict = ENVIRONMENT[name], environment[ENVIRONMENT[name]], False
        elif editor.get(KEYS[name]) is not None:
            label, value, strict = f"cag.{KEYS[name]}", editor[KEYS[name]], True
        else:
            continue
        try:
            accepted = getattr(Settings.model_validate({name: value}, strict=strict), name)
        except ValidationError as error:
            problems.append(_problem(name, label, value, _accepted(name, error)))
            continue
        values[name] = accepted
    return Settings(**values), problems


def _problem(name: str, label: str, value: Any, accepted: str) -> Problem:
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "…"
    default = getattr(Settings(), name)
    return Problem(f"{label}: {shown} is not accepted ({accepted})", "the default" if default is None else str(default))


def _accepted(name: str, error: ValidationError) -> str:
    words = error.errors(include_url=False)[0]["msg"]
    words = words[0].lower() + words[1:]
    return f"{Settings.model_fields[name].description}" if "pattern" in words else words
