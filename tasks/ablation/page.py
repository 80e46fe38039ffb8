"""The self-contained page of a study: templates/study.html.j2 is the frame, a study's own template fills it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tasks.figures import style

TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, figure: str, **values: Any) -> str:
    """A study's template with its values; `figure` is the text of an SVG."""
    import jinja2

    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES, style.TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(count=style.count, big=style.big)
    uri = "data:image/svg+xml;base64," + base64.b64encode(figure.encode()).decode()
    return jinja.get_template(template.name).render(fonts=style.FONTS, style=style, figure=uri, **values)
