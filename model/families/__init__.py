"""Causal language models of transformers other than Steel's, as the training engine needs them.

    configuration   read and check a configuration; what cannot be trained exactly is refused by name
    network         the module without storage, its blocks, its first weights (a seed, or a folder)
    attention       packed documents, and sliding windows, for every architecture
    head            hidden states to logits: factor, bias; the auxiliary loss of experts
    probe           the packed forward of a short row against transformers' own, one document at a time
    counts          parameters and floating-point operations
    folder          the export, under the model's own type

Imports torch, transformers, model.place and model.steel.attention; nothing of the engine.
"""

from model.families.configuration import FamilyError

__all__ = ["FamilyError"]
