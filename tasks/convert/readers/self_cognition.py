"""Self-awareness templates: who the model is and who made it, with our names put in.

Understood are the placeholders {{name}} and {{author}} (LLaMA-Factory's identity.json), <NAME> and
<AUTHOR>, and the names that a template set was written with (option `replace`, longest first; the
default covers EmoLLM's).
"""

import re

from tasks.convert.readers import Options, Reader
from tasks.convert.readers._instruction import exchange


class SelfCognitionOptions(Options):
    name: str = "Steel"
    author: str = "Steel"
    replace: dict[str, str] = {
        "EmoLLM团队": "{{author}}",
        "EmoLLM Team": "{{author}}",
        "EmoLLM": "{{name}}",
    }
    """Names in the templates -> {{name}}, {{author}} or any other text."""


def convert(item, options, file):
    record = exchange(item)
    for message in record["messages"]:
        message["content"] = _with_names(message["content"], options)
    return record


def _with_names(content, options):
    names = {"{{name}}": options.name, "{{author}}": options.author}
    names |= {"<NAME>": options.name, "<AUTHOR>": options.author}
    names |= {old: names.get(new, new) for old, new in options.replace.items()}
    # one pass over the text, so that a name put in is not replaced again
    pattern = "|".join(re.escape(old) for old in sorted(names, key=len, reverse=True))
    return re.sub(pattern, lambda found: names[found[0]], content)


READER = Reader(convert, makes="sft", options=SelfCognitionOptions)
