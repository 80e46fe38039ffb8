"""Cleaning recipes, the models they need, deduplication, decontamination."""
