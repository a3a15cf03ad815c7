"""Which model is loaded, where and how it is held, and whether that fits: decided before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.filesize import decimal

from cag_daemon.config import Settings
from cag_daemon.engine import folder as folders
from cag_daemon.engine.devices import OFFLOAD, choose_devices, choose_dtype, default_chunk
from cag_daemon.engine.folder import ModelFolder, Weight
from cag_daemon.engine.installed import embedded, installed, resolve_folder
from cag_daemon.engine.memory import (
    CHARACTERS_A_TOKEN,
    KEPT_FREE,
    MOST_CHARACTERS_A_TOKEN,
    QUESTION_ROOM,
    Needs,
    about_tokens,
    estimate,
    free,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Wanted:
    """What is to be loaded, and for what.

    Attributes:
        model: ``auto``, or see `installed.resolve_folder`.
        device: see `devices.choose_devices`.
        dtype: see `devices.choose_dtype`; ``auto``: first what the model's own ``cag.json`` says.
        quantization: ``none``, ``int8`` or ``int4``.
        threads: of the CPU; None: torch's choice.
        characters: of the longest document it will be asked about; 0: not known yet.
        max_new_tokens: of an answer.
        memory_bytes: that caches may take; None: half of what is free after loading.
        cache_directory: where caches and quantised weights are kept; None: nowhere.
        cache_bytes: that caches may take there; None: see `SegmentStore`.
    """

    model: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    threads: int | None = None
    characters: int = 0
    max_new_tokens: int = 256
    memory_bytes: int | None = None
    cache_directory: str | None = None
    cache_bytes: int | None = None

    @classmethod
    def by(cls, settings: Settings, characters: int = 0) -> Wanted:
        """What the settings want, for a document of so many characters."""
        same = ("model", "device", "dtype", "quantization", "threads", "max_new_tokens", "memory_bytes", "cache_bytes")
        values = {name: getattr(settings, name) for name in same}
        return cls(**values, characters=characters, cache_directory=settings.kept_in)


@dataclass(frozen=True)
class Plan:
    """Which model will be held where and how, and what that takes.

    Attributes:
        folder: of the model.
        devices: in the order in which they are filled.
        dtype: of the weights, or of what they are multiplied with.
        quantization: ``none``, ``int8`` or ``int4``.
        weights: see `folder.weights_of`.
        needs: in bytes.
        room: bytes that are free on the devices.
        document_tokens: that the needs are estimated for.
    """

    folder: ModelFolder
    devices: Sequence[torch.device]
    dtype: torch.dtype
    quantization: str
    weights: dict[str, Weight]
    needs: Needs
    room: int
    document_tokens: int
    chunk: int
    memory_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether it can be loaded and caches may take what the document needs: by default half of what is left."""
        return self.needs.cache <= (self._left / 2 if self.memory_bytes is None else min(self._left, self.memory_bytes))

    @property
    def hopeless(self) -> bool:
        """Whether loading it would be for nothing, however few tokens the document's characters turn out to be."""
        return self.needs.cache * CHARACTERS_A_TOKEN / MOST_CHARACTERS_A_TOKEN > self._left

    @property
    def _left(self) -> float:
        return self.room - KEPT_FREE - self.needs.weights - self.needs.working

    @property
    def where(self) -> str:
        """The devices' names, as the status has them."""
        return "+".join(str(device) for device in self.devices)

    def numbers(self) -> str:
        """What it needs and what there is, in a sentence's first half."""
        needs = self.needs
        document = f"{decimal(needs.cache)} for a document of about {self.document_tokens:,} tokens"
        return (
            f"{self.folder.name} needs {decimal(needs.total)} ({decimal(needs.weights)} of weights, {document}, "
            f"{decimal(needs.working)} to work with), and {decimal(self.room)} are free on {self.where}"
        )


def plan_for(wanted: Wanted) -> Plan:
    """Which model would be loaded, and what it would need; it may not fit.

    Raises:
        ModelNotFound, ModelFailed: see `installed.resolve_folder`, `folder.check_folder`, `devices.choose_devices`.
    """
    devices = choose_devices(wanted.device)
    if wanted.model != "auto":
        folder = resolve_folder(wanted.model)
        folders.check_folder(folder)
        return _plan(folder, wanted, devices)
    too_large = None
    for folder in installed():
        plan = _plan(folder, wanted, devices)
        if plan.fits:
            why = f"the largest on this machine that fits: {decimal(plan.needs.total)} of {decimal(plan.room)} free"
            return replace(plan, folder=replace(folder, why=why))
        too_large = plan
    why = "a stand-in that ships with cag-daemon; for a real Mistral run `cag-daemon pull`"
    if too_large is not None:
        why = f"a stand-in: {too_large.numbers()}; {what_would_fit(wanted, too_large)}"
    return _plan(embedded(why), wanted, devices)


def _plan(folder: ModelFolder, wanted: Wanted, devices: Sequence[torch.device]) -> Plan:
    spec = folders.spec_of(folder.path)
    dtype = choose_dtype(spec.get("dtype", "auto") if wanted.dtype == "auto" else wanted.dtype, devices[0])
    quantization = "none" if spec.get("standIn") and wanted.model == "auto" else wanted.quantization
    weights, chunk = folders.weights_of(folder), default_chunk(devices[0], dtype)
    document = about_tokens(wanted.characters)
    needs = estimate(
        weights,
        itemsize=dtype.itemsize,
        tokens=min(folders.context_of(folder), document + QUESTION_ROOM + wanted.max_new_tokens),
        chunk=chunk,
        quantized=_quantized_bytes(quantization),
    )
    memory = wanted.memory_bytes
    first = free(devices[0])
    whole = Plan(folder, devices[:1], dtype, quantization, weights, needs, first, document, chunk, memory)
    # Quantised weights are not spread: what is so large that it would have to be is for other machines than these.
    if whole.fits or len(devices) == 1 or quantization != "none":
        return whole
    return replace(whole, devices=devices, room=sum(free(device) for device in devices))


def _quantized_bytes(quantization: str) -> Callable[[str, tuple[int, ...]], int | None]:
    """Bytes of a weight, by its name and shape, where it will be held quantised; else None."""

    def size(name: str, shape: tuple[int, ...]) -> int | None:
        from cag_daemon.engine.quantize import LM_HEAD, quantized_bytes

        if quantization == "none" or len(shape) != 2 or not name.endswith(("_proj.weight", "lm_head.weight")):
            return None
        return quantized_bytes(*shape, LM_HEAD if name == "lm_head.weight" else quantization)

    return size


def what_would_fit(wanted: Wanted, plan: Plan) -> str:
    """Settings with which this model could be used here, or what else to do."""
    found = []
    for changes in (
        {"dtype": "bfloat16"} if wanted.dtype == "float32" else {},
        {"quantization": "int8"} if plan.quantization == "none" else {},
        {"quantization": "int4"} if plan.quantization != "int4" else {},
        {"device": OFFLOAD} if plan.devices[0].type == "cuda" and wanted.device != OFFLOAD else {},
    ):
        if not changes:
            continue
        other = _plan(plan.folder, replace(wanted, **changes), choose_devices(changes.get("device", wanted.device)))  # type: ignore[arg-type]
        if other.fits:
            (key, value), size = next(iter(changes.items())), decimal(other.needs.total)
            found.append(f"set {key} to {value} ({size})")
    if not found and (tokens := _tokens_that_fit(wanted, plan)) > 0:
        found.append(f"shorten the document to about {tokens:,} tokens")
    return ", or ".join(
        [*found[:2], "choose a smaller model" if found else "choose a smaller model, or close programs"]
    )


def _tokens_that_fit(wanted: Wanted, plan: Plan) -> int:
    """How long a document could be, in tokens, beside these weights."""
    for tenths in range(9, 0, -1):
        characters = wanted.characters * tenths // 10
        if _plan(plan.folder, replace(wanted, characters=characters), plan.devices).fits:
            return about_tokens(characters)
    return 0
