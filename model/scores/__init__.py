"""How log-probabilities are computed: the engine behind model.scoring.

head       hidden states to log-probabilities of chosen tokens, in fp32
network    how one model may be asked: what may be padded, what may be shared; proven on a batch
plan       token sequences as a tree of shared beginnings
cache      keys and values of a beginning, in the hands of many sequences
walk       a forward pass for every node of that tree
"""
