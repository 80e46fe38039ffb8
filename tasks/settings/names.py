"""Names that people give to sources and variants: which are taken, and what is made from them.

A name becomes part of a folder (`artifacts/convert/<name>-<fingerprint>`), a node (`convert:<name>`), an input
role, an MLflow name and a Prefect artifact key. Letters of any script, digits, spaces and most signs are taken.
Refused is what would leave a folder, cannot be a file name, or means something else in a node reference.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

MOST_BYTES = 120
"""UTF-8 bytes of a name: a folder adds 17 to it, a file system takes 255."""
_SIGNS = frozenset('/\\:#,*?"<>|')
"""Separators of paths, node references and lists, and what other file systems refuse."""
_RESERVED = {
    "source": (
        *("assets", "dedup", "decontaminate", "tokenizer", "manifest"),  # nodes beside those of sources
        *("raw", "records", "drops", "shards", "model", "base", "reference"),  # input roles beside sources
    ),
    "variant": ("select", "tokenizer"),
    "model": ("table", "texts"),
}
_JOINERS = "\u200c\u200d"
"""Not seen themselves, but Persian and Indian words and many emoji are written with them."""
_PLAIN = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def complaint(name: str, kind: str) -> str:
    """Why this cannot be the name of a `source`, `variant` or `model`; "" if it can."""
    shown = ascii(name) if not name.isprintable() else repr(name)
    if not name or name != name.strip():
        return f"{kind} {shown}: a name must not be empty, and not begin or end with a space"
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Cn", "Zl", "Zp") for sign in name):
        return f"{kind} {shown}: a name must not hold control characters or bytes that are no UTF-8"
    if any(unicodedata.category(sign) == "Cf" and sign not in _JOINERS for sign in name):
        return f"{kind} {shown}: a name must not hold signs that are not seen, such as marks of the writing direction"
    if signs := [sign for sign in name if sign in _SIGNS]:
        return f"{kind} {shown}: a name must not hold {' '.join(dict.fromkeys(signs))}"
    if name.startswith((".", "-")) or name.endswith("."):
        return f"{kind} {shown}: a name must not begin with a dot or a dash, or end with a dot"
    if name != unicodedata.normalize("NFC", name):
        return f"{kind} {shown}: write it in Unicode's composed form (NFC); a file system may change it otherwise"
    if (size := len(name.encode())) > MOST_BYTES:
        return f"{kind} {shown}: a name takes at most {MOST_BYTES} bytes in UTF-8, this one has {size}"
    if name.endswith(".drops") or name in _RESERVED[kind]:
        return f"{kind} {shown}: this name is Steel's own; choose another"
    return ""


def artifact_key(name: str) -> str:
    """A Prefect artifact key (a to z, 0 to 9 and dashes): two names never share one.

    >>> artifact_key("convert:demo_exam")
    'convert-demo-exam'
    """
    parts = name.split(":")
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if all(map(_PLAIN.fullmatch, parts)):
        return plain
    return f"{plain or 'node'}-{_short_hash(name)}"


def metric_name(name: str) -> str:
    """A name that MLflow takes (letters of any script, digits and _ - . space : /): two names never share one."""
    readable = name.replace("@", "_at_").replace("%", "pct")
    taken = re.sub(r"[^\w\-. :/]", "_", readable)
    return taken if taken == name else f"{taken}_{_short_hash(name)}"


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
