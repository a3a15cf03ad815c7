"""A Mistral into memory, as planned. Never from the network.

torch and transformers are imported when a model is loaded, not before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cag_daemon.engine import folder as folders
from cag_daemon.engine.installed import OFFLINE, resolve_folder
from cag_daemon.engine.memory import KEPT_FREE, free, out_of_memory, trim
from cag_daemon.engine.plan import Plan, Wanted, plan_for, what_would_fit
from cag_daemon.errors import CagError, ModelFailed, OutOfMemory, one_line

if TYPE_CHECKING:
    import torch

# What loading is estimated by, to tell how far it has come: the imports, and a common disk.
TORCH_SECONDS = 2.5
TRANSFORMERS_SECONDS = 4.0
BYTES_A_SECOND = 1e9
QUANTIZED_A_SECOND = 15e6  # weights, on one core; what was kept on disk is read much faster, and jumps ahead


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to be asked.

    Attributes:
        model, tokenizer: transformers' objects.
        name: as the user knows it.
        why: why this one, in half a sentence.
        device, dtype, quantization: where and how the weights are held.
        parameters, bytes: its size.
        chunk: tokens that are read at a time.
        context: tokens the model can see at once.
        spec: its ``cag.json``; empty if there is none.
        key: all that the bits of a cache depend on beside the tokens; empty: they are not kept.
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
    quantization: str = "none"
    key: str = ""

    @property
    def reads(self) -> int | None:
        """Tokens of a document up to which its answers are good; None: nobody has measured it."""
        reads = self.spec.get("reads")
        return reads if isinstance(reads, int) else None


def load_model(wanted: Wanted | str = "auto", progress: Callable[[int], None] = lambda percent: None) -> LoadedModel:
    """Load a Mistral from disk.

    Args:
        wanted: which, where and how; a string: that model, and all else as it is best here.
        progress: called with about how many hundredths are done, never fewer than before.

    Raises:
        ModelNotFound, ModelFailed, OutOfMemory: with a sentence for the user.
    """
    if isinstance(wanted, str):
        wanted = Wanted(wanted)
    os.environ.update(OFFLINE)  # read once, when huggingface_hub is imported
    if wanted.model != "auto":  # what is wrong with it is known before anything heavy is imported
        folders.check_folder(resolve_folder(wanted.model))
    progress(0)
    import torch

    from cag_daemon.engine.linear import pack_linears
    from cag_daemon.engine.narrow import narrow

    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    plan = plan_for(wanted)
    reading = sum(each.stat().st_size for each in {weight.file for weight in plan.weights.values()}) / BYTES_A_SECOND
    if plan.quantization != "none":
        reading += sum(weight.numel for weight in plan.weights.values()) / QUANTIZED_A_SECOND
    a_second = 100 / (TORCH_SECONDS + TRANSFORMERS_SECONDS + reading)
    imported = round(a_second * (TORCH_SECONDS + TRANSFORMERS_SECONDS))
    progress(round(a_second * TORCH_SECONDS))
    if plan.hopeless:
        raise OutOfMemory(f"{plan.numbers()}: {what_would_fit(wanted, plan)}.")
    name = plan.folder.name
    packed = False
    try:
        with out_of_memory(f"The model {name} does not fit into the memory of {plan.where}: choose a smaller one."):
            rest = 100 - imported
            model, tokenizer = _load(plan, wanted, lambda part: progress(min(99, imported + int(part * rest))))
            size, parameters = _bytes(model), _parameters(plan, model)
            packed = pack_linears(model)
            trim()  # where layers were brought into another form
            if packed or plan.quantization != "none":
                narrow(model)
                trim()  # what trying took
    except CagError:
        raise
    except Exception as error:
        raise ModelFailed(
            f"The model {name} in {plan.folder.path} could not be loaded ({one_line(error)}): "
            f"{folders.again(plan.folder)}."
        ) from error
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        why=plan.folder.why,
        device="+".join(dict.fromkeys(str(each.device) for each in model.parameters())),
        dtype=str(plan.dtype).removeprefix("torch."),
        parameters=parameters,
        bytes=size,
        chunk=plan.chunk,
        context=folders.context_of(plan.folder),
        spec=folders.spec_of(plan.folder.path),
        quantization=plan.quantization,
        key=_key(plan, model, packed),
    )


def _load(plan: Plan, wanted: Wanted, progress: Callable[[float], None]) -> tuple[Any, Any]:
    from transformers.utils import logging

    from cag_daemon.engine import weights as stored
    from cag_daemon.engine.attention import install
    from cag_daemon.engine.quantized_weights import fill_quantized
    from cag_daemon.engine.tokenizer import load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(plan.folder.path)
    model = stored.empty_decoder(plan.folder.path, plan.dtype)
    stored.check_names(model, plan.weights, plan.folder.name)
    progress(0)
    if plan.quantization != "none":
        fill_quantized(model, plan, wanted.cache_directory, progress)
    else:
        device_of = _places(model, plan)

        def place(name: str, tensor: torch.Tensor) -> None:
            stored.set_parameter(model, name, tensor.to(device_of(name)))

        for part in stored.fill(model, plan.weights, plan.dtype, place, folders.scale_block(plan.folder)):
            progress(part)
    model.tie_weights()
    install(model)
    return _dispatched(model, plan), tokenizer


def _places(model: Any, plan: Plan) -> Callable[[str], torch.device]:
    """On which device each weight is put; what CPU offloading moves there and back is on the CPU."""
    if len(plan.devices) == 1:
        return lambda name: plan.devices[0]
    device_map = _device_map(model, plan)

    def place(name: str) -> torch.device:
        import torch

        while name not in device_map:
            name = name.rpartition(".")[0]
        return torch.device(device_map[name])

    return place


def _device_map(model: Any, plan: Plan) -> dict[str, Any]:
    """Which module goes to which of several devices, whole layers in order (accelerate's doing)."""
    from accelerate import infer_auto_device_map

    plain = sum(weight.numel for weight in plan.weights.values()) * plan.dtype.itemsize
    shrunk = plan.needs.weights / max(1, plain)
    beside = KEPT_FREE + plan.needs.working + 2 * plan.needs.cache // len(plan.devices)
    room = {
        device.index if device.type == "cuda" else "cpu": max(0, int((free(device) - beside) / shrunk))
        for device in plan.devices
    }
    found: dict[str, Any] = infer_auto_device_map(model, room, model._no_split_modules, dtype=plan.dtype)
    if "disk" in found.values():
        raise OutOfMemory(f"{plan.numbers()}, in parts too small for it: choose a smaller model.")
    return found


def _dispatched(model: Any, plan: Plan) -> Any:
    if len(plan.devices) == 1:
        return model.to(plan.devices[0])  # the weights are there already, what is computed is not
    from accelerate import dispatch_model

    device_map = {
        name: device.index if (device := parameter.device).type == "cuda" else "cpu"
        for name, parameter in model.named_parameters()
    }
    return dispatch_model(model, _by_module(device_map), skip_keys=model._skip_keys_device_placement)


def _by_module(places: dict[str, Any]) -> dict[str, Any]:
    """From parameters to the layers they belong to, and what stands beside the layers."""
    return {
        ".".join(name.split(".")[: 3 if name.startswith("model.layers.") else -1]): at for name, at in places.items()
    }


def _key(plan: Plan, model: Any, packed: bool) -> str:
    """What decides about the bits: weights, tokenizer, how and on what they are held, kernels, versions, threads.

    Over several devices it is empty: where which layer lies is decided anew each time.
    """
    if len(plan.devices) > 1:
        return ""
    import torch
    import transformers

    from cag_daemon.engine.devices import cpu_features
    from cag_daemon.engine.widening import widening

    path = plan.folder.path
    files = sorted(
        {each.file for each in plan.weights.values()} | {path / "config.json", *path.glob("tok*"), *path.glob("tek*")}
    )
    stats = [(file.name, (stat := file.resolve().stat()).st_size, stat.st_mtime_ns) for file in files]
    device = plan.devices[0]
    where = f"{torch.backends.cpu.get_cpu_capability()} {' '.join(cpu_features())}"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)} {torch.version.cuda}"
    how = [plan.folder.name, plan.where, where, str(plan.dtype), plan.quantization, plan.chunk, torch.get_num_threads()]
    half = plan.quantization != "none" and device.type == "cpu" and plan.dtype == torch.bfloat16
    wide = widening(plan.quantization) if half else None
    widened = "" if wide is None else wide.kind
    kernels = [model.config._attn_implementation, packed, widened, torch.__version__, transformers.__version__]
    return json.dumps([stats, how, kernels])


def _bytes(model: Any) -> int:
    """What the weights take, what is tied once. Not by `state_dict`: that would make another form of quantised ones."""
    held = {id(each): each for each in model.parameters()}
    for module in model.modules():
        kept = module._buffers.keys() - module._non_persistent_buffers_set
        held |= {id(module._buffers[name]): module._buffers[name] for name in kept}
    return sum(each.nbytes for each in held.values() if each is not None)


def _parameters(plan: Plan, model: Any) -> int:
    """How many numbers the model was made of, whatever it is held in."""
    if plan.quantization == "none":
        return sum(each.numel() for each in model.parameters())
    return sum(weight.numel for name, weight in plan.weights.items() if name.endswith(".weight"))
