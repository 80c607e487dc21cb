"""Dates and times of day."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Final

from services.engines.f5.wording.facts import Gender
from services.engines.f5.wording.numbers import AFTER, BEFORE, Numbers

_ORDER: Final = {
    "en": "",
    "es": "/-",
    "fr": "/.-",
    "de": ".",
    "it": "/.-",
    "nl": "/.-",
    "cs": ".",
    "ru": ".",
}
"""What parts day, month and year where they stand in that order; English has no order of its own."""

_MONTH_FIRST: Final = frozenset({"US", "PH"})
_DAY_FIRST: Final = frozenset({"GB", "IE", "AU", "NZ", "IN", "ZA"})
_NO_YEAR_BEFORE: Final = 1000

# Day of a month in Czech, genitive: CLDR has no Czech ordinals.
_CZECH: Final = (
    "prvního",
    "druhého",
    "třetího",
    "čtvrtého",
    "pátého",
    "šestého",
    "sedmého",
    "osmého",
    "devátého",
    "desátého",
    "jedenáctého",
    "dvanáctého",
    "třináctého",
    "čtrnáctého",
    "patnáctého",
    "šestnáctého",
    "sedmnáctého",
    "osmnáctého",
    "devatenáctého",
    "dvacátého",
)
# In May 12 people came: no day.
_IN_A_MONTH: Final = re.compile(r"(?i)\b(?:in|during|since|until|till|by|last|this|next|every|each) $")
_TO_DATIVE: Final = frozenset({"am", "vom", "zum", "dem", "den", "bis", "seit", "ab", "im"})


class Moments:
    """The dates and times of one of the languages with wording of their own."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._language = numbers.language
        self._months = {number: str(name) for number, name in numbers.locale.months["format"]["wide"].items()}
        self._month_of = {name.lower(): number for number, name in self._months.items()}
        months = "|".join(sorted(map(re.escape, self._months.values()), key=len, reverse=True))
        # English and German write them with a capital: you may 5 times.
        case = "" if self._language in ("en", "de") else "i"
        month = f"(?P<month>(?{case}:{months}))(?!\\w)"
        year = r"(?P<year>[12][0-9]{3})(?![0-9]|[.,:/-]?[0-9])"
        day = r"(?P<day>[0-3]?[0-9])"
        self._iso = re.compile(
            rf"{BEFORE}(?P<year>[12][0-9]{{3}})-(?P<month>[01][0-9])-(?P<day>[0-3][0-9])(?![\w-])"
        )
        separators = _ORDER.get(self._language, "")
        self._numeric = re.compile(
            rf"{BEFORE}{day}(?P<sep>[{separators or '/'}]) ?(?P<month>[01]?[0-9])(?P=sep) ?{year}(?!\w)"
        )
        match self._language:
            case "en":
                first = rf"{BEFORE}(?P<the>[Tt]he )?{day}(?:st|nd|rd|th)?(?: of)? {month}(?:,? {year})?"
                second = rf"(?<!\w){month} {day}(?:st|nd|rd|th)?(?![0-9:.,]?[0-9])(?!\w)(?:,? {year})?"
                self._written = [re.compile(first), re.compile(second)]
            case "es":
                self._written = [re.compile(rf"{BEFORE}{day}(?:º|\.º)? de {month}(?: del? {year})?")]
            case "de" | "cs":
                self._written = [
                    re.compile(rf"(?:(?<!\w)(?P<before>\w+) )?{BEFORE}{day}\. ?{month}(?: {year})?")
                ]
            case "fr":
                self._written = [re.compile(rf"{BEFORE}{day}(?:er)? {month}(?: {year})?")]
            case _:
                self._written = [re.compile(rf"{BEFORE}{day}°? {month}(?: {year})?")]
        # Where a year is read as one: twenty twenty-four.
        self._month_year = (
            re.compile(rf"(?<!\w){month} {year}(?!\w)") if self._language in ("en", "de", "nl") else None
        )
        clock = r"(?P<hour>[01]?[0-9]|2[0-4])"
        minute = r"(?P<minute>[0-5][0-9])"
        self._times = [
            re.compile(rf"{BEFORE}{clock}:{minute}(?![:.][0-9]){AFTER}{_CLOCK.get(self._language, '')}")
        ]
        if self._language == "fr":
            self._times.append(re.compile(rf"{BEFORE}{clock} ?h ?{minute}(?![0-9])(?!\w)"))
            self._times.append(re.compile(rf"{BEFORE}{clock}h(?!\w)"))
        if self._language == "de":
            self._times.append(re.compile(rf"{BEFORE}{clock}\.{minute} Uhr(?!\w)"))
            self._times.append(re.compile(rf"{BEFORE}{clock} Uhr(?: {minute})?(?!\w)"))

    def read(self, text: str) -> str:
        """The text with its dates and times in words."""
        text = self._iso.sub(self._date, text)
        text = self._numeric.sub(self._ordered, text)
        for pattern in self._written:
            text = pattern.sub(self._date, text)
        if self._month_year is not None:
            text = self._month_year.sub(self._in_year, text)
        for pattern in self._times:
            text = pattern.sub(self._time, text)
        return text

    def _ordered(self, match: re.Match[str]) -> str:
        """Three numbers, where it is sure which is the day."""
        if self._language != "en":
            return self._date(match)
        first, second = int(match["day"]), int(match["month"])
        territory = self._numbers.locale.territory or ""
        if territory in _DAY_FIRST or (first > 12 >= second):
            return self._said(match, first, second, int(match["year"]))
        if territory in _MONTH_FIRST or first == second:
            return self._said(match, second, first, int(match["year"]), month_first=True)
        return match[0]

    def _date(self, match: re.Match[str]) -> str:
        month = match["month"]
        number = int(month) if month.isdigit() else self._month_of[month.lower()]
        before = match.start("month") < match.start("day")
        bare = before and not match["year"] and match[0][-1].isdigit()
        if bare and _IN_A_MONTH.search(match.string[max(0, match.start() - 8) : match.start()]):
            return match[0]
        return self._said(match, int(match["day"]), number, int(match["year"] or 0), month_first=before)

    def _in_year(self, match: re.Match[str]) -> str:
        said = self._year(int(match["year"]))
        return f"{match['month']} {said}" if said else match[0]

    def _said(
        self, match: re.Match[str], day: int, month: int, year: int, *, month_first: bool = False
    ) -> str:
        try:
            dt.date(year or 2000, month, day)
        except ValueError:
            return match[0]
        groups = match.groupdict()
        before = groups.get("before") or ""
        name = match["month"] if not match["month"].isdigit() else self._months[month]
        spoken_day, spoken_year = self._day(day, before), self._year(year) if year else ""
        if spoken_day is None or spoken_year is None:
            return match[0]
        match self._language:
            case "en" if month_first:
                said = f"{name} {spoken_day}"
            case "en":
                said = f"{groups.get('the') or 'the '}{spoken_day} of {name}"
            case "es":
                said = f"{spoken_day} de {name}"
            case _:
                said = f"{spoken_day} {name}"
        if spoken_year:
            link = {"es": " de ", "en": ", "}.get(self._language, " ")
            said = f"{said}{link}{spoken_year}"
        return f"{before} {said}" if before else said

    def _day(self, day: int, before: str) -> str | None:
        numbers = self._numbers
        match self._language:
            case "en":
                return numbers.ordinal(day, "spellout-ordinal")
            case "de":
                ending = "-n" if before.lower() in _TO_DATIVE else "" if before.lower() == "der" else "-r"
                return numbers.ordinal(day, f"spellout-ordinal{ending}")
            case "cs":
                if day <= 20:
                    return _CZECH[day - 1]
                tens = "dvacátého" if day < 30 else "třicátého"
                return f"{tens} {_CZECH[day % 10 - 1]}" if day % 10 else tens
            case "ru":
                return numbers.ordinal(day, "spellout-ordinal-masculine-genitive")
            case "es" | "fr" | "it" if day == 1:
                return {"es": "primero", "fr": "premier", "it": "primo"}[self._language]
            case _:
                return numbers.cardinal(day)

    def _year(self, year: int) -> str | None:
        if year < _NO_YEAR_BEFORE:
            return None
        if self._language == "ru":
            return self._numbers.year_of_russian(year, "-genitive")
        return self._numbers.year(year)

    def _time(self, match: re.Match[str]) -> str:
        groups = match.groupdict()
        hour, minute = int(match["hour"]), int(groups.get("minute") or 0)
        if hour == 24 and minute:
            return match[0]
        if self._language == "en" and not minute:
            half = re.match(r"\s?[AaPp]\.?[Mm]\b", match.string[match.end() :])
            if half:
                return _say(self._numbers, hour)
        return _TIMES[self._language](self._numbers, hour, minute)


def _say(numbers: Numbers, value: int, gender: Gender | None = None) -> str:
    said = numbers.cardinal(value, gender)
    assert said is not None, "CLDR has words for every number of a clock"
    return said


def _english(numbers: Numbers, hour: int, minute: int) -> str:
    hours = _say(numbers, hour)
    if not minute:
        return f"{hours} o'clock" if 0 < hour <= 12 else f"{hours} hundred hours"
    return f"{hours} oh {_say(numbers, minute)}" if minute < 10 else f"{hours} {_say(numbers, minute)}"


def _spanish(numbers: Numbers, hour: int, minute: int) -> str:
    return f"{_say(numbers, hour, 'f')} {f'y {_say(numbers, minute)}' if minute else 'en punto'}"


def _french(numbers: Numbers, hour: int, minute: int) -> str:
    whole = f"{_say(numbers, hour, 'f')} {'heure' if hour in (0, 1) else 'heures'}"
    return f"{whole} {_say(numbers, minute, 'f')}" if minute else whole


def _german(numbers: Numbers, hour: int, minute: int) -> str:
    whole = f"{'ein' if hour == 1 else _say(numbers, hour)} Uhr"
    return f"{whole} {_say(numbers, minute)}" if minute else whole


def _italian(numbers: Numbers, hour: int, minute: int) -> str:
    return f"{_say(numbers, hour)} {f'e {_say(numbers, minute)}' if minute else 'in punto'}"


def _dutch(numbers: Numbers, hour: int, minute: int) -> str:
    whole = f"{_say(numbers, hour)} uur"
    return f"{whole} {_say(numbers, minute)}" if minute else whole


def _czech(numbers: Numbers, hour: int, minute: int) -> str:
    if not minute:
        noun = "hodina" if hour == 1 else "hodiny" if 2 <= hour <= 4 else "hodin"
        return f"{_say(numbers, hour, 'f')} {noun}"
    zero = f"{_say(numbers, 0)} " if minute < 10 else ""
    return f"{_say(numbers, hour)} {zero}{_say(numbers, minute)}"


def _russian(numbers: Numbers, hour: int, minute: int) -> str:
    zero = _say(numbers, 0)
    if not minute:
        return f"{_say(numbers, hour)} {zero}-{zero}"
    return f"{_say(numbers, hour)} {f'{zero} ' if minute < 10 else ''}{_say(numbers, minute)}"


_TIMES: Final[dict[str, Callable[[Numbers, int, int], str]]] = {
    "en": _english,
    "es": _spanish,
    "fr": _french,
    "de": _german,
    "it": _italian,
    "nl": _dutch,
    "cs": _czech,
    "ru": _russian,
}
_CLOCK: Final = {"de": r"(?: Uhr(?!\w))?", "nl": r"(?: uur(?!\w))?", "es": r"(?: h(?!\w))?"}
