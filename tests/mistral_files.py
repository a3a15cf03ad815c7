"""Model folders with Mistral's own tokenizer files, beside mistral-common's tokenizer of the same file.

mistral-common ships the files up to v7. Those of byte-level v7 to v13 are made of what it ships, with the version and
the control tokens that it wants; with fewer pieces, to be read quickly.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from cag_daemon.engine.tokenizer import load_tokenizer

SENTENCEPIECE = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
TEKKEN = {"tekken v3": "v3", "tekken v3 image": "v3", "tekken v7": "v7", "tekken v11": "v11", "tekken v13": "v13"}
NAMES = (*SENTENCEPIECE, *TEKKEN)
PIECES = 8_000


class Mistrals:
    """The folders, below one; each is written, and each tokenizer loaded, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw, self.saved, self.reference = cache(self._raw), cache(self._saved), cache(self._reference)
        self.tokenizer = cache(self._tokenizer)

    def _raw(self, name: str) -> Path:
        """A folder with Mistral's file alone."""
        folder = self.folder / name
        folder.mkdir()
        if name in SENTENCEPIECE:
            shutil.copy(data(SENTENCEPIECE[name]), folder / f"tokenizer.model.{name}")
        elif name == "tekken v3":
            shutil.copy(data("tekken_240718.json"), folder / "tekken.json")
        else:
            values = tekken(TEKKEN[name])
            (folder / "tekken.json").write_text(json.dumps(values))
        return folder

    def _saved(self, name: str) -> Path:
        """A folder with a tokenizer.json, as on the hub."""
        folder = self.folder / f"{name} saved"
        self.tokenizer(name).save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "mistral"}')
        return folder

    def _tokenizer(self, name: str, kind: str = "raw") -> Any:
        return load_tokenizer({"raw": self.raw, "saved": self.saved}[kind](name))

    def _reference(self, name: str) -> Any:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        (file,) = self.raw(name).iterdir()
        return MistralTokenizer.from_file(str(file))

    def encoded(self, name: str, content: str, system: str | None = None) -> list[int]:
        """mistral-common's ids of one turn, and of a system message before it unless there is none."""
        from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        before = [] if system is None else [SystemMessage(content=system)]
        request: Any = ChatCompletionRequest(messages=[*before, UserMessage(content=content)])
        ids: list[int] = self.reference(name).encode_chat_completion(request).tokens
        return ids


def data(file: str) -> Path:
    """A file that mistral-common ships."""
    return Path(str(resources.files("mistral_common") / "data" / file))


@cache
def _shipped() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(data("tekken_240911.json").read_text("utf-8"))
    return values | {"vocab": values["vocab"][:PIECES]}


def tekken(version: str) -> dict[str, Any]:
    """What is in a tekken.json of that version, with fewer pieces than Mistral's."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    values = _shipped()
    values = values | {"config": values["config"] | {"version": version, "default_vocab_size": PIECES + 1000}}
    if version in ("v11", "v13"):
        names = [str(each["token_str"]) for each in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
        names += ["[AUDIO]", "[BEGIN_AUDIO]", "<SPECIAL_22>", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"]
        listed = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
        values["special_tokens"] = listed
    return values
