"""One self-contained page, the same numbers for machines, and a model card."""
