"""Numbers as they are written in a language, and in words.

The words are CLDR's rule-based number formats, run by ``unicode-rbnf``. What those rules cannot say is None
here, and is left as it is written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from babel import Locale, UnknownLocaleError
from unicode_rbnf import RbnfEngine
from unicode_rbnf.engine import RbnfError

from services.engines.f5.wording.facts import FACTS, Facts, Gender

MAX_DIGITS: Final = 15
SPACE: Final = "[ \u00a0\u202f\u2009]"

# A number is one of its own: no part of a word, of a version, of an address, of a date that cannot be read.
# Lookbehinds are of fixed width, hence several.
BEFORE: Final = r"(?<!\w)(?<![\w][.,:/@=_\\])(?<![0-9][-–—−’'])(?<![$€£¥₽§+])(?<![$€£¥₽][-−])"
AFTER: Final = r"(?!\w)(?![.:/@=_\\]\w)(?!,[0-9])(?![-–—−][0-9])(?!['’][0-9])(?![°%‰])"
MINUS: Final = r"(?:(?<![^\s(\[«„“\"'])(?P<minus>[-−]))?"

INFLECTING: Final = ("ru", "cs")
"""Languages that inflect a number within a word: пятиэтажный."""

_SCRIPTS_WITHOUT_SPACES: Final = frozenset({"zh", "ja", "yue", "th", "lo", "km", "my"})
_RBNF_NAMES: Final = {"nb": "no"}
_VERBOSE: Final = frozenset({"GB", "AU", "NZ", "IE", "ZA", "IN"})
_DEFAULT: Final = Facts(point="", to="", rules={})


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written: its sign, whole part and decimals."""

    whole: int
    decimals: str = ""
    minus: bool = False
    zeros: str = ""
    """Its digits, where it begins with a zero that counts: a code, not a quantity."""

    @property
    def value(self) -> Decimal:
        """How much it is; the decimals are kept, which CLDR's plurals look at."""
        found = Decimal(f"{self.whole}.{self.decimals}" if self.decimals else self.whole)
        return -found if self.minus else found


class Numbers:
    """The numbers of one language.

    Args:
        locale: of the language.
        engine: CLDR's rules for its numbers.
    """

    def __init__(self, locale: Locale, engine: RbnfEngine) -> None:
        self.locale = locale
        self.language: str = locale.language
        self.facts = FACTS.get(locale.language, _DEFAULT)
        self._engine = engine
        symbols = locale.number_symbols.get("latn") or locale.number_symbols
        self._group, self._decimal = str(symbols["group"]), str(symbols["decimal"])
        groups = f"[{re.escape(self._group)}\u00a0\u202f\u2009]"
        if self._group in "\u00a0\u202f\u2009" or self.language == "es":
            groups = f"[ {groups[1:]}"
        elif self._group == "’":
            groups = f"['{groups[1:]}"
        self.pattern = rf"(?:[0-9]{{1,3}}(?:{groups}[0-9]{{3}})+|[0-9]+)(?:{re.escape(self._decimal)}[0-9]+)?"
        """A number without its sign, with this language's separators."""
        rules = self.facts.rules
        if self.language == "en" and locale.territory in _VERBOSE:
            rules = dict.fromkeys(rules, "spellout-cardinal-verbose")
        self._rules = rules

    def parse(self, text: str, *, minus: bool = False) -> Number | None:
        """What :attr:`pattern` found; None where it is too long to be said as a quantity."""
        whole, _, decimals = text.partition(self._decimal)
        digits = re.sub(r"[^0-9]", "", whole)
        if len(digits) > MAX_DIGITS or len(decimals) > MAX_DIGITS:
            return None
        zeros = digits if len(digits) > 1 and digits[0] == "0" else ""
        return None if zeros and decimals else Number(int(digits), decimals, minus, zeros)

    def words(self, number: Number, gender: Gender | None = None) -> str | None:
        """A number in words.

        Args:
            number: whichever.
            gender: of the noun that it stands before; None where it stands alone.
        """
        if number.zeros:
            said = self.digits(number.zeros)
        elif number.decimals:
            said = self._decimals(number)
        else:
            said = self.cardinal(number.whole, gender)
        if said is None or not number.minus:
            return said
        below = self._rule(-1, "spellout-numbering")
        one = self._rule(1, "spellout-numbering")
        return None if not below or not one else below.removesuffix(one) + said

    def cardinal(self, value: int, gender: Gender | None = None) -> str | None:
        """A count."""
        if gender is None or not self._rules:
            return self._rule(value, self._rules.get("m", "") if self.language == "en" else "")
        if self.language == "it" and value != 1:
            return self._rule(value, "")  # ventuno chilometri, ventuno ore
        if self.language == "nl" and value == 1:
            return "één"
        return self._rule(value, self._rules[gender])

    def ordinal(self, value: int, rule: str) -> str | None:
        """A place in an order, by the name of an RBNF rule set."""
        return self._rule(value, rule)

    def year(self, value: int) -> str | None:
        """A year of the common era."""
        if self.language in ("en", "de", "nl") and 1000 <= value <= 2099:
            said = self._rule(value, "spellout-numbering-year")
        else:
            said = self.cardinal(value)
        return said

    def year_of_russian(self, value: int, case: str) -> str | None:
        """A year as Russian says it, an ordinal in a case."""
        said = self._rule(value, f"spellout-ordinal-masculine{case}")
        return said.removeprefix("одна ") if said else None

    def digits(self, digits: str) -> str | None:
        """Each digit by itself."""
        said = [self._rule(int(digit), "") for digit in digits]
        return " ".join(filter(None, said)) if all(said) else None

    def plural(self, number: Number) -> str:
        """CLDR's plural category."""
        return str(self.locale.plural_form(abs(number.value)))

    def _decimals(self, number: Number) -> str | None:
        if self.language in _FRACTIONS and len(number.decimals) <= len(_FRACTIONS[self.language][1]):
            return self._fraction(number)
        point = self.facts.point or self._point
        whole, digits = self._rule(number.whole, ""), self.digits(number.decimals)
        return f"{whole} {point} {digits}" if point and whole and digits else None

    def _fraction(self, number: Number) -> str | None:
        """Czech and Russian count tenths, hundredths and thousandths."""
        wholes, parts = _FRACTIONS[self.language]
        part = Number(int(number.decimals))
        said = [self._rule(each.whole, self._rules["f"]) for each in (Number(number.whole), part)]
        if not all(said):
            return None
        nouns = wholes, parts[len(number.decimals) - 1]
        pairs = zip(said, nouns, (Number(number.whole), part), strict=True)
        return " ".join(f"{words} {forms.get(self.plural(n), forms['other'])}" for words, forms, n in pairs)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as many of these objects as there are languages
    def _rule(self, value: int, rule: str) -> str | None:
        try:
            said = self._engine.format_number(value, ruleset_names=[rule or self._counting]).text
        except (RbnfError, ValueError):
            return None
        # Beyond the last rule CLDR writes digits.
        return None if re.search(r"[0-9#]", said) else said

    @functools.cached_property
    def _point(self) -> str:
        """What CLDR's rules say between whole and decimals; empty where they say something else of them."""
        five = self._rule(5, "") or "-"
        for rule in _COUNTING:
            try:
                said = self._engine.format_number(Decimal("5.5"), ruleset_names=[rule]).text
            except (RbnfError, ValueError):
                continue
            if found := re.fullmatch(rf"{re.escape(five)} (\w+) {re.escape(five)}", said):
                return found[1]
        return ""

    @functools.cached_property
    def _counting(self) -> str:
        return next((name for name in _COUNTING if name in self._engine.rulesets), _COUNTING[0])


_COUNTING: Final = ("spellout-numbering", "spellout-cardinal", "spellout-cardinal-masculine")
"""Rule sets for a number that stands alone; the first that a language has."""

_FRACTIONS: Final = {
    "cs": (
        {"one": "celá", "few": "celé", "other": "celých"},
        (
            {"one": "desetina", "few": "desetiny", "other": "desetin"},
            {"one": "setina", "few": "setiny", "other": "setin"},
            {"one": "tisícina", "few": "tisíciny", "other": "tisícin"},
        ),
    ),
    "ru": (
        {"one": "целая", "other": "целых"},
        (
            {"one": "десятая", "other": "десятых"},
            {"one": "сотая", "other": "сотых"},
            {"one": "тысячная", "other": "тысячных"},
        ),
    ),
}


@functools.lru_cache(maxsize=64)
def numbers_of(language: str) -> Numbers | None:
    """The numbers of a language by its BCP-47 tag; None where they cannot be put into words.

    That is so of languages without rules in CLDR, and of those that are written without spaces, whose numbers
    cannot be told from their neighbours here.
    """
    try:
        locale = Locale.parse(language, sep="-")
    except (UnknownLocaleError, ValueError, TypeError):
        try:
            locale = Locale.parse(language.partition("-")[0])
        except (UnknownLocaleError, ValueError, TypeError):
            return None
    if locale is None or locale.language in _SCRIPTS_WITHOUT_SPACES:
        return None
    try:
        engine = RbnfEngine.for_language(_RBNF_NAMES.get(locale.language, locale.language))
    except ValueError:
        return None
    return Numbers(locale, engine)


def any_of(words: Iterable[str]) -> str:
    """A pattern of any of some words, the longest first; of nothing where there are none."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True)) or r"(?!)"
