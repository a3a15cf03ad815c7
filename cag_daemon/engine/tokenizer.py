"""A model folder's tokenizer: transformers' fast one, with a chat template. Never from the network.

Of these files the first that is there is read:

    tokenizer.json       as it is, split into words as Mistral splits where the file has that wrong
    tekken.json          Mistral's byte-level tokenizer
    tokenizer.model.v3   Mistral's sentencepiece tokenizer; ``tokenizer.model`` says no version

Ids are mistral-common's. It need not be installed, nor sentencepiece: what transformers makes of a folder differs with
what is, so nothing is left to its AutoTokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cag_daemon.engine.folder import read_json
from cag_daemon.engine.vocabulary import SPACE, TEKKEN_CONTROL, from_sentencepiece, from_tekken, split_as_tekken
from cag_daemon.errors import CagError, ModelFailed, ModelNotFound, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Which of our templates speaks to which version: some differ in tools and images only, not in a turn of words.
# v15 may want settings in front of the turn: its models bring their own template.
TEMPLATES = {"v1": "v1", "v2": "v3", "v3": "v3", "v7": "v7", "v11": "v7", "v13": "v7"}
GAP = 'set gap = " "'
V1_SIZE = 32000


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
            tokenizer = _wrapped(from_tekken(raw) if raw.suffix == ".json" else from_sentencepiece(raw))
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


def _from_json(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    # transformers decides by the name and the age of the model whether to correct the words, and warns; we look.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        path, local_files_only=True, trust_remote_code=False, fix_mistral_regex=False
    )
    backend = tokenizer.backend_tokenizer
    control = [backend.id_to_token(id) for id in range(5)]
    if control == list(TEKKEN_CONTROL[:5]) and not _has_spaces(tokenizer):
        split_as_tekken(backend)
    return tokenizer


def _has_spaces(tokenizer: Any) -> bool:
    """Whether it is a sentencepiece tokenizer, whose pieces begin with its own sign for a space."""
    return tokenizer.backend_tokenizer.token_to_id(f"{SPACE}the") is not None


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
        raise ModelFailed(f"The tokenizer in {path} (a {version}) has no chat template: choose a model that has one.")
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
