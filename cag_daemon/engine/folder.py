"""A model folder: whether it is whole and ours to load, and what is in it. Without torch.

A folder may hold a ``cag.json`` that says what its model was made for:
``{"name", "systemPrompt", "dtype", "standIn", "reads"}``, each of them optional; ``reads``: tokens of a document up to
which its answers are good, as measured.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cag_daemon.errors import ModelFailed, ModelNotFound, one_line

MODEL_TYPES = frozenset({"mistral", "ministral", "ministral3", "mistral3"})
DECODER_TYPES = frozenset({"mistral", "ministral", "ministral3"})
TOKENIZER_FILES = ("tokenizer.json", "tekken.json", "tokenizer.model", "tokenizer.model.v*")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# What files of one text decoder call its parts, and what surrounds it in a model that can see, too.
DECODER = re.compile(r"(?:language_model\.model|model\.language_model|language_model|model)\.((?:layers|embed|norm).*)")
HEAD = re.compile(r"(?:language_model\.)?(lm_head\..*)")
FP8 = "F8_E4M3"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, FP8: 1, "I8": 1, "U8": 1}


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
class Weight:
    """A tensor in a safetensors file.

    Attributes:
        file, name: where it is, and what it is called there.
        dtype: as the file says it, ``BF16``.
        shape: of the tensor.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def check_folder(folder: ModelFolder) -> None:
    """Check, without loading it, that a folder holds a whole Mistral that may be loaded.

    Raises:
        ModelNotFound: a part is missing, or the weights are not safetensors.
        ModelFailed: another kind of model, one that wants its own code run, or damaged files.
    """
    config, name = _config(folder), folder.name
    if "auto_map" in config or "auto_map" in read_json(folder.path / "tokenizer_config.json", optional=True):
        raise ModelFailed(
            f"The model {name} wants code of its own to be run, which cag-daemon never does: choose another."
        )
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ModelFailed(f"The model {name} is a {kind!r}, cag-daemon loads Mistral models: choose one of those.")
    inner = decoder_config(config).get("model_type", "mistral")
    if inner not in DECODER_TYPES:
        raise ModelFailed(f"The text part of the model {name} is a {inner!r}, no Mistral: choose another.")
    method = quantization_method(config)
    if method not in (None, "fp8"):
        raise ModelFailed(
            f"The weights of the model {name} are quantised with {method}, which is not read: "
            "choose the original model, and set quantization to int8 or int4."
        )
    if not any(any(folder.path.glob(file)) for file in TOKENIZER_FILES):
        raise ModelNotFound(f"The model {name} has no {TOKENIZER_FILES[0]} in {folder.path}: {again(folder)}.")
    weights_of(folder)


def decoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a ``config.json`` that is about the text decoder."""
    inner = config.get("text_config") if config.get("model_type") == "mistral3" else None
    return inner if isinstance(inner, dict) else config


def context_of(folder: ModelFolder) -> int:
    """How many tokens the model can see at once."""
    tokens = decoder_config(read_json(folder.path / "config.json")).get("max_position_embeddings")
    return tokens if isinstance(tokens, int) else 32768


def quantization_method(config: dict[str, Any]) -> str | None:
    """What the stored weights were quantised with; None: they were not."""
    quantization = _quantization(config)
    return None if quantization is None else str(quantization.get("quant_method"))


def scale_block(folder: ModelFolder) -> tuple[int, int] | None:
    """Rows and columns of a weight that share a scale, where it is stored in eight-bit floats by blocks."""
    size = (_quantization(read_json(folder.path / "config.json")) or {}).get("weight_block_size")
    return (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None


def _quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    for each in (config, decoder_config(config)):
        if isinstance(quantization := each.get("quantization_config"), dict):
            return quantization
    return None


def weights_of(folder: ModelFolder) -> dict[str, Weight]:
    """The stored tensors of the text decoder, by the decoder's own names for them; only headers are read.

    Raises:
        ModelNotFound: a file is missing, or the weights are not safetensors.
        ModelFailed: a file is damaged, or not what the index says.
    """
    index = read_json(folder.path / "model.safetensors.index.json", optional=True).get("weight_map", {})
    found: dict[str, Weight] = {}
    for file in _weight_files(folder, index):
        stat = file.stat()
        for name, dtype, shape in _header(file, stat.st_size, stat.st_mtime_ns):
            if (own := _own_name(name)) is not None:
                found[own] = Weight(file, name, dtype, shape)
    return found


def spec_of(path: Path) -> dict[str, Any]:
    """The folder's ``cag.json``; empty if there is none."""
    return read_json(path / "cag.json", optional=True)


def read_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        ModelNotFound: there is none, and it is not optional.
        ModelFailed: it can't be read.
    """
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


def again(folder: ModelFolder) -> str:
    """The next step where a file of a model is missing or damaged."""
    if HUB_ID.fullmatch(folder.name):
        return f"run `cag-daemon pull {folder.name}`, which fetches what is missing"
    return "download the model again"


INSTEAD_OF_GGUF = "choose the original model in safetensors, and set quantization to int8 or int4 to save memory"


def _config(folder: ModelFolder) -> dict[str, Any]:
    path, name = folder.path, folder.name
    if not (path / "config.json").exists():
        if (path / "adapter_config.json").exists():
            raise ModelFailed(f"The model {name} is an adapter, not a whole model: merge it into its base model first.")
        if any(path.glob("*.gguf")):
            raise ModelNotFound(f"The model {name} in {path} is in GGUF, which is not read: {INSTEAD_OF_GGUF}.")
        if (path / "params.json").exists():
            raise ModelNotFound(
                f"The model {name} in {path} is in Mistral's own format (params.json, consolidated.safetensors), "
                f"without a config.json: {again(folder)} in the format of transformers."
            )
    return read_json(path / "config.json")


def _own_name(name: str) -> str | None:
    """What the decoder calls a tensor of a file; None: it belongs to something else, such as a vision tower."""
    if (match := HEAD.fullmatch(name)) is not None:
        return match[1]
    if (match := DECODER.fullmatch(name)) is not None and not name.endswith("rotary_emb.inv_freq"):
        return f"model.{match[1]}"
    return None


def _weight_files(folder: ModelFolder, index: dict[str, str]) -> list[Path]:
    path, name = folder.path, folder.name
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    files = [path / file for file in sorted(set(index.values()))]
    for file in files:
        if not file.is_file():
            raise ModelNotFound(f"The model {name} has no {file.name} in {path}: {again(folder)}.")
    if files:
        return files
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ModelNotFound(
            f"The model {name} in {path} has only pickled weights, cag-daemon loads safetensors only: choose another."
        )
    if any(path.glob("*.gguf")):
        raise ModelNotFound(f"The model {name} in {path} is in GGUF, which is not read: {INSTEAD_OF_GGUF}.")
    raise ModelNotFound(f"The model {name} has no model.safetensors in {path}: {again(folder)}.")


@functools.lru_cache(maxsize=256)
def _header(file: Path, size: int, changed: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Eight bytes of length, a JSON header, and exactly as much data as that says: name, dtype, shape of each."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            if size < 1024 and start == b"version ":
                raise ValueError("it is a pointer of Git LFS; run `git lfs pull` where it was cloned")
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        data = max((each["data_offsets"][1] for each in header.values()), default=0)
        if 8 + length + data != size:
            raise ValueError(f"it has {size} bytes, and should have {8 + length + data}")
        return [(name, each["dtype"], tuple(each["shape"])) for name, each in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        why = error if type(error) is ValueError else "its header is damaged"
        raise ModelFailed(f"{file} is not whole ({why}): download the model again.") from error
    except OSError as error:
        raise ModelFailed(f"{file} can't be read ({one_line(error)}): check its permissions.") from error
