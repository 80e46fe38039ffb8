"""Where the repository lies: the floors are run from it, never installed."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
