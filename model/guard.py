"""Refuses the one installed package that would break transformers inside this repository.

Hugging Face publishes a package named `kernels`, as our lowest floor is. transformers looks for it by its installed
metadata and then imports names from whatever `import kernels` gives, which here is ours. Only a version that
transformers accepts makes it do so; others are harmless.
"""

from __future__ import annotations

from importlib import metadata

from packaging.version import Version

ACCEPTED_BY_TRANSFORMERS = (Version("0.18.2"), Version("0.19"))


def refuse_foreign_kernels() -> None:
    """Raise one clear line when the installed package `kernels` is of a version that transformers would use."""
    try:
        installed = Version(metadata.version("kernels"))
    except metadata.PackageNotFoundError:
        return
    low, high = ACCEPTED_BY_TRANSFORMERS
    if low <= installed < high:
        raise RuntimeError(
            f"The installed package kernels {installed} (Hugging Face) hides behind Steel's folder of that name and "
            f"breaks transformers: pip uninstall kernels, or install a version below {low}."
        )
