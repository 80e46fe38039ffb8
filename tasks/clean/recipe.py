"""Recipes: which Data-Juicer operators clean a kind of record, with which parameters, and why.

A recipe file is data, not code. Data-Juicer itself would execute what stands in one (lambda
strings, paths of Python files, packages to install), so only the operators and parameters named
here pass, each parameter with its type. Read by `nodes()`: nothing here imports Data-Juicer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import regex
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.settings.errors import NodeError, complaint, one_line

FOLDER = Path(__file__).parent / "recipes"
KINDS = ("text", "dialogue", "code")
Language = Literal["zh", "en"]


def _compiles(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Parameters(BaseModel):
    """Base of every operator's parameters: what is not listed is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoParameters(Parameters):
    pass


class ChineseConvert(Parameters):
    mode: Literal["t2s", "tw2s", "tw2sp", "hk2s"]


class Replace(Parameters):
    """clean_email, clean_ip, clean_links: what to look for (the operator's own pattern if absent)."""

    pattern: Pattern | None = None
    repl: str = ""


class ReplaceContent(Parameters):
    pattern: Pattern
    repl: str = ""


class FixUnicode(Parameters):
    normalization: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"


class CleanMarkup(Parameters):
    keep_examples: bool = False


class FixEncoding(Parameters):
    html_entities: bool = True


class RemoveRepeatSentences(Parameters):
    lowercase: bool = False
    ignore_special_character: bool = True
    min_repeat_sentence_length: Count = 2


class RemoveSpecificChars(Parameters):
    chars_to_remove: str


class Alphanumeric(Parameters):
    tokenization: bool = False
    """True: alphabetic characters per token of the tokenizer in the assets, which is above 1."""
    min_ratio: float = Field(0.25, ge=0)
    max_ratio: float = Field(1e9, ge=0)


class Length(Parameters):
    """average_line_length, maximum_line_length, text_length: closed interval, in characters."""

    min_len: Count
    max_len: Count = 10**9


class RatioRange(Parameters):
    min_ratio: Ratio = 0.0
    max_ratio: Ratio


class CharacterRepetition(RatioRange):
    rep_len: Annotated[int, Field(ge=1)] = 10


class WordRepetition(CharacterRepetition):
    lang: Language
    tokenization: bool = False


class WordsNum(Parameters):
    lang: Language
    tokenization: bool = False
    min_num: Count
    max_num: Count = 10**9


class Perplexity(Parameters):
    lang: Language
    min_ppl: float = Field(0, ge=0)
    max_ppl: float = Field(gt=0)


ALLOWED: dict[str, type[Parameters]] = {
    "chinese_convert_mapper": ChineseConvert,
    "clean_copyright_mapper": NoParameters,
    "clean_email_mapper": Replace,
    "clean_html_mapper": NoParameters,
    "clean_ip_mapper": Replace,
    "clean_links_mapper": Replace,
    "expand_macro_mapper": NoParameters,
    "fix_unicode_mapper": FixUnicode,
    "punctuation_normalization_mapper": NoParameters,
    "remove_repeat_sentences_mapper": RemoveRepeatSentences,
    "remove_specific_chars_mapper": RemoveSpecificChars,
    "replace_content_mapper": ReplaceContent,
    "whitespace_normalization_mapper": NoParameters,
    # Steel's own, registered with Data-Juicer by tasks/clean/own_operators.py
    "steel_chinese_convert_mapper": ChineseConvert,
    "steel_clean_html_mapper": CleanMarkup,
    "steel_clean_ip_mapper": NoParameters,
    "steel_clean_links_mapper": NoParameters,
    "steel_fix_encoding_mapper": FixEncoding,
    "alphanumeric_filter": Alphanumeric,
    "average_line_length_filter": Length,
    "character_repetition_filter": CharacterRepetition,
    "maximum_line_length_filter": Length,
    "perplexity_filter": Perplexity,
    "special_characters_filter": RatioRange,
    "text_length_filter": Length,
    "word_repetition_filter": WordRepetition,
    "words_num_filter": WordsNum,
}


class Step(BaseModel):
    """One operator of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str
    parameters: dict[str, Any] = {}
    language: Language | None = None
    """Only records mostly written in this language (tasks/clean/language.py); None: all."""
    min_chars: Count = 0
    """Only records of at least so many characters: ratios and perplexity of a few words say little."""

    engine: Literal["fast", "reference"] = "fast"
    """`reference`: Data-Juicer's own operator also where Steel has a faster one of the same result."""

    spare_code: bool = False
    """Mappers only: leave fenced and `inline` code as it is; addresses in an example program stay."""

    @model_validator(mode="after")
    def _allowed(self) -> Step:
        if self.operator not in ALLOWED:
            raise ValueError(
                f"{self.operator!r} is not an allowed operator (tasks/clean/recipe.py lists them)"
            )
        ALLOWED[self.operator].model_validate(self.parameters)
        return self

    @property
    def is_filter(self) -> bool:
        return self.operator.endswith("_filter")

    def settings(self) -> dict[str, Any]:
        """The parameters as handed to the operator."""
        parameters = ALLOWED[self.operator].model_validate(self.parameters)
        return parameters.model_dump(exclude_none=True)


Steps = dict[str, list[Step]]
"""Kind of record -> the steps of its recipe."""


class NearDuplicates(BaseModel):
    """How documents of this kind are compared: document_simhash_deduplicator and Steel's check of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenization: Literal["space", "punctuation", "character"]
    window_size: Annotated[int, Field(ge=1)] = 6
    ignore_pattern: Pattern | None = None
    num_blocks: Annotated[int, Field(ge=2)] = 6
    hamming_distance: Annotated[int, Field(ge=1)] = 4
    min_similarity: Ratio | None = None
    """Jaccard similarity of the shingles that a SimHash match must also have; None: believe SimHash."""
    every_length: bool = False
    """Also texts shorter than clean.dedup_min_chars (as the paper did)."""

    @model_validator(mode="after")
    def _searchable(self) -> NearDuplicates:
        if self.hamming_distance >= self.num_blocks:
            raise ValueError("hamming_distance must be below num_blocks, or the search misses pairs")
        return self


class Recipe(BaseModel):
    """One YAML file of tasks/clean/recipes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["text", "dialogue", "code"]
    steps: list[Step]
    near_duplicates: NearDuplicates


def load(path: Path) -> Recipe:
    """Read and check one recipe file; what is wrong with it is told in one line."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        return Recipe.model_validate(content)
    except FileNotFoundError:
        raise NodeError(f"there is no recipe {path.name} in {path.parent}") from None
    except yaml.YAMLError as error:
        raise NodeError(f"recipe {path.name} is not YAML: {one_line(error)}") from None
    except ValidationError as error:
        raise NodeError(f"recipe {path.name}: {complaint(error)}") from None


def load_set(name: str) -> dict[str, Recipe]:
    """The recipe of every kind of record in the set `name`, such as `steel`."""
    recipes = {kind: load(FOLDER / f"{name}-{kind}.yaml") for kind in KINDS}
    for kind, recipe in recipes.items():
        if recipe.kind != kind:
            raise NodeError(f"recipe {name}-{kind}.yaml says kind: {recipe.kind}")
    return recipes
