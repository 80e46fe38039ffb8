"""Data-Juicer's operators, the same results in a fraction of the time.

Every class here subclasses the operator that it stands for, is registered with Data-Juicer as
`fast_<its name>`, and gives the same texts and statistics; tests/clean holds them to that on fuzzed
texts and on real ones. A recipe names the original; `operators.load` takes the fast one unless the
step says `engine: reference`.

How: most operators change few texts, so a search for the characters that they need comes first and
the original runs on what is left (gates.py, encoding.py); sentences are split by whole-text replacing
(sentences.py); ratios are table look-ups over code points and repeated n-grams a sort of hashes in
numpy (filters.py, ngrams.py); one hash per distinct shingle (simhash.py).

Imported by `operators.prepare`, never before it: the import pulls in Data-Juicer, whose run-time
installer must be denied first.
"""

from tasks.clean.fast import encoding, filters, gates, sentences, simhash

PREFIX = "fast_"

__all__ = ["PREFIX", "encoding", "filters", "gates", "sentences", "simhash"]
