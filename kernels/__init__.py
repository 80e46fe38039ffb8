"""Fused operators, one file each. This package stays light and carries no version: transformers probes for
an unrelated package of the same name (docs/architecture.md)."""
