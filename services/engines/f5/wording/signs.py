"""Abbreviations, ordinals, years: what a few signs beside a word or a number mean."""

from __future__ import annotations

import functools
import re
from typing import Final

from services.engines.f5.wording.facts import Gender
from services.engines.f5.wording.numbers import AFTER, BEFORE, INFLECTING, MINUS, Numbers, any_of

_SUFFIXES: Final[dict[str, dict[str, str]]] = {
    "en": dict.fromkeys(("st", "nd", "rd", "th"), "spellout-ordinal"),
    "es": {
        "º": "spellout-ordinal-masculine",
        ".º": "spellout-ordinal-masculine",
        "ª": "spellout-ordinal-feminine",
        ".ª": "spellout-ordinal-feminine",
        "er": "spellout-ordinal-masculine-adjective",
        ".er": "spellout-ordinal-masculine-adjective",
    },
    "fr": {
        "er": "spellout-ordinal-masculine",
        "re": "spellout-ordinal-feminine",
        "ère": "spellout-ordinal-feminine",
        "e": "spellout-ordinal-masculine",
        "ème": "spellout-ordinal-masculine",
        "es": "spellout-ordinal-masculine-plural",
    },
    "it": {
        "º": "spellout-ordinal-masculine",
        "°": "spellout-ordinal-masculine",
        "ª": "spellout-ordinal-feminine",
    },
    "nl": dict.fromkeys(("e", "de", "ste"), "spellout-ordinal"),
    "ru": {
        "-й": "spellout-ordinal-masculine",
        "-я": "spellout-ordinal-feminine",
        "-е": "spellout-ordinal-neuter",
        "-го": "spellout-ordinal-masculine-genitive",
        "-му": "spellout-ordinal-masculine-dative",
        "-м": "spellout-ordinal-masculine-locative",
        "-ю": "spellout-ordinal-feminine-accusative",
        "-х": "spellout-ordinal-plural-genitive",
    },
}
_MOST_ORDINAL: Final = 9_999
_GERMAN_BEFORE: Final = {
    "spellout-ordinal": "der|die|das",
    "spellout-ordinal-n": "am|beim|dem|den|des|einem|im|vom|zum|zur|einer",
}
_RUSSIAN_YEARS: Final = {"год": "", "года": "-genitive", "году": "-locative", "г.": "-genitive"}


class Signs:
    """The abbreviations, ordinals and years of one of the languages with wording of their own."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        facts = numbers.facts
        self._plain, self._closing = facts.abbreviations, facts.closing
        self._words = re.compile(rf"(?<![\w.])(?:{any_of({**self._plain, **self._closing})})(?!\w)")
        self._signs = facts.number_signs
        self._sign = re.compile(rf"(?<![\w&])(?P<sign>{any_of(self._signs)})\s?(?={numbers.pattern}{AFTER})")
        self._suffixes = _SUFFIXES.get(numbers.language, {})
        self._ordinal = re.compile(
            rf"{BEFORE}(?P<number>[0-9]{{1,4}})(?P<suffix>{any_of(self._suffixes)})(?!\w)"
        )
        year = r"(?P<year>1[1-9][0-9]{2}|20[0-9]{2})"
        self._year = re.compile(rf"(?<!\w)(?P<before>{facts.year_after})(?P<gap> ){year}{AFTER}")

    def abbreviations(self, text: str) -> str:
        """The text with its abbreviations in full."""
        text = self._words.sub(self._word, text)
        return self._sign.sub(lambda match: f"{self._signs[match['sign']]} ", text)

    def ordinals(self, text: str) -> str:
        """The text with its ordinals in words."""
        text = self._ordinal.sub(self._suffixed, text) if self._suffixes else text
        if self._numbers.language == "de":
            for rule, before in _GERMAN_BEFORE.items():
                pattern = rf"(?<!\w)(?P<before>(?i:{before})) (?P<number>[0-9]{{1,3}})\. (?=[A-ZÄÖÜ])"
                text = re.sub(pattern, functools.partial(self._german, rule), text)
        return text

    def years(self, text: str) -> str:
        """The text with the years in words that are surely years, where a language says them as such."""
        match self._numbers.language:
            case "ru":
                pattern = rf"{BEFORE}(?P<year>1[0-9]{{3}}|20[0-9]{{2}}) ?(?P<noun>года|году|год|г\.)(?!\w)"
                return re.sub(pattern, self._russian, text)
            case "en":
                text = re.sub(
                    rf"{BEFORE}(?P<year>1[0-9]{{3}}|20[0-9]{{2}}) ?(?P<era>BCE?|CE|AD)(?!\w)",
                    self._era,
                    text,
                )
                text = re.sub(rf"{BEFORE}(?P<year>1[1-9][0-9]0|20[0-9]0)s(?!\w)", self._decade, text)
        return self._year.sub(self._after, text)

    def _word(self, match: re.Match[str]) -> str:
        short = match[0]
        rest = match.string[match.end() :]
        if full := self._plain.get(short):
            # At the end of a text it is no title: Elm Dr.
            return full if rest.strip() and not _initial(match, rest) else short
        ends = not rest.strip() or re.match(r"[\"'”’»)\]]*\s+[^\W\d_a-zà-ÿа-яё]", rest)
        return f"{self._closing[short]}{'.' if ends else ''}"

    def _suffixed(self, match: re.Match[str]) -> str:
        value = int(match["number"])
        if not 0 < value <= _MOST_ORDINAL or not _fits(self._numbers.language, value, match["suffix"]):
            return match[0]
        return self._numbers.ordinal(value, self._suffixes[match["suffix"]]) or match[0]

    def _german(self, rule: str, match: re.Match[str]) -> str:
        said = self._numbers.ordinal(int(match["number"]), rule)
        return f"{match['before']} {said} " if said and int(match["number"]) else match[0]

    def _after(self, match: re.Match[str]) -> str:
        said = self._numbers.year(int(match["year"]))
        return f"{match['before']} {said}" if said else match[0]

    def _era(self, match: re.Match[str]) -> str:
        said = self._numbers.year(int(match["year"]))
        return f"{said} {match['era']}" if said else match[0]

    def _decade(self, match: re.Match[str]) -> str:
        said = self._numbers.year(int(match["year"]))
        if not said:
            return match[0]
        return f"{said[:-1]}ies" if said.endswith("y") else f"{said}s"

    def _russian(self, match: re.Match[str]) -> str:
        said = self._numbers.year_of_russian(int(match["year"]), _RUSSIAN_YEARS[match["noun"]])
        noun = "года" if match["noun"] == "г." else match["noun"]
        return f"{said} {noun}" if said else match[0]


class Counts:
    """Numbers with nothing beside them that says more."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._pattern = re.compile(rf"{BEFORE}{MINUS}(?P<number>{numbers.pattern}){AFTER}")

    def read(self, text: str) -> str:
        """The text with its numbers in words."""
        return self._pattern.sub(self._count, text)

    def _count(self, match: re.Match[str]) -> str:
        number = self._numbers.parse(match["number"], minus=bool(match["minus"]))
        if number is None or self._is_a_part(match):
            return match[0]
        following = re.match(r" ([^\W\d_]+)", match.string[match.end() :])
        gender = _gender(self._numbers.language, number.whole, following[1]) if following else None
        return self._numbers.words(number, gender) or match[0]

    def _is_a_part(self, match: re.Match[str]) -> bool:
        """Whether a number belongs to something that is not understood."""
        before, rest = match.string[max(0, match.start() - 8) : match.start()], match.string[match.end() :]
        language = self._numbers.language
        if language in INFLECTING and re.match(r"-\w", rest):
            return True
        if language in _POINTED and (follows := re.match(r"\.\s+(\w)", rest)) and follows[1].islower():
            return True
        return _spaced(before, match["number"], rest)


# A point after a number makes it an ordinal in these.
_POINTED: Final = frozenset(
    (
        "bs",
        "cs",
        "da",
        "de",
        "et",
        "fi",
        "fo",
        "hr",
        "hu",
        "is",
        "lb",
        "lv",
        "nb",
        "nn",
        "no",
        "pl",
        "sk",
        "sl",
    )
)
_ENDINGS: Final[dict[tuple[str, int], tuple[str, str]]] = {
    ("es", 1): (r"(?<!dí)(?<!problem)(?<!sistem)(?<!program)(?<!map)as?$", r"(?!)"),
    ("es", 0): (r"(?<!dí)(?<!problem)(?<!sistem)(?<!program)(?<!map)as$", r"(?!)"),
    ("it", 1): (r"a$", r"(?!)"),
    ("cs", 1): (r"a$", r"o$"),
    ("ru", 1): (r"[ая]$", r"[ое]$"),
    ("ru", 2): (r"[ыи]$", r"(?!)"),
}
"""What feminine and neuter nouns look like after a number by its last digit (1, 2, any other as 0)."""


def _gender(language: str, value: int, word: str) -> Gender | None:
    """Of the noun that a number stands before, by its looks; None where the word can be none."""
    if language == "de" and word[0].islower():
        return None
    last = value % 10 if value % 10 in (1, 2) and value % 100 not in (11, 12) else 0
    feminine, neuter = _ENDINGS.get((language, last), (r"(?!)", r"(?!)"))
    if re.search(feminine, word):
        return "f"
    return "n" if re.search(neuter, word) else "m"


def _initial(match: re.Match[str], rest: str) -> bool:
    """Whether a single capital is a name's initial, and not French for monsieur."""
    before = match.string[max(0, match.start() - 8) : match.start()]
    named = re.match(r"\s[^\W\d_a-zà-ÿ]", rest) is not None
    return match[0] == "M." and (not named or re.search(r"[A-Z]\.[ -]?$", before) is not None)


def _spaced(before: str, number: str, rest: str) -> bool:
    """Whether thousands seem to be parted by spaces in a language that does not do so."""
    ahead = re.match(r"[ \u00a0\u202f\u2009][0-9]{3}(?![0-9])", rest) is not None and len(number) <= 3
    behind = re.fullmatch(r"[0-9]{3}", number) and re.search(
        r"(?<![0-9])[0-9]{1,3}[ \u00a0\u202f\u2009]$", before
    )
    return ahead or bool(behind)


def _fits(language: str, value: int, suffix: str) -> bool:
    """Whether an ordinal's ending is that number's: 21st, and not 21th."""
    if language == "en":
        last = 0 if 10 <= value % 100 <= 20 else value % 10
        return suffix == {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    if language == "fr":
        return (suffix in ("er", "re", "ère")) == (value == 1)
    return True
