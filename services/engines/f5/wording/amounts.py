"""Numbers with something beside them: units, percentages, money, ranges."""

from __future__ import annotations

import functools
import re
from typing import Final

from babel.core import UnknownLocaleError
from babel.numbers import format_decimal, get_currency_name
from babel.units import UnknownUnitError, format_unit

from services.engines.f5.wording.facts import Coins, Forms
from services.engines.f5.wording.numbers import (
    AFTER,
    BEFORE,
    INFLECTING,
    MINUS,
    SPACE,
    Number,
    Numbers,
    any_of,
)

_UNITS: Final = {
    "%": "concentr-percent",
    "‰": "concentr-permille",
    "km": "length-kilometer",
    "m": "length-meter",
    "cm": "length-centimeter",
    "mm": "length-millimeter",
    "µm": "length-micrometer",
    "μm": "length-micrometer",
    "km²": "area-square-kilometer",
    "m²": "area-square-meter",
    "cm²": "area-square-centimeter",
    "ha": "area-hectare",
    "m³": "volume-cubic-meter",
    "cm³": "volume-cubic-centimeter",
    "l": "volume-liter",
    "L": "volume-liter",
    "cl": "volume-centiliter",
    "ml": "volume-milliliter",
    "mL": "volume-milliliter",
    "kg": "mass-kilogram",
    "g": "mass-gram",
    "mg": "mass-milligram",
    "t": "mass-tonne",
    "km/h": "speed-kilometer-per-hour",
    "m/s": "speed-meter-per-second",
    "°C": "temperature-celsius",
    "°F": "temperature-fahrenheit",
    "°": "angle-degree",
    "h": "duration-hour",
    "min": "duration-minute",
    "s": "duration-second",
    "ms": "duration-millisecond",
    "W": "power-watt",
    "kW": "power-kilowatt",
    "MW": "power-megawatt",
    "kWh": "energy-kilowatt-hour",
    "kcal": "energy-kilocalorie",
    "V": "electric-volt",
    "Hz": "frequency-hertz",
    "kHz": "frequency-kilohertz",
    "MHz": "frequency-megahertz",
    "GHz": "frequency-gigahertz",
    "kB": "digital-kilobyte",
    "MB": "digital-megabyte",
    "GB": "digital-gigabyte",
    "TB": "digital-terabyte",
    "hPa": "pressure-hectopascal",
}
# Letters that are words, or other things, in some language stand only where they are sure.
_OWN_UNITS: Final = {
    "en": {
        "mph": "speed-mile-per-hour",
        "mi": "length-mile",
        "ft": "length-foot",
        "yd": "length-yard",
        "lb": "mass-pound",
        "lbs": "mass-pound",
        "oz": "mass-ounce",
        "sec": "duration-second",
        "hr": "duration-hour",
        "hrs": "duration-hour",
    },
    "nl": {"km/u": "speed-kilometer-per-hour"},
    "de": {"Std.": "duration-hour", "Min.": "duration-minute", "Sek.": "duration-second"},
    "cs": {"hod.": "duration-hour"},
    "ru": {
        "км": "length-kilometer",
        "м": "length-meter",
        "см": "length-centimeter",
        "мм": "length-millimeter",
        "км²": "area-square-kilometer",
        "м²": "area-square-meter",
        "м³": "volume-cubic-meter",
        "га": "area-hectare",
        "кг": "mass-kilogram",
        "мг": "mass-milligram",
        "л": "volume-liter",
        "мл": "volume-milliliter",
        "км/ч": "speed-kilometer-per-hour",
        "м/с": "speed-meter-per-second",
        "°С": "temperature-celsius",
        "ч": "duration-hour",
        "мин": "duration-minute",
        "сек": "duration-second",
        "Вт": "power-watt",
        "кВт": "power-kilowatt",
        "ккал": "energy-kilocalorie",
        "Гц": "frequency-hertz",
        "кГц": "frequency-kilohertz",
        "МГц": "frequency-megahertz",
        "ГГц": "frequency-gigahertz",
        "МБ": "digital-megabyte",
        "ГБ": "digital-gigabyte",
    },
}
# What CLDR 47 lacks, or says as nobody does.
_MENDED: Final = {
    ("nl", "duration-hour"): {"other": "uur"},
    ("nl", "angle-degree"): {"one": "graad", "other": "graden"},
    ("en", "mass-tonne"): {"one": "tonne", "other": "tonnes"},
}
_SIGNS: Final = {
    "US$": "USD",
    "$": "USD",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₽": "RUB",
    "Kč": "CZK",
    "zł": "PLN",
    "₴": "UAH",
    "₺": "TRY",
    "₹": "INR",
    "₩": "KRW",
    "руб.": "RUB",
    "руб": "RUB",
}
_CODES: Final = (
    "USD",
    "EUR",
    "GBP",
    "JPY",
    "CHF",
    "CZK",
    "PLN",
    "RUB",
    "UAH",
    "SEK",
    "NOK",
    "DKK",
    "HUF",
    "RON",
    "TRY",
    "CAD",
    "AUD",
    "NZD",
    "CNY",
    "INR",
    "KRW",
    "BRL",
    "MXN",
    "ARS",
    "ZAR",
)
_SIGN_COUNTRIES: Final = {
    ("MX", "$"): "MXN",
    ("CA", "$"): "CAD",
    ("AU", "$"): "AUD",
    ("NZ", "$"): "NZD",
    ("AR", "$"): "ARS",
}


class Amounts:
    """The amounts of one language."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._facts = numbers.facts
        own = _OWN_UNITS.get(numbers.language, {})
        self._unit_of = {symbol: unit for symbol, unit in {**_UNITS, **own}.items() if self._name(unit)}
        n, units, scales = numbers.pattern, any_of(self._unit_of), any_of(self._facts.scales)
        low = rf"(?:(?P<low>{n}){SPACE}?[-–—]{SPACE}?)?"
        money = any_of([*_SIGNS, *_CODES])
        # A million in words may stand between a sum and its currency.
        self._scale_words = {
            form: noun for _, noun in self._facts.scales.values() for form in noun.values()
        } | _SCALE_WORDS.get(numbers.language, {})
        word = rf"(?P<word>{any_of(self._scale_words)})(?!\w)(?:{SPACE}d[ei](?!\w))?"
        between = rf"(?:{SPACE}?(?P<scale>{scales})(?!\w)|{SPACE}{word})?"
        self._unit = re.compile(
            rf"{BEFORE}{MINUS}{low}(?P<number>{n})(?:(?P<gap>{SPACE})?(?P<unit>{units}))(?!\w)(?!['’]\w)(?!/\w)"
        )
        self._money_after = re.compile(
            rf"{BEFORE}{MINUS}{low}(?P<number>{n}){between}{SPACE}?(?P<sign>{money})(?!\w)"
        )
        self._money_before = re.compile(
            rf"(?<!\w){MINUS}(?P<sign>{money}){SPACE}?{low}(?P<number>{n}){between}{AFTER}"
        )
        self._scaled = re.compile(rf"{BEFORE}{MINUS}(?P<number>{n}){SPACE}(?P<scale>{scales})(?!\w)")
        self._range = re.compile(rf"{BEFORE}(?P<low>{n}){SPACE}?(?P<dash>[-–]){SPACE}?(?P<number>{n}){AFTER}")

    def read(self, text: str) -> str:
        """The text with its amounts in words."""
        if self._facts.coins:
            text = self._money_before.sub(self._money, text)
            text = self._money_after.sub(self._money, text)
        text = self._unit.sub(self._measure, text)
        if self._facts.scales and self._numbers.language != "en":
            text = self._scaled.sub(self._scale, text)
        return self._range.sub(self._span, text) if self._facts.to else text

    def _measure(self, match: re.Match[str]) -> str:
        symbol = match["unit"]
        if len(symbol) == 1 and symbol.isalpha() and not match["gap"] and symbol in _GLUED:
            return match[0]
        rest = match.string[match.end() :]
        if self._numbers.language in INFLECTING and re.match(r"-\w", rest):
            return match[0]
        number, low = self._parsed(match)
        if number is None:
            return match[0]
        said = self._counted(number, low, self._forms(self._unit_of[symbol], number))
        # The full stop of an abbreviation is the sentence's too, where that ends with it.
        stop = "." if symbol.endswith(".") and not rest.strip() else ""
        return f"{said}{stop}" if said else match[0]

    def _money(self, match: re.Match[str]) -> str:
        number, low = self._parsed(match)
        if number is None:
            return match[0]
        sign = match["sign"]
        territory = self._numbers.locale.territory or ""
        code = _SIGN_COUNTRIES.get((territory, sign)) or _SIGNS.get(sign, sign)
        coins = self._coins(code)
        if scale := match["scale"] or match["word"]:
            noun = self._facts.scales[scale][1] if match["scale"] else self._scale_words[scale]
            of = _pick(coins.whole, self._plural_of_million())
            join = of if noun.get("one") in _NO_JOIN else self._facts.joined(of)
            said = self._counted(number, low, noun)
            return f"{said} {join}" if said else match[0]
        if len(number.decimals) == 2 and coins.part and low is None:
            return self._coined(number, coins) or match[0]
        return self._counted(number, low, coins.whole) or match[0]

    def _coined(self, number: Number, coins: Coins) -> str | None:
        whole = self._counted(Number(number.whole, minus=number.minus), None, coins.whole)
        if not int(number.decimals):
            return whole
        part = self._counted(Number(int(number.decimals)), None, coins.part)
        if not whole or not part:
            return None
        if not number.whole and not number.minus:
            return part
        return " ".join(filter(None, (whole, self._facts.and_part, part)))

    def _scale(self, match: re.Match[str]) -> str:
        number, low = self._parsed(match)
        noun = self._facts.scales[match["scale"]][1]
        return (number and self._counted(number, low, noun)) or match[0]

    def _span(self, match: re.Match[str]) -> str:
        """Two numbers with a dash between are a range if the second is greater; with a hyphen, if years."""
        number, low = self._parsed(match)
        if number is None or low is None or low.value >= number.value or low.zeros or number.zeros:
            return match[0]
        years = all(re.fullmatch(r"1[1-9][0-9]{2}|20[0-9]{2}", match[name]) for name in ("low", "number"))
        if match["dash"] == "-" and not years:
            return match[0]
        say = (lambda n: self._numbers.year(n.whole)) if years else self._numbers.words
        ends = say(low), say(number)
        return self._facts.between(ends[0], ends[1]) if ends[0] and ends[1] else match[0]

    def _parsed(self, match: re.Match[str]) -> tuple[Number | None, Number | None]:
        """The number and the beginning of its range; (None, None) where one is not understood."""
        groups = match.groupdict()
        number = self._numbers.parse(match["number"], minus=bool(groups.get("minus")))
        if not groups.get("low"):
            return number, None
        low = self._numbers.parse(match["low"])
        if number is None or low is None or not self._facts.to or low.value >= abs(number.value):
            return None, None
        return number, low

    def _counted(self, number: Number, low: Number | None, noun: Forms) -> str | None:
        """A number, or a range, and its noun."""
        if not noun:
            return None
        gender = self._facts.gender(next(iter(noun.values())).split()[0])
        said = self._numbers.words(number, gender)
        if said is None:
            return None
        if low is not None:
            first = self._numbers.words(low, gender)
            if first is None:
                return None
            said = self._facts.between(first, said)
        form = _pick(noun, self._numbers.plural(number))
        if self._numbers.language == "it" and said == "una" and re.match(r"[aeiou]", form):
            return f"un'{form}"
        million = not number.decimals and number.whole and number.whole % 1_000_000 == 0
        return f"{said} {self._facts.joined(form)}" if million else f"{said} {form}"

    def _forms(self, unit: str, number: Number) -> Forms:
        """The unit in the singular, which has its gender, and as this number wants it."""
        one = self._name(unit)
        return {"one": one, self._numbers.plural(number): self._name(unit, number) or one} if one else {}

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - as many of these objects as there are languages
    def _name(self, unit: str, number: Number = Number(1)) -> str:  # noqa: B008 - it is frozen
        """A unit's name after a number; empty where CLDR has none."""
        if mended := _MENDED.get((self._numbers.language, unit)):
            return _pick(mended, self._numbers.plural(number))
        locale, value = self._numbers.locale, abs(number.value)
        try:
            said = format_unit(value, unit, length="long", format="#,##0.###", locale=locale)
        except (UnknownUnitError, UnknownLocaleError, KeyError):
            return ""
        shown = format_decimal(value, format="#,##0.###", locale=locale)
        head, found, name = said.partition(shown)
        name = " ".join(name.split())
        return name if found and not head.strip() and not re.search(r"[0-9]", name) else ""

    def _coins(self, code: str) -> Coins:
        if own := self._facts.coins.get(code):
            return own
        locale = self._numbers.locale
        counts = {"one": 1, "few": 2, "many": 5, "other": 100}
        names = {
            self._numbers.plural(Number(n)): get_currency_name(code, count=n, locale=locale)
            for n in counts.values()
        }
        return Coins({"one": get_currency_name(code, count=1, locale=locale), **names}, {})

    def _plural_of_million(self) -> str:
        # пять миллионов рублей, pět milionů korun, five million dollars
        return self._numbers.plural(Number(5))


_GLUED: Final = "msht"
"""Letters that, without a space, are rather something else: 90s, 5h30, $5m."""
_NO_JOIN: Final = ("mille", "thousand", "tausend")
_SCALE_WORDS: Final[dict[str, dict[str, Forms]]] = {
    "en": {word: {"other": word} for word in ("thousand", "million", "billion", "trillion")},
    "es": {
        "millón": {"one": "millón", "other": "millones"},
        "millones": {"one": "millón", "other": "millones"},
        "mil": {"one": "mil", "other": "mil"},
    },
}


def _pick(forms: Forms, category: str) -> str:
    return forms.get(category) or forms.get("other") or next(iter(forms.values()))
