"""What can be known to be wrong with a run before any work starts, beyond what the settings refuse themselves.

Each check gives lines for a person. `complaints` are reasons not to start; `warnings` are said, and the run
goes on. Both take the settings and the number of GPUs alone, so that a plan for other machines (`GPUS=2x8xH100`)
is checked in the same way. The flow asks again at its start: a run may be triggered without the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from model.export import forms, splits
from model.training import resume
from model.training.config import ConfigError, ParallelConfig, undealable, unshardable
from tasks.clean import assets
from tasks.settings.config import SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.tokenize import tokenizer
from tasks.training import engine

_ATTENTION = {"flash_attention_4": "flash_attn.cute", "flash_attention_2": "flash_attn", "varlen": ""}
"""Attention that needs CUDA, and the module that it is imported from."""
CONTEXT = "max_position_embeddings"
OWN_LANGUAGE = ("infinity_instruct",)
"""Readers of dialogues that name each record's language."""


def complaints(config: SteelRun, stages: tuple[str, ...], gpus: int, nodes: int = 1) -> Iterator[str]:
    """Why this run cannot work on `nodes` machines with so many GPUs each; `stages` are those that will run."""
    yield from _device(config, stages, gpus)
    yield from (
        _context(config, stages, config.model.context) if config.model.own else _other_model(config, stages)
    )
    yield from _mixtures(config, stages)
    yield from _ranks(config, stages, gpus, nodes)
    yield from _data(config, stages)
    yield from _export(config, stages)
    yield from _held(config)
    yield from _artifacts(config.runtime.artifacts)


def warnings(config: SteelRun, stages: tuple[str, ...], gpus: int) -> Iterator[str]:
    """What is likely not meant, though it works."""
    for name, train in _trainings(config, stages):
        if train.steps and train.optim.warmup_steps >= train.steps:
            yield (
                f"{name}: warmup_steps {train.optim.warmup_steps} is not below steps {train.steps}: the learning rate "
                f"never reaches {train.optim.lr:g}"
            )
    for stage, mixture in (("dpo", config.dpo.mixture), ("rl", config.rl.mixture)):
        if stage in stages and mixture and not config.sft.variants:
            yield f"{stage}.mixture is given and sft.variants is empty: there is no model to start from, and no {stage}"
    yield from _learned_before(config, stages)
    for field, recipe in _float8(config, stages):
        if find_spec("torchao") is None:
            yield f"{field} is {recipe}, and torchao, which it needs, is not installed here: the training will end at once"
    asked = config.runtime.nproc
    if gpus and _on_gpus(config, gpus) and asked and asked > gpus:
        yield f"runtime.nproc is {asked} and there are {gpus} GPUs: {gpus} ranks are used"
    beside = config.runtime.parallel_trainings
    if _on_gpus(config, gpus) and "sft" in stages and len(config.sft.variants) > 1 < beside:
        each = ranks(config, "sft", gpus)
        if each * beside > gpus:
            yield (
                f"runtime.parallel_trainings is {beside}, and each training of sft takes {each} of {gpus} GPUs: no more than "
                f"{gpus // each} at a time; runtime.sft_nproc says how many each takes"
            )


def gpus_here() -> int:
    """GPUs of this machine. torch, which takes seconds to load, is asked only where a driver is."""
    if not any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")):
        return 0
    import torch

    return torch.cuda.device_count()


def ranks(config: SteelRun, stage: str, gpus: int) -> int:
    """Training processes of a stage on a machine with so many GPUs; as the engine's room decides it."""
    runtime = config.runtime
    numbers = (runtime.nproc,) if stage == "pretrain" else (runtime.sft_nproc, runtime.nproc)
    on_gpus = gpus if _on_gpus(config, gpus) else 0
    machine = engine.Machine("cuda" if on_gpus else "cpu", on_gpus, config.pretrain.precision)
    return engine.ranks(machine, next((number for number in numbers if number), None))


def _on_gpus(config: SteelRun, gpus: int) -> bool:
    return config.runtime.device != "cpu" and gpus > 0


def _trainings(config: SteelRun, stages: tuple[str, ...]) -> Iterator[tuple[str, Train]]:
    if "pretrain" in stages or "ablation" in stages:
        yield "pretrain", config.pretrain
    if "sft" in stages and config.sft.variants:
        yield "sft", config.sft.train
    if "dpo" in stages and config.dpo.mixture:
        yield "dpo", config.dpo.train
    if "rl" in stages and config.rl.mixture:
        yield "rl", config.rl.train


def _section(training: str) -> str:
    """Where the settings of a training stand."""
    return training if training == "pretrain" else f"{training}.train"


def _float8(config: SteelRun, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, train in _trainings(config, stages):
        if train.float8 != "off":
            yield f"{_section(name)}.float8", train.float8


def _device(config: SteelRun, stages: tuple[str, ...], gpus: int) -> Iterator[str]:
    runtime = config.runtime
    if runtime.device == "cuda" and not gpus:
        yield "runtime.device is cuda, and this machine has no GPU that torch can use: set runtime.device=auto or cpu"
    if runtime.attention in _ATTENTION:
        module = _ATTENTION[runtime.attention]
        if not _on_gpus(config, gpus):
            yield f"runtime.attention is {runtime.attention}, which runs on GPUs only: set runtime.attention=auto"
        elif module and find_spec(module.partition(".")[0]) is None:
            yield f"runtime.attention is {runtime.attention}, and the package {module} is not installed: auto takes what is"
    if runtime.kernels == "on" and not _on_gpus(config, gpus):
        yield "runtime.kernels is on, and the fused operators run on GPUs only: set runtime.kernels=auto"
    for field, recipe in _float8(config, stages):
        if not _on_gpus(config, gpus):
            yield f"{field} is {recipe}, which needs a GPU with FP8: set {field}=off"


def _other_model(config: SteelRun, stages: tuple[str, ...]) -> Iterator[str]:
    """Another model than Steel's can be built, and has positions enough. transformers knows, and takes seconds to load."""
    given = config.model.geometry
    if given.get("model_type") == "steel":  # an export of Steel's own, to continue from
        yield from _context(config, stages, config.model.context)
        return
    from model.families import FamilyError, configuration

    folder = config.model.pretrained
    try:
        if folder is None:
            built = configuration.from_fields({"vocab_size": config.tokenize.vocab_size, **given})
        else:
            built = configuration.from_folder(folder)
    except FamilyError as error:
        yield str(error)
        return
    name = built.attribute_map.get(CONTEXT, CONTEXT)
    yield from _context(config, stages, getattr(built, CONTEXT, None), name)


def _context(
    config: SteelRun, stages: tuple[str, ...], most: int | None, called: str = f"model.{CONTEXT}"
) -> Iterator[str]:
    lengths = {"tokenize.block_size": config.tokenize.block_size}
    if ("sft" in stages and config.sft.variants) or "ratio" in stages:
        lengths["sft.max_tokens"] = config.sft.max_tokens
    if "dpo" in stages and config.dpo.mixture:
        lengths["dpo.max_tokens"] = config.dpo.max_tokens
        if config.dpo.traits and config.dpo.held_out:
            # a held-out prompt may fill all but one token, and is answered
            lengths["dpo.max_tokens and dpo.trait_tokens together"] = (
                config.dpo.max_tokens - 1 + config.dpo.trait_tokens
            )
    if "rl" in stages and config.rl.mixture:
        # the effect is measured with replies of twice the length
        lengths["rl.max_prompt_tokens and twice rl.max_new_tokens together"] = (
            config.rl.max_prompt_tokens + 2 * config.rl.max_new_tokens
        )
    for name, length in lengths.items():
        if most and length > most:
            yield f"{name} is {length}, more than the model's context: {called} is {most}"
    given, own = config.model.vocabulary, config.tokenize.vocab_size
    if given and config.tokenize.tokenizer == "train" and given < own:
        yield f"the model's vocab_size is {given}, fewer than the tokenizer's {own} (tokenize.vocab_size)"


def _mixtures(config: SteelRun, stages: tuple[str, ...]) -> Iterator[str]:
    asked = []
    if "sft" in stages:
        asked += [(f"sft.variants.{name}", v.sets, "sft") for name, v in config.sft.variants.items()]
        yield from _ratios(config)
    if "dpo" in stages:
        asked.append(("dpo", config.dpo.mixture, "preference"))
    if "rl" in stages and config.rl.mixture:
        asked.append(("rl", {name: each.share for name, each in config.rl.mixture.items()}, "sft"))
    for place, mixture, use in asked:
        if not mixture and use == "sft":
            yield f"{place}.mixture is empty: name at least one data set"
        for name in mixture:
            source = config.sources.get(name)
            if source is None:
                known = ", ".join(config.using(use)) or "none"
                yield f"{place}.mixture names {name!r}, which is no source; with use: {use} there are: {known}"
            elif source.use != use:
                yield f"{place}.mixture names {name!r}, whose use is {source.use}, not {use}"


def _ratios(config: SteelRun) -> Iterator[str]:
    """A share of Chinese that data sets of their languages cannot give. A mixed one, or one whose reader knows the
    language of each record, is told when its records are read, before the training."""
    for name, variant in config.sft.variants.items():
        sources = [config.sources[each] for each in variant.sets if each in config.sources]
        languages = {s.language for s in sources}
        share = variant.zh_share
        if share is None or "mixed" in languages or any(s.reader in OWN_LANGUAGE for s in sources):
            continue
        if share > 0 and "zh" not in languages:
            yield f"sft.variants.{name}.zh_share is {share:g}, and none of its data sets is Chinese"
        if share < 1 and languages == {"zh"}:
            yield f"sft.variants.{name}.zh_share is {share:g}, and all of its data sets are Chinese"


def _ranks(config: SteelRun, stages: tuple[str, ...], gpus: int, nodes: int) -> Iterator[str]:
    """The ranks of every training can share its batch and the model."""
    micro = config.runtime.micro_batch_size
    parallel = ParallelConfig(**config.runtime.parallel.model_dump())
    for name, train in _trainings(config, stages):
        # an ablation trains with pretrain's batch on the ranks of a fine-tuning
        for stage in {"pretrain": [s for s in ("pretrain", "ablation") if s in stages]}.get(name, [name]):
            world = nodes * ranks(config, stage, gpus)
            if reason := undealable(train.batch_size, world, micro):
                yield f"{stage}: {reason} ({_section(name)}.batch_size, {world} ranks)"
            if reason := unshardable(parallel, world):
                yield f"{stage}: {reason} (runtime.parallel)"


def _data(config: SteelRun, stages: tuple[str, ...]) -> Iterator[str]:
    """Given models and tokenizers are what they should be; and something is left to train on."""
    folders, given = config.runtime.folders, config.clean.assets.models == "folder"
    if given and "clean" in stages:
        yield from _complaint(lambda: assets.check_given(folders.models))
    own = folders.tokenizer if config.tokenize.tokenizer == "folder" else None
    if own is not None and own.is_dir() and "tokenize" in stages:
        kept = config.model.pretrained is not None
        yield from _complaint(lambda: tokenizer.check_given(own, kept))
    weights, sources = config.tokenize.weights, config.using("pretrain")
    if "tokenize" in stages and not any(weights.get(name, 1) for name in sources):
        yield "no pre-training source is left: " + (
            "tokenize.weights are all 0" if sources else "no source has use: pretrain"
        )
    if "ablation" in stages and not config.tokenize.val_share:
        yield "tokenize.val_share is 0, and the ablation compares validation losses: hold some documents out"


def _learned_before(config: SteelRun, stages: tuple[str, ...]) -> Iterator[str]:
    """Questions that an effect is measured on, of sources that the start model is trained on before."""
    own, rl = config.dpo.on_policy.mixture, config.rl
    before = {f"sft.variants.{name}": set(v.sets) for name, v in config.sft.variants.items()}
    for stage, measured, held_out in (("dpo", own, config.dpo.held_out), ("rl", rl.mixture, rl.held_out)):
        if stage == "rl" and rl.start == "dpo":
            before = {**before, "dpo.on_policy": set(own)}
        places = [place for place, sets in before.items() if sets & set(measured)]
        if stage in stages and held_out and places:
            shared = sorted(set(measured) & set().union(*(before[place] for place in places)))
            yield (
                f"{stage}: held-out questions of {', '.join(shared)} may be in the training of the start model, by "
                f"{', '.join(places)}: what is measured on them is no answer to a new question"
            )


def _export(config: SteelRun, stages: tuple[str, ...]) -> Iterator[str]:
    """The model can leave in every form that is wanted, known before it is trained."""
    if "export" not in stages:
        return
    if stages[-1] == "export" and not config.export.forms:
        yield f"export.forms is empty: name the forms to write ({', '.join(forms.FORMS)})"
    for form in config.export.forms:
        yield from (f"export.forms: {line}" for line in _complaint_of_form(config, form))


def _complaint_of_form(config: SteelRun, form: str) -> Iterator[str]:
    geometry = config.model.geometry
    if reason := forms.refusal(form, geometry, fold_cosine=config.export.fold_cosine):
        yield reason
    elif form == "gguf":
        if find_spec("gguf") is None:
            yield "gguf needs the package gguf (requirements.txt), which is not installed"
        own = config.runtime.folders.tokenizer if config.tokenize.tokenizer == "folder" else None
        if own is not None and (own / "tokenizer.json").is_file():
            yield from _complaint(lambda: splits.split_name(own))


def _held(config: SteelRun) -> Iterator[str]:
    yield from _complaint(lambda: resume.check_allowed(config.runtime.allow_changed))


def _artifacts(folder: Path) -> Iterator[str]:
    """The folder of all results, or the nearest one above it that exists, can be written."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield f"runtime.artifacts={folder}: {place} is no folder that can be written"


def _complaint(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except (NodeError, ConfigError, forms.FormError) as error:
        yield str(error)


def refuse(config: SteelRun, stages: tuple[str, ...], gpus: int) -> list[str]:
    """NodeError with every complaint, a line each; else the warnings."""
    if lines := list(complaints(config, stages, gpus)):
        raise NodeError("\n".join(lines))
    return list(warnings(config, stages, gpus))
