"""A Mistral from disk: which one, whether it is whole, where and how it is held. Never from the network.

A folder may hold a ``cag.json`` that says what its model was made for:
``{"name", "systemPrompt", "dtype", "standIn"}``, each of them optional.

torch and transformers are imported when a model is loaded, not before: `resolve_model` and `check_folder` are for
everybody.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cag_daemon.errors import CagError, ModelFailed, ModelNotFound, OutOfMemory

if TYPE_CHECKING:
    import torch

MODEL_TYPES = frozenset({"mistral", "ministral", "ministral3", "mistral3"})
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# What loading is estimated by, to tell how far it has come: the imports, and a common disk.
TORCH_SECONDS = 2.5
TRANSFORMERS_SECONDS = 4.0
BYTES_A_SECOND = 1e9
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class ModelFolder:
    """Where a model is.

    Attributes:
        path: its folder.
        name: as the user knows it.
        why: why this one, in half a sentence.
    """

    path: Path
    name: str
    why: str


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to be asked.

    Attributes:
        model, tokenizer: transformers' objects.
        name: as the user knows it.
        why: why this one, in half a sentence.
        device, dtype: where and how the weights are held.
        parameters, bytes: its size.
        chunk: tokens that are read at a time.
        context: tokens the model can see at once.
        spec: its ``cag.json``; empty if there is none.
    """

    model: Any
    tokenizer: Any
    name: str
    why: str
    device: str
    dtype: str
    parameters: int
    bytes: int
    chunk: int
    context: int
    spec: dict[str, Any] = field(default_factory=dict)


def resolve_model(model: str) -> ModelFolder:
    """Find a model on this machine.

    Args:
        model: ``auto``, ``embedded``, a folder, or a hub id (looked up in the local hub cache).

    Raises:
        ModelNotFound: there is nothing of that name here.
        ModelFailed: its ``cag.json`` can't be read.
    """
    if model in ("auto", "embedded"):
        path = Path(str(resources.files("cag_daemon") / "embedded"))
        chosen = model == "embedded"
        why = "as set" if chosen else "a stand-in that ships with cag-daemon; set model to a real Mistral"
        return ModelFolder(path, _spec(path).get("name", "embedded"), why)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(path, _spec(path).get("name", path.resolve().name), "as set, a folder")
    if path.exists():
        raise ModelNotFound(f"The model {model} is a file: set model to the folder that holds config.json.")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        return ModelFolder(_in_hub_cache(model), model, "as set, from the local hub cache")
    raise ModelNotFound(f"There is no model folder {model}: set model to a folder, a hub id, embedded or auto.")


def check_folder(path: Path, name: str | None = None) -> None:
    """Check, without loading it, that a folder holds a whole Mistral that may be loaded.

    Raises:
        ModelNotFound: a part is missing, or the weights are not safetensors.
        ModelFailed: another kind of model, one that wants its own code run, or damaged files.
    """
    name = name or path.name
    config = _json(path / "config.json")
    kind = config.get("model_type")
    if "auto_map" in config or "auto_map" in _json(path / "tokenizer_config.json", optional=True):
        raise ModelFailed(
            f"The model {name} wants code of its own to be run, which cag-daemon never does: choose another."
        )
    if kind not in MODEL_TYPES:
        raise ModelFailed(f"The model {name} is a {kind!r}, cag-daemon loads Mistral models: choose one of those.")
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise ModelNotFound(f"The model {name} has no {TOKENIZER_FILES[0]} in {path}: download the model again.")
    for file in _weight_files(path, name):
        _check_safetensors(file)


def load_model(
    model: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda percent: None,
) -> LoadedModel:
    """Load a Mistral from disk.

    Args:
        model: see `resolve_model`.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``auto`` (the model's own, else bfloat16, or float16 where the device lacks it), ``float32``,
            ``bfloat16`` or ``float16``.
        threads: of the CPU; None: torch's choice.
        progress: called with about how many hundredths are done, never fewer than before.

    Raises:
        ModelNotFound, ModelFailed, OutOfMemory: with a sentence for the user.
    """
    folder = resolve_model(model)
    check_folder(folder.path, folder.name)
    os.environ.update(OFFLINE)  # read once, when huggingface_hub is imported
    reading = sum(each.stat().st_size for each in _weight_files(folder.path, folder.name)) / BYTES_A_SECOND
    a_second = 100 / (TORCH_SECONDS + TRANSFORMERS_SECONDS + reading)
    imported = round(a_second * (TORCH_SECONDS + TRANSFORMERS_SECONDS))
    progress(0)
    import torch

    progress(round(a_second * TORCH_SECONDS))
    if threads:
        torch.set_num_threads(threads)
    spec = _spec(folder.path)
    place = _device(device)
    kind = _dtype(spec.get("dtype", "auto") if dtype == "auto" else dtype, place)
    try:
        with out_of_memory(f"The model {folder.name} does not fit into the memory of {place}: choose a smaller one."):
            _import_model_code(folder.path)
            progress(min(99, imported))
            # The rest is not quite all: it is in its place only once this function returns.
            with _counted(lambda part: progress(min(99, imported + int(part * (100 - imported))))):
                loaded, tokenizer = _from_pretrained(folder, place, kind)
    except CagError:
        raise
    except Exception as error:
        raise ModelFailed(
            f"The model {folder.name} in {folder.path} could not be loaded ({one_line(error)}): download it again."
        ) from error
    from cag_daemon.engine.cag import default_chunk

    parameters = list(loaded.parameters())
    return LoadedModel(
        model=loaded,
        tokenizer=tokenizer,
        name=folder.name,
        why=folder.why,
        device=str(place),
        dtype=str(kind).removeprefix("torch."),
        parameters=sum(each.numel() for each in parameters),
        bytes=sum(each.nbytes for each in parameters),
        chunk=default_chunk(place, kind),
        context=int(loaded.config.get_text_config(decoder=True).max_position_embeddings),
        spec=spec,
    )


def devices() -> list[str]:
    """What this machine can run a model on, the first choice first, in words."""
    import torch

    found = [f"cuda:{number}: {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps: this machine's Apple GPU")
    return [*found, "cpu"]


@contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Turn torch's and Python's several ways of saying so into `OutOfMemory` with that message."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(message) from error
    except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's has no type of its own
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(message) from error


def one_line(error: BaseException) -> str:
    """An unexpected exception in half a line: its type and the first line of what it says."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:200] if first else type(error).__name__


def _from_pretrained(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    auto = "Mistral3ForConditionalGeneration" if _json(folder.path / "config.json")["model_type"] == "mistral3" else ""
    loaded, info = getattr(transformers, auto or "AutoModelForCausalLM").from_pretrained(
        folder.path,
        dtype=dtype,
        device_map=None if device.type == "cpu" else {"": device},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            names = ", ".join(sorted(str(each) for each in info[what])[:3])
            raise ModelFailed(
                f"The weights of the model {folder.name} don't fit its config.json "
                f"({what.replace('_', ' ')}: {names}): download it again."
            )
    tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    return loaded.eval().requires_grad_(False), tokenizer


def _import_model_code(path: Path) -> None:
    """Import what transformers needs for that model, which takes longer than transformers itself."""
    import transformers

    for name in ("AutoTokenizer", *(_json(path / "config.json").get("architectures") or [])):
        getattr(transformers, str(name), None)


@contextmanager
def _counted(progress: Callable[[float], None]) -> Iterator[None]:
    """Be told which part of the weights transformers has put in place."""
    from transformers.utils import logging

    def bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return count(args[0]) if args and kwargs.get("desc") == "Loading weights" else factory(*args, **kwargs)

    def count(weights: Iterable[Any]) -> Iterator[Any]:
        listed = list(weights)
        for number, weight in enumerate(listed, 1):
            yield weight
            progress(number / len(listed))

    before = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _in_hub_cache(model: str) -> Path:
    os.environ.update(OFFLINE)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception as error:  # several types, of no use to anybody here
        raise ModelNotFound(
            f"The model {model} is not on this machine: fetch it with `hf download {model}`, or set model to embedded."
        ) from error


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|cuda|mps)(?::(\d+))?", name)
    if match is None:
        raise ModelFailed(f"The device {name!r} is not known: set device to auto, cpu, cuda, cuda:N or mps.")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[match[1]]
    if int(match[2] or 0) >= available:
        raise ModelFailed(f"This machine has no device {name} that torch can use: set device to auto or cpu.")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float16"
    if name not in ("float32", "bfloat16", "float16"):
        raise ModelFailed(f"The dtype {name!r} is not known: set dtype to auto, float32, bfloat16 or float16.")
    kind = getattr(torch, name)
    assert isinstance(kind, torch.dtype)
    return kind


def _has_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        return bool(torch.ones(2, dtype=torch.bfloat16, device=device).sum() == 2)
    except (RuntimeError, TypeError):
        return False


def _spec(path: Path) -> dict[str, Any]:
    return _json(path / "cag.json", optional=True)


def _json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelNotFound(
            f"There is no {file.name} in {file.parent}: set model to a folder that holds one."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFailed(f"{file} can't be read ({one_line(error)}): download the model again.") from error
    if not isinstance(values, dict):
        raise ModelFailed(f"{file} is not a JSON object: download the model again.")
    return values


def _weight_files(path: Path, name: str) -> list[Path]:
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = _json(path / "model.safetensors.index.json", optional=True)
    files = [path / file for file in sorted(set(index.get("weight_map", {}).values()))]
    for file in files:
        if not file.is_file():
            raise ModelNotFound(f"The model {name} has no {file.name} in {path}: download the model again.")
    if files:
        return files
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ModelNotFound(
            f"The model {name} in {path} has only pickled weights, cag-daemon loads safetensors only: choose another."
        )
    raise ModelNotFound(f"The model {name} has no model.safetensors in {path}: download the model again.")


def _check_safetensors(file: Path) -> None:
    """Eight bytes of length, a JSON header, and exactly as much data as that says."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = os.fstat(stream.fileno()).st_size
            if length > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        data = max((each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"), default=0)
        if 8 + length + data != size:
            raise ValueError(f"it has {size} bytes, and should have {8 + length + data}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        why = error if type(error) is ValueError else "its header is damaged"
        raise ModelFailed(f"{file} is not whole ({why}): download the model again.") from error
    except OSError as error:
        raise ModelFailed(f"{file} can't be read ({one_line(error)}): check its permissions.") from error
