"""Where models are on this machine: what comes along, folders, and the local hub cache. Never the hub itself."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from cag_daemon.engine.folder import HUB_ID, INSTEAD_OF_GGUF, ModelFolder, check_folder, read_json, spec_of, weights_of
from cag_daemon.errors import CagError, ModelNotFound

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def resolve_folder(model: str) -> ModelFolder:
    """Find a model on this machine; ``auto`` is not one.

    Args:
        model: ``embedded``, a folder, or a hub id (looked up in the local hub cache).

    Raises:
        ModelNotFound: there is nothing of that name here.
        ModelFailed: its ``cag.json`` can't be read.
    """
    if model == "embedded":
        return embedded("as set")
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(path, spec_of(path).get("name", path.resolve().name), "as set, a folder")
    if path.exists():
        if path.suffix == ".gguf":
            raise ModelNotFound(f"The model {model} is a GGUF file, which is not read: {INSTEAD_OF_GGUF}.")
        raise ModelNotFound(f"The model {model} is a file: set model to the folder that holds config.json.")
    if HUB_ID.fullmatch(model):
        return ModelFolder(_in_hub_cache(model), model, "as set, from the local hub cache")
    raise ModelNotFound(f"There is no model folder {model}: set model to a folder, a hub id, embedded or auto.")


def embedded(why: str) -> ModelFolder:
    """The model that comes along."""
    path = Path(str(resources.files("cag_daemon") / "embedded"))
    return ModelFolder(path, spec_of(path).get("name", "embedded"), why)


def installed() -> list[ModelFolder]:
    """The whole Mistrals in the local hub cache that can be asked, the largest first."""
    os.environ.update(OFFLINE)
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repository in repositories:
        revision = repository.refs.get("main")
        if repository.repo_type != "model" or revision is None:
            continue
        folder = ModelFolder(revision.snapshot_path, repository.repo_id, "from the local hub cache")
        try:
            check_folder(folder)
            if _answers_questions(folder):
                found.append((sum(each.numel for each in weights_of(folder).values()), folder))
        except CagError:
            continue  # not whole, or not ours: whoever names it is told so
    return [folder for _, folder in sorted(found, key=lambda each: (-each[0], each[1].name))]


def _answers_questions(folder: ModelFolder) -> bool:
    """Whether it was made to be asked: a base model has no chat template, or at least says nothing of the kind."""
    path = folder.path
    if (path / "chat_template.jinja").exists() or (path / "chat_template.json").exists():
        return True
    if read_json(path / "tokenizer_config.json", optional=True).get("chat_template"):
        return True
    return "instruct" in folder.name.lower()


def _in_hub_cache(model: str) -> Path:
    os.environ.update(OFFLINE)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception as error:  # several types, of no use to anybody here
        # A list of all the repository's files that another tool has left counts those, too, that nobody needs here.
        if (path := getattr(error, "snapshot_path", None)) is not None:
            return Path(path)
        raise ModelNotFound(
            f"The model {model} is not on this machine: fetch it with `cag-daemon pull {model}`, "
            "or set model to embedded."
        ) from error
