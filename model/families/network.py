"""The module of a configuration without storage, its blocks, and its first weights."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from model.families.attention import PACKED
from model.families.configuration import FamilyError
from model.place import ModelError, open_weights

log = logging.getLogger("steel.training")


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with packed attention; parameters on the meta device, buffers real (RoPE's frequencies are computed,
    not loaded). Raises FamilyError where an architecture cannot be trained exactly."""
    kind = config.model_type
    try:
        with _parameters_on_meta():
            lm = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                attn_implementation="eager",
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except Exception as error:  # transformers and torch refuse sizes with errors of any kind
        raise FamilyError(f"{kind} cannot be built: {str(error).partition(chr(10))[0]}") from error
    if not getattr(lm, "_supports_attention_backend", False):
        raise FamilyError(f"{kind} cannot be trained here: its attention cannot keep packed documents apart")
    if not blocks(lm):
        raise FamilyError(f"{kind} cannot be trained here: it does not name its blocks")
    _without_padding(lm)
    if state := kept(lm):
        log.warning(
            "%s: no gradient reaches %s; it stays as it is (%d tensors)", kind, min(state), len(state)
        )
    if chance := [name for name, value in config.to_dict().items() if "drop" in name and value]:
        log.warning("%s: what it drops by chance is off: %s", kind, ", ".join(chance))
    lm.config._attn_implementation = PACKED
    lm.config.use_cache = False
    return lm.eval()  # whoever counts what its forward keeps counts no dropout


def blocks(lm: PreTrainedModel) -> list[nn.Module]:
    """What is sharded and compiled as one unit."""
    names = set(lm._no_split_modules or ())
    return [module for module in lm.modules() if type(module).__name__.removeprefix("FSDP") in names]


def kept(module: nn.Module) -> dict[str, Tensor]:
    """Name -> state that is saved with the weights and learned by no gradient, such as the bias with which a router chooses
    (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). A training leaves it as it is: transformers has no rule that moves it."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, owner in module.named_modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if name not in owner._non_persistent_buffers_set
    }


def put_kept(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies of this state in the place of the module's own, in the dtype that they have; on the module's devices."""
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        buffers = module.get_submodule(owner)._buffers
        there = buffers[last]
        assert there is not None
        buffers[last] = tensor.detach().to(there.device, copy=True)


@contextmanager
def _state_in_fp32(kind: type[PreTrainedModel], state: Mapping[str, Tensor]) -> Iterator[None]:
    """Models of this class are read with such state in FP32, whatever the dtype of the folder. Some name it themselves."""
    theirs = kind._keep_in_fp32_modules_strict
    kind._keep_in_fp32_modules_strict = {*(theirs or ()), *(name.rpartition(".")[2] for name in state)}
    try:
        yield
    finally:
        kind._keep_in_fp32_modules_strict = theirs


def materialise(module: nn.Module, device: torch.device) -> None:
    """Storage for what is on the meta device; buffers move."""
    module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))


def from_seed(lm: PreTrainedModel, seed: int) -> Callable[[str], Tensor]:
    """Fresh weights by the model's own rule, a block at a time, each under a seed of (seed, its name) alone.

    Call it before the model is sharded. A block is filled as a whole, because some rules scale a matrix by what
    contains it (GPT-2).
    """
    units: dict[str, nn.Module] = {}
    inside = set(map(id, blocks(lm)))
    owner: dict[str, str] = {}
    unit_of: dict[str, str] = {}
    for prefix, module in lm.named_modules():
        above = unit_of.get(prefix.rpartition(".")[0], "") if prefix else ""
        if above:
            unit_of[prefix] = above
            continue
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if id(module) in inside:
            unit_of[prefix] = prefix
            own = [name for name, _ in module.named_parameters()]
        if own:
            units[prefix] = copy.deepcopy(module).to("meta")
            _without_padding(units[prefix])
            owner |= {f"{prefix}.{name}" if prefix else name: prefix for name in own}
    made: tuple[str, dict[str, Tensor]] | None = None
    state = {name: buffer.clone() for name, buffer in kept(lm).items()}

    def tensor_of(full_name: str) -> Tensor:
        nonlocal made
        if full_name in state:
            return state[full_name]
        unit = owner[full_name]
        if made is None or made[0] != unit:
            digest = hashlib.sha256(f"{seed}:{unit}".encode()).digest()
            made = None  # never two blocks at a time
            made = unit, _fresh(lm, units[unit], int.from_bytes(digest[:7], "little"))
        name = full_name.removeprefix(unit + ".") if unit else full_name
        tensor = made[1][name]
        if tensor.isnan().any():
            raise FamilyError(f"{lm.config.model_type}: its rule for fresh weights leaves {full_name} out")
        return tensor

    return tensor_of


def from_folder(folder: Path, lm: PreTrainedModel) -> Callable[[str], Tensor]:
    """FP32 weights of a folder: tensor by tensor where the files have the model's names, else as transformers reads
    them (experts merged, prefixes added), in the folder's own precision. Call it before the model is sharded."""
    names, state = [name for name, _ in lm.named_parameters()], kept(lm)
    try:
        place = open_weights(folder)
    except ModelError as error:
        raise FamilyError(f"init_from: {error}") from error
    if all(name in place for name in [*names, *state]):
        return lambda name: place[name].get_tensor(name).float()
    try:
        with _state_in_fp32(type(lm), state):
            whole, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", output_loading_info=True, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise FamilyError(f"init_from: {folder}: {str(error).partition(chr(10))[0]}") from error
    tensors = {name: parameter.detach() for name, parameter in whole.named_parameters()} | kept(whole)
    absent = [name for name in names if name not in tensors or name in report["missing_keys"]]
    if absent:
        raise FamilyError(f"init_from: {folder} has no weights for {absent[0]}")
    if lacking := [name for name in state if name in report["missing_keys"]]:
        log.warning("%s has no %s: it is that of a fresh model", folder, lacking[0])
        tensors |= {name: state[name].clone() for name in lacking}  # transformers may leave its memory unset
    return lambda name: tensors.pop(name).float()


def _fresh(lm: PreTrainedModel, unit: nn.Module, seed: int) -> dict[str, Tensor]:
    double = copy.deepcopy(unit).to_empty(device="cpu")
    # the caller's random state stays as it is; on the CPU, whatever the device: results do not depend on it
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in double.parameters():
            parameter.fill_(torch.nan)
        torch.manual_seed(seed)
        double.apply(lm._init_weights)
    return {name: parameter.detach() for name, parameter in double.named_parameters()}


def _without_padding(module: nn.Module) -> None:
    """An embedding's padding_idx would keep that token from learning, and here it is a token like others."""
    for table in module.modules():
        if isinstance(table, nn.Embedding):
            table.padding_idx = None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made here have no storage for their parameters, but real buffers."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with ExitStack() as stack:
        stack.callback(setattr, nn.Module, "register_parameter", register)
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
        yield
