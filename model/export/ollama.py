"""The Modelfile of Ollama beside a GGUF file: template, system turn, stops, and decoding as Steel's own.

Ollama lays a template of its own over a file whose Jinja looks like one it knows, and older versions ignore the Jinja:
so the dialogue's form is written in Go's template language, too. Only Steel's chat format is known here.
"""

from __future__ import annotations

from model.chat_template import DOCUMENT_END, SYSTEM, TURN_END, TURN_START

TEMPLATE = (
    "{{ range .Messages }}"
    + f"{TURN_START}{{{{ .Role }}}}\n{{{{ .Content }}}}{TURN_END}\n"
    + "{{ end }}"
    + f"{TURN_START}assistant\n"
)
"""ChatML. Ollama puts SYSTEM before a dialogue that begins without a system turn, as Steel does."""
STOPS = (TURN_END, DOCUMENT_END)


def modelfile(gguf: str, context: int) -> str:
    """The text of a Modelfile for a GGUF file in the same folder. `context`: tokens that the model was trained for."""
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{TEMPLATE}"""',
        f'SYSTEM "{SYSTEM}"',
        *(f'PARAMETER stop "{stop}"' for stop in STOPS),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"
