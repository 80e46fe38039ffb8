"""Data sets, as their hub has them: one node a source."""
