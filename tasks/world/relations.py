"""What the world knows: relations, their facts, and which facts are kept out of training.

A relation joins a table (subject -> answer), its wordings, and a partner: another relation about the
same subjects, whose answers serve as misleading options in the exam. Held-out facts are chosen by
hand among those whose answer cannot be guessed from the letters of the subject.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from tasks.world.tables import chemistry, column, geography, history, language, nature
from tasks.world.wordings import Wordings
from tasks.world.wordings.culture import CULTURE
from tasks.world.wordings.english import ENGLISH
from tasks.world.wordings.geography import GEOGRAPHY
from tasks.world.wordings.language import LANGUAGE
from tasks.world.wordings.science import SCIENCE

WORDINGS: dict[str, Wordings] = {**SCIENCE, **GEOGRAPHY, **LANGUAGE, **CULTURE, **ENGLISH}


@dataclass(frozen=True)
class Fact:
    relation: str
    subject: str
    answer: str
    held_out: bool = False

    @property
    def id(self) -> str:
        return f"{self.relation}/{self.subject}"


@dataclass(frozen=True)
class Relation:
    key: str
    domain: str
    """Documents prefer facts of one domain."""
    language: str
    subject_type: str
    answer_type: str
    facts: tuple[Fact, ...] = field(repr=False)
    partner: str | None = None
    wordings: Wordings = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "wordings", WORDINGS[self.key])

    @property
    def trained(self) -> list[Fact]:
        return [f for f in self.facts if not f.held_out]

    @property
    def held_out(self) -> list[Fact]:
        return [f for f in self.facts if f.held_out]

    @property
    def shared_answers(self) -> bool:
        """Several subjects have the same answer (a class, a continent, a season)."""
        return len({f.answer for f in self.facts}) < len(self.facts)


def _relation(
    key: str,
    domain: str,
    types: str,
    pairs: list[tuple[str, str]],
    held_out: str = "",
    partner: str | None = None,
    language_: str = "zh",
) -> Relation:
    subject_type, _, answer_type = types.partition(" -> ")
    kept_out = set(held_out.split())
    unknown = kept_out - {s for s, _ in pairs}
    if unknown:
        raise ValueError(f"{key}: held-out subjects {sorted(unknown)} are not in the table")
    facts = tuple(Fact(key, s, a, s in kept_out) for s, a in pairs)
    return Relation(key, domain, language_, subject_type, answer_type, facts, partner)


@cache
def relations() -> dict[str, Relation]:
    """All relations by key, in a fixed order."""
    elements, provinces, countries = chemistry.ELEMENTS, geography.PROVINCES, geography.COUNTRIES
    idioms, units, opposites = history.IDIOMS, nature.UNITS, language.OPPOSITES
    en = "en"
    everything = [
        _relation(
            "element_symbol",
            "science",
            "element -> symbol",
            column(elements, 1),
            "铬 溴 钌 氩",
            "element_number",
        ),
        _relation(
            "element_number",
            "science",
            "element -> number",
            column(elements, 2),
            "锰 锌 钇 硒",
            "element_symbol",
        ),
        _relation("unit_symbol", "science", "unit -> symbol", column(units, 1), "", "unit_quantity"),
        _relation("unit_quantity", "science", "unit -> quantity", column(units, 2), "", "unit_symbol"),
        _relation("square", "science", "number -> number", column(nature.SQUARES, 1)),
        _relation("animal_class", "nature", "animal -> class", column(nature.ANIMALS, 1)),
        _relation(
            "term_season", "nature", "solar term -> season", column(nature.TERMS, 1), "惊蛰 芒种 处暑 小寒"
        ),
        _relation(
            "province_capital",
            "geography",
            "province -> city",
            column(provinces, 1),
            "山西 江苏 四川 甘肃",
            "province_short",
        ),
        _relation(
            "province_short",
            "geography",
            "province -> character",
            column(provinces, 2),
            "福建 湖南 云南 山东",
            "province_capital",
        ),
        _relation(
            "country_capital",
            "geography",
            "country -> city",
            column(countries, 1),
            "芬兰 缅甸 古巴 伊朗",
            "country_code",
        ),
        _relation(
            "country_code",
            "geography",
            "country -> code",
            column(countries, 2),
            "波兰 越南 秘鲁 希腊",
            "country_capital",
        ),
        _relation(
            "country_continent", "geography", "country -> continent", column(geography.CONTINENTS, 1), ""
        ),
        _relation(
            "sight_province",
            "geography",
            "sight -> province",
            column(geography.SIGHTS, 1),
            "庐山 嵩山 千山 莫高窟",
        ),
        _relation(
            "antonym", "language", "word -> word", column(opposites, 1), "勤劳 公开 拥挤 勇敢", "zh_en"
        ),
        _relation(
            "zh_en",
            "language",
            "word -> English word",
            column(opposites, 2),
            "诚实 简单 陌生 温暖",
            "antonym",
        ),
        _relation(
            "en_zh",
            "language",
            "English word -> word",
            column(language.WORDS, 1),
            "bridge purple spider Saturn",
        ),
        _relation(
            "festival_date",
            "history",
            "festival -> date",
            column(nature.FESTIVALS, 1),
            "植树节 护士节 记者节 建军节",
        ),
        _relation(
            "dynasty_founder",
            "history",
            "dynasty -> person",
            column(history.DYNASTIES, 1),
            "北魏 隋朝 后周 南宋",
        ),
        _relation(
            "work_author", "history", "work -> person", column(history.WORKS, 1), "茶经 牡丹亭 围城 水浒传"
        ),
        _relation(
            "idiom_meaning",
            "history",
            "idiom -> meaning",
            column(idioms, 2),
            "东山再起 画蛇添足 井底之蛙 拔苗助长",
            "idiom_person",
        ),
        _relation("idiom_person", "history", "idiom -> person", column(idioms, 1), "", "idiom_meaning"),
        _relation(
            "invention_person",
            "history",
            "invention -> person",
            column(history.INVENTIONS, 1),
            "电池 听诊器 赵州桥 炸药",
        ),
        _relation(
            "capital_en",
            "english",
            "country -> city",
            column(geography.CAPITALS_EN, 1),
            "Poland Peru Ireland Egypt",
            None,
            en,
        ),
        _relation(
            "state_en",
            "english",
            "state -> city",
            column(geography.STATES_EN, 1),
            "Ohio Hawaii Nebraska Virginia",
            None,
            en,
        ),
        _relation(
            "past_en", "english", "verb -> verb", column(language.VERBS_EN, 1), "", "participle_en", en
        ),
        _relation(
            "participle_en", "english", "verb -> verb", column(language.VERBS_EN, 2), "", "past_en", en
        ),
        _relation(
            "opposite_en",
            "english",
            "word -> word",
            column(language.OPPOSITES_EN, 1),
            "heavy love sweet summer",
            None,
            en,
        ),
    ]
    return {r.key: r for r in everything}


@cache
def by_subject() -> dict[tuple[str, str], Fact]:
    """(relation, subject) -> fact."""
    return {(r.key, f.subject): f for r in relations().values() for f in r.facts}


def trained_facts() -> list[Fact]:
    return [f for r in relations().values() for f in r.trained]


def partner_answer(fact: Fact) -> str | None:
    """The subject's answer in the partner relation, if that was trained."""
    partner = relations()[fact.relation].partner
    other = by_subject().get((partner, fact.subject)) if partner else None
    return other.answer if other and not other.held_out else None
