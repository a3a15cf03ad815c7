"""A model folder's tokenizer: transformers' fast one, with a chat template. Never from the network.

Of these files the first that is there is read:

    tokenizer.json       as it is, split into words as Mistral splits where the file has that wrong
    tekken.json          Mistral's byte-level tokenizer
    tokenizer.model.v3   Mistral's sentencepiece tokenizer; ``tokenizer.model`` says no version

Ids are mistral-common's. It need not be installed, nor sentencepiece: what transformers makes of a folder differs with
what is, so nothing is left to its AutoTokenizer.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cag_daemon.engine.folder import read_json
from cag_daemon.errors import CagError, ModelFailed, ModelNotFound, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Which of our templates speaks to which version: they differ from each other in tools and images, not in one turn.
TEMPLATES = {"v1": "v1", "v2": "v3", "v3": "v3", "v7": "v7", "v11": "v7", "v13": "v7", "v15": "v7"}
GAP = 'set gap = " "'
SPACE = "▁"  # sentencepiece's
V1_SIZE = 32000

# How every tekken.json splits text into words. Some tokenizer.json on the hub were made with another's pattern.
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The control tokens of a tekken.json that does not list them, in the order of their ids.
TEKKEN_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)

# Kinds of piece in a sentencepiece file.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class Piece(NamedTuple):
    """A piece of a sentencepiece file: its text, how good it is, and its kind."""

    text: str
    score: float
    kind: int


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model folder, with the folder's chat template, else with ours for the tokenizer's version.

    Args:
        path: the model's folder.

    Returns:
        A `transformers.PreTrainedTokenizerFast`.

    Raises:
        ModelNotFound: the folder has no tokenizer.
        ModelFailed: it can't be read, or is a base model's: there is no chat template, and nothing says which.
    """
    raw = _raw_file(path)
    try:
        if (path / "tokenizer.json").is_file():
            tokenizer = _from_json(path)
        elif raw is not None:
            tokenizer = _from_tekken(raw) if raw.suffix == ".json" else _from_sentencepiece(raw)
            _add_tokens(tokenizer, path)
        else:
            raise ModelNotFound(f"There is no tokenizer.json in {path}: download the model again.")
        tokenizer.chat_template = _own_template(tokenizer, path) or _our_template(tokenizer, path, raw)
    except CagError:
        raise
    except Exception as error:  # transformers' and tokenizers' many
        raise ModelFailed(
            f"The tokenizer in {path} could not be loaded ({one_line(error)}): download the model again."
        ) from error
    if not tokenizer.chat_template:
        raise ModelFailed(f"The tokenizer in {path} has no chat template: choose an instruct model.")
    return tokenizer


def _raw_file(path: Path) -> Path | None:
    """Mistral's own file in a folder; of several the one that says its version, the newest."""
    if (path / "tekken.json").is_file():
        return path / "tekken.json"
    versions = {int(match[1]): file for file in path.glob("tokenizer.model.v*") if (match := _suffix(file))}
    if versions:
        return versions[max(versions)]
    return path / "tokenizer.model" if (path / "tokenizer.model").is_file() else None


def _suffix(file: Path) -> re.Match[str] | None:
    return re.search(r"\.model\.v(\d+)(?:m\d+)?$", file.name)


# ── tokenizer.json ──────────────────────────────────────────────────────────────────────────


def _from_json(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    # transformers decides by the name and the age of the model whether to correct the words, and warns; we look.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, fix_mistral_regex=False
    )
    backend = tokenizer.backend_tokenizer
    control = [backend.id_to_token(id) for id in range(5)]
    if control == list(TEKKEN_CONTROL[:5]) and backend.get_vocab_size() > 100_000 and not _has_spaces(tokenizer):
        _split_as_tekken(backend)
    return tokenizer


def _has_spaces(tokenizer: Any) -> bool:
    """Whether it is a sentencepiece tokenizer, whose pieces begin with its own sign for a space."""
    return tokenizer.backend_tokenizer.token_to_id(f"{SPACE}the") is not None


def _split_as_tekken(backend: Tokenizer) -> None:
    from tokenizers import Regex, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# ── tekken.json ─────────────────────────────────────────────────────────────────────────────


def _from_tekken(file: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    values = read_json(file)
    config = values["config"]
    listed = values.get("special_tokens")
    names = [each["token_str"] for each in sorted(listed, key=lambda each: int(each["rank"]))] if listed else []
    control = names or list(TEKKEN_CONTROL)
    count = int(config.get("default_num_special_tokens") or len(control))
    control += [f"<SPECIAL_{id}>" for id in range(len(control), count)]
    size = int(config.get("default_vocab_size") or len(values["vocab"]) + count)
    if config["pattern"] != TEKKEN_WORDS:
        raise ModelFailed(f"{file} splits text as no tekken.json known here does: choose another model.")
    letters = _byte_letters()
    pieces = [
        base64.b64decode(each["token_bytes"]).decode("latin-1").translate(letters)
        for each in values["vocab"][: size - count]  # the file has more than the models use
    ]
    vocabulary = {token: id for id, token in enumerate([*control, *pieces])}
    backend = Tokenizer(BPE(vocabulary, _merges(zip(pieces, range(0, -len(pieces), -1), strict=True))))
    backend.model.ignore_merges = True  # a word that is a piece is that piece
    _split_as_tekken(backend)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return _wrapped(backend)


def _byte_letters() -> dict[int, int]:
    """How the tokenizers library writes each byte as one letter: itself, if it can be seen, else one past the bytes."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: 256 + number for number, byte in enumerate(unseen)}


# ── tokenizer.model ─────────────────────────────────────────────────────────────────────────


def _from_sentencepiece(file: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    pieces = _pieces(file)
    normal = [(piece.text, piece.score) for piece in pieces if piece.kind == NORMAL]
    vocabulary = {piece.text: id for id, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocabulary, _merges(normal), byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    # A space before what starts a string, not before what follows a control token: the templates say that one.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for piece in pieces:
        if piece.kind in (UNKNOWN, CONTROL):
            backend.add_special_tokens([AddedToken(piece.text, special=True, normalized=False)])
        elif piece.kind == USER_DEFINED:  # taken whole wherever it stands in a text, and a token like any other
            backend.add_tokens([AddedToken(piece.text, special=False, normalized=False)])
    return _wrapped(backend)


def _pieces(file: Path) -> list[Piece]:
    """What is in a sentencepiece file, which is a protobuf message: read by hand, two libraries fewer."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(file.read_bytes()):
        if number == 1:
            fields = dict(_fields(value))
            (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
            pieces.append(Piece(fields[1].decode(), score, fields.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    # The numbers of model_type (2: BPE) and byte_fallback; of the map of characters, add_dummy_prefix,
    # remove_extra_whitespaces and escape_whitespaces. What is absent has its default.
    trained = (trainer.get(3, 1), trainer.get(35, 0))
    normal = (normalizer.get(2, b""), normalizer.get(3, 1), normalizer.get(4, 1), normalizer.get(5, 1))
    if trained != (2, 1) or normal != (b"", 1, 0, 1):
        raise ModelFailed(f"{file} is no sentencepiece file of Mistral's: choose a model with a tokenizer.json.")
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: their numbers, and their values as int or bytes.

    Raises:
        ValueError: it is none, or cut off.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(message):
                raise ValueError("the file is cut off")
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError("the file is damaged")
        length = varint() if wire == 2 else 8 if wire == 1 else 4
        if at + length > len(message):
            raise ValueError("the file is cut off")
        at += length
        yield number, message[at - length : at]


# ── all of them ─────────────────────────────────────────────────────────────────────────────


def _merges(scored: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every two pieces that make a third, the pairs that make the best one first.

    Where pieces are equally good, sentencepiece takes the leftmost pair. Here pairs are ranked, so the one with the
    longest left piece comes first. Pieces of nothing but spaces are equally good, and grow from the left that way.
    """
    scores = dict(scored)
    ways = [
        (-score, -cut, text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(text[:-cut], text[-cut:]) for _, cut, text in sorted(ways)]


def _wrapped(backend: Tokenizer) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _add_tokens(tokenizer: Any, path: Path) -> None:
    """The tokens that a fine-tuned model has beside those of Mistral's file.

    Raises:
        ModelFailed: they would get other ids.
    """
    listed = read_json(path / "tokenizer_config.json", optional=True).get("added_tokens_decoder") or {}
    added = {int(id): str(each["content"]) for id, each in listed.items()}
    added |= {int(id): token for token, id in read_json(path / "added_tokens.json", optional=True).items()}
    size = len(tokenizer)
    for id, token in sorted(added.items()):
        if id >= size:
            tokenizer.add_tokens([token], special_tokens=True)
            if tokenizer.convert_tokens_to_ids(token) != id:
                raise ModelFailed(f"The added tokens in {path} leave a gap before {token}: download the model again.")


def _own_template(tokenizer: Any, path: Path) -> str | None:
    """The folder's chat template, wherever it may stand."""
    found = tokenizer.chat_template
    if not found and (path / "chat_template.jinja").is_file():
        found = (path / "chat_template.jinja").read_text("utf-8")
    for file in ("tokenizer_config.json", "chat_template.json"):
        found = found or read_json(path / file, optional=True).get("chat_template")
    if isinstance(found, list):  # several, each with a name
        found = {each["name"]: each["template"] for each in found}
    if isinstance(found, dict):
        found = found.get("default")
    return str(found) if found else None


def _our_template(tokenizer: Any, path: Path, raw: Path | None) -> str | None:
    """Our template for the version of Mistral's tokenizer that this is; None for a base model, or another's."""
    version = _version(tokenizer, path, raw)
    if version is None:
        return None
    if version not in TEMPLATES:
        raise ModelFailed(f"The tokenizer in {path} is of a version {version} not known here: choose another model.")
    file = resources.files("cag_daemon.engine") / "templates" / f"{TEMPLATES[version]}.jinja"
    template = file.read_text("utf-8")
    assert template.count(GAP) == 1
    # sentencepiece puts a space before each string it encodes. Not all that transformers makes of it does so.
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("<s>the", add_special_tokens=False))[1]
    return template if _has_spaces(tokenizer) and not first.startswith(SPACE) else template.replace(GAP, 'set gap = ""')


def _version(tokenizer: Any, path: Path, raw: Path | None) -> str | None:
    if raw is not None and raw.suffix == ".json":
        return str(read_json(raw)["config"].get("version"))
    if raw is not None and (suffix := _suffix(raw)) is not None:
        return f"v{suffix[1]}"
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if {"[INST]", "[/INST]"} <= control:
        # Byte-level v3 has the tokens of v7, too, but does not know them. A turn of v3 is one of v7, without system
        # prompt: where nothing tells them apart it is the one that both understand.
        knows = "[SYSTEM_PROMPT]" if _has_spaces(tokenizer) else "[ARGS]"
        return "v7" if knows in control else "v3"
    # v1 has no control tokens: nothing in it tells an instruct model from a base model, only what it is called.
    of_v1 = _has_spaces(tokenizer) and len(tokenizer) == V1_SIZE
    return "v1" if of_v1 and any("instruct" in name.lower() for name in _names(path)) else None


def _names(path: Path) -> Iterator[str]:
    """What a model folder is called: by itself, in the hub's cache, and in its own files."""
    yield path.resolve().name
    if path.resolve().parent.name == "snapshots":
        yield path.resolve().parent.parent.name
    yield str(read_json(path / "config.json", optional=True).get("_name_or_path") or "")
    yield str(read_json(path / "cag.json", optional=True).get("name") or "")
