"""How the report looks and how it writes numbers: one palette, one font stack, one way to round."""

from __future__ import annotations

from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
"""What every page includes: page.css.j2."""

INK, MUTED, FAINT, HAIRLINE, PAPER = "#1b2430", "#5d6b7a", "#98a4b1", "#dfe4ea", "#ffffff"
STEEL, AMBER, TEAL, BRICK, PLUM, OLIVE = "#2f5f8f", "#c98a2b", "#2c8c82", "#b2493f", "#7a5a94", "#77842f"
SERIES = (STEEL, AMBER, TEAL, BRICK, PLUM, OLIVE)
LANGUAGES = {"zh": STEEL, "en": AMBER, "code": TEAL, "mixed": PLUM}
FATES = {
    "kept": STEEL,
    "filtered out": AMBER,
    "duplicates": TEAL,
    "decontaminated": PLUM,
    "quarantined": BRICK,
}

FONTS = (
    "'Inter','Segoe UI','Helvetica Neue',Arial,'PingFang SC','Hiragino Sans GB',"
    "'Microsoft YaHei','Noto Sans CJK SC','Source Han Sans SC',sans-serif"
)


def count(n: float) -> str:
    """12,345"""
    return f"{n:,.0f}"


def big(n: float) -> str:
    """1.12 B, 3.4 M, 12 k: for prose and tiles."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            value = n / size
            return f"{value:.2f} {letter}" if value < 10 else f"{value:.1f} {letter}"
    return f"{n:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.8512 → 85.1 (the unit stands in the table's head)."""
    return f"{100 * share:.{digits}f}"


def interval(ci: tuple[float, float] | list[float]) -> str:
    """95 % interval in percent: 83.9 – 89.2"""
    return f"{100 * ci[0]:.1f} – {100 * ci[1]:.1f}"


def p_value(p: float | None) -> str:
    """Three decimals at most; a tiny one as a bound."""
    if p is None:
        return "–"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"


def duration(seconds: float) -> str:
    """0.84 s, 12.3 s, 4 min 05 s, 3 h 12 min, 29 d 4 h"""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
