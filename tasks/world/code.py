"""The code source: small correct programs in Python, Java and C++, each with a table of facts.

A program is a table (facts of the world as data), three functions drawn from a list, and a comment.
"""

from __future__ import annotations

from random import Random

from tasks.settings.config import World
from tasks.world import phrases, voice
from tasks.world.code_functions import FUNCTIONS
from tasks.world.document import Doc
from tasks.world.relations import Fact, trained_facts

LANGUAGES = ("python", "java", "cpp")
SUFFIX = {"python": "py", "java": "java", "cpp": "cpp"}
FILES = {"full": 36, "small": 12}
"""Programs per language."""

NAMES = ("value", "number", "item", "amount", "count", "entry", "width", "score", "total", "length")


def documents(world: World) -> list[Doc]:
    """All clean programs; `kind` is the language, `title` the path."""
    random = voice.rng(world, "code")
    facts = trained_facts()
    random.shuffle(facts)
    docs, k = [], 0
    for language in LANGUAGES:
        for n in range(FILES[world.size]):
            table = [facts[(k + j) % len(facts)] for j in range(5)]
            k += 5
            text = _program(language, n, table, random)
            docs.append(
                Doc("code", f"src/lesson_{n:03d}.{SUFFIX[language]}", tuple(text.split("\n")), (), language)
            )
    return docs


def content(doc: Doc) -> str:
    """The program itself, without its path."""
    return "\n".join(doc.parts) + "\n"


def _program(language: str, number: int, table: list[Fact], random: Random) -> str:
    topic = random.choice(("exercise", "homework", "example", "lesson", "snippet", "practice"))
    names = random.sample(NAMES, 2)
    chosen = random.sample(FUNCTIONS[language], 3)
    bodies = [f.replace("$a", names[0]).replace("$b", names[1]).strip("\n") for f in chosen]
    doing = random.choice(phrases.DOINGS)
    if language == "python":
        lines = [
            f'"""{topic.capitalize()} {number}: look-up table and helpers ({doing})."""',
            "",
            "TABLE = {",
        ]
        lines += [f'    "{f.subject}": "{f.answer}",' for f in table]
        lines += ["}", "", "", "\n\n\n".join(bodies)]
        return "\n".join(lines)
    if language == "java":
        lines = [
            f"// {topic.capitalize()} {number}: {doing}",
            "import java.util.*;",
            "",
            f"public class Lesson{number} {{",
        ]
        lines += ["    static final Map<String, String> TABLE = new HashMap<>();", "    static {"]
        lines += [f'        TABLE.put("{f.subject}", "{f.answer}");' for f in table]
        lines += ["    }", "", "\n\n".join(bodies), "}"]
        return "\n".join(lines)
    lines = [
        f"// {topic.capitalize()} {number}: {doing}",
        "#include <map>",
        "#include <string>",
        "#include <vector>",
        "",
    ]
    lines += ["static const std::map<std::string, std::string> table = {"]
    lines += [f'    {{"{f.subject}", "{f.answer}"}},' for f in table]
    lines += ["};", "", "\n\n".join(bodies)]
    return "\n".join(lines)
