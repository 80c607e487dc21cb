"""What the eight languages with wording of their own say where CLDR's data does not reach.

Number words, names of units, months and most currencies come from CLDR, through ``unicode-rbnf`` and
``babel``. Here stands the rest: how decimals, ranges, money and times are said, and abbreviations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Gender = Literal["m", "f", "n"]
Forms = Mapping[str, str]
"""A noun by CLDR plural category; ``other`` serves for what is not there."""


@dataclass(frozen=True, slots=True)
class Coins:
    """A currency and its hundredth, as people say them."""

    whole: Forms
    part: Forms


@dataclass(frozen=True, slots=True)
class Facts:
    """One language.

    Args:
        point: between the whole and the decimals.
        to: between the ends of a range; a hyphen joins them.
        rules: the RBNF rule set of a number before a noun, by the noun's gender.
        feminine: what nouns look like that are feminine, in the singular.
        neuter: and neuter.
        join: between a million and what is counted (``un millón de dólares``).
        elided: the same before a vowel.
        scales: abbreviations of powers of ten: (power, noun).
        coins: by currency code.
        and_part: between the whole of a sum of money and its hundredths.
        year_after: words after which a number of four digits is a year, where years are read differently.
        abbreviations: read as; those in ``closing`` keep their full stop at the end of a sentence.
        number_signs: signs before a number, read as.
    """

    point: str
    to: str
    rules: Mapping[Gender, str]
    feminine: str = r"(?!)"
    neuter: str = r"(?!)"
    join: str = ""
    elided: str = ""
    scales: Mapping[str, tuple[int, Forms]] = field(default_factory=dict)
    coins: Mapping[str, Coins] = field(default_factory=dict)
    and_part: str = ""
    year_after: str = r"(?!)"
    abbreviations: Mapping[str, str] = field(default_factory=dict)
    closing: Mapping[str, str] = field(default_factory=dict)
    number_signs: Mapping[str, str] = field(default_factory=dict)

    def gender(self, noun: str) -> Gender:
        """Of a noun in the singular, by its looks."""
        if re.search(self.feminine, noun):
            return "f"
        return "n" if re.search(self.neuter, noun) else "m"

    def between(self, low: str, high: str) -> str:
        """A range in words."""
        return f"{low}-{high}" if self.to == "-" else f"{low} {self.to} {high}"

    def joined(self, noun: str) -> str:
        """A noun after a million of it."""
        if self.elided and re.match(r"(?i)[aeiouéèêh]", noun):
            return f"{self.elided}{noun}"
        return f"{self.join} {noun}" if self.join else noun


def _forms(one: str, other: str = "", few: str = "", many: str = "") -> Forms:
    given = {"one": one, "few": few, "many": many, "other": other or one}
    return {category: form for category, form in given.items() if form}


_MILLION, _BILLION = 6, 9
_ROMANCE: Final[Mapping[Gender, str]] = {
    "m": "spellout-cardinal-masculine",
    "f": "spellout-cardinal-feminine",
    "n": "spellout-cardinal-masculine",
}
_THREE: Final[Mapping[Gender, str]] = {**_ROMANCE, "n": "spellout-cardinal-neuter"}
_PLAIN: Final[Mapping[Gender, str]] = dict.fromkeys(("m", "f", "n"), "spellout-cardinal")

FACTS: Final[Mapping[str, Facts]] = {
    "en": Facts(
        point="point",
        to="to",
        rules=_PLAIN,
        scales={
            "k": (3, _forms("thousand")),
            "K": (3, _forms("thousand")),
            "m": (_MILLION, _forms("million")),
            "M": (_MILLION, _forms("million")),
            "mn": (_MILLION, _forms("million")),
            "bn": (_BILLION, _forms("billion")),
            "B": (_BILLION, _forms("billion")),
            "tn": (12, _forms("trillion")),
        },
        coins={
            "USD": Coins(_forms("dollar", "dollars"), _forms("cent", "cents")),
            "EUR": Coins(_forms("euro", "euros"), _forms("cent", "cents")),
            "GBP": Coins(_forms("pound", "pounds"), _forms("penny", "pence")),
            "JPY": Coins(_forms("yen"), {}),
        },
        and_part="and",
        year_after=r"(?i:in|since|until|till|year|circa|by|from|before|after|during|spring|summer|autumn|fall|winter)",
        abbreviations={
            "Mr.": "Mister",
            "Mrs.": "Missus",
            "Ms.": "Miz",
            "Dr.": "Doctor",
            "Prof.": "Professor",
            "vs.": "versus",
            "e.g.": "for example",
            "i.e.": "that is",
            "approx.": "approximately",
        },
        closing={"etc.": "et cetera", "Jr.": "Junior", "Sr.": "Senior"},
        number_signs={"#": "number", "No.": "number", "no.": "number", "Nos.": "numbers"},
    ),
    "es": Facts(
        point="coma",
        to="a",
        rules=_ROMANCE,
        feminine=r"(?i)(?<!\bd[ií])(?<!problem)(?<!sistem)(?<!program)(?<!\btem)(?<!map)as?$",
        join="de",
        coins={
            "USD": Coins(_forms("dólar", "dólares"), _forms("centavo", "centavos")),
            "EUR": Coins(_forms("euro", "euros"), _forms("céntimo", "céntimos")),
            "GBP": Coins(_forms("libra", "libras"), _forms("penique", "peniques")),
            "JPY": Coins(_forms("yen", "yenes"), {}),
            "MXN": Coins(_forms("peso", "pesos"), _forms("centavo", "centavos")),
        },
        and_part="con",
        abbreviations={
            "Sr.": "señor",
            "Sra.": "señora",
            "Srta.": "señorita",
            "Sres.": "señores",
            "Dr.": "doctor",
            "Dra.": "doctora",
            "Ud.": "usted",
            "Uds.": "ustedes",
            "p. ej.": "por ejemplo",
            "pág.": "página",
            "págs.": "páginas",
            "aprox.": "aproximadamente",
        },
        closing={"etc.": "etcétera"},
        number_signs={"n.º": "número", "nº": "número", "núm.": "número", "N.º": "número", "Nº": "número"},
    ),
    "fr": Facts(
        point="virgule",
        to="à",
        rules=_ROMANCE,
        feminine=r"(?:heure|minute|seconde|tonne|livre|once|couronne|calorie|roupie|verge)s?$",
        join="de",
        elided="d'",
        scales={
            "Mds": (_BILLION, _forms("milliard", "milliards")),
            "Md": (_BILLION, _forms("milliard", "milliards")),
            "M": (_MILLION, _forms("million", "millions")),
            "k": (3, _forms("mille")),
        },
        coins={
            "USD": Coins(_forms("dollar", "dollars"), _forms("cent", "cents")),
            "EUR": Coins(_forms("euro", "euros"), _forms("centime", "centimes")),
            "GBP": Coins(_forms("livre", "livres"), _forms("penny", "pence")),
            "CHF": Coins(_forms("franc suisse", "francs suisses"), _forms("centime", "centimes")),
            "JPY": Coins(_forms("yen", "yens"), {}),
        },
        and_part="et",
        abbreviations={
            "M.": "monsieur",
            "Mme": "madame",
            "Mmes": "mesdames",
            "Mlle": "mademoiselle",
            "MM.": "messieurs",
            "Dr": "docteur",
            "Pr": "professeur",
            "p. ex.": "par exemple",
            "c.-à-d.": "c'est-à-dire",
            "env.": "environ",
        },
        closing={"etc.": "et cetera"},
        number_signs={"n°": "numéro", "N°": "numéro", "nº": "numéro", "Nº": "numéro"},
    ),
    "de": Facts(
        point="Komma",
        to="bis",
        rules=_THREE,
        feminine=r"e$",
        scales={
            "Mio.": (_MILLION, _forms("Million", "Millionen")),
            "Mrd.": (_BILLION, _forms("Milliarde", "Milliarden")),
            "Tsd.": (3, _forms("tausend")),
        },
        coins={
            "USD": Coins(_forms("Dollar"), _forms("Cent")),
            "EUR": Coins(_forms("Euro"), _forms("Cent")),
            "GBP": Coins(_forms("Pfund"), _forms("Penny", "Pence")),
            "CHF": Coins(_forms("Franken"), _forms("Rappen")),
            "JPY": Coins(_forms("Yen"), {}),
        },
        and_part="und",
        year_after=r"(?:(?i:jahre?s?|seit|bis|ab|anno|winter|sommer|herbst|frühling|frühjahr)|[Ii]m Jahre?)",
        abbreviations={
            "z. B.": "zum Beispiel",
            "z.B.": "zum Beispiel",
            "d. h.": "das heißt",
            "d.h.": "das heißt",
            "u. a.": "unter anderem",
            "u.a.": "unter anderem",
            "bzw.": "beziehungsweise",
            "ca.": "circa",
            "ggf.": "gegebenenfalls",
            "evtl.": "eventuell",
            "inkl.": "inklusive",
            "vgl.": "vergleiche",
            "Dr.": "Doktor",
            "Prof.": "Professor",
            "Hr.": "Herr",
        },
        closing={"usw.": "und so weiter", "etc.": "et cetera"},
        number_signs={"Nr.": "Nummer", "§": "Paragraf"},
    ),
    "it": Facts(
        point="virgola",
        to="a",
        rules=_ROMANCE,
        feminine=r"a$",
        join="di",
        scales={
            "mln": (_MILLION, _forms("milione", "milioni")),
            "mld": (_BILLION, _forms("miliardo", "miliardi")),
        },
        coins={
            "USD": Coins(_forms("dollaro", "dollari"), _forms("centesimo", "centesimi")),
            "EUR": Coins(_forms("euro"), _forms("centesimo", "centesimi")),
            "GBP": Coins(_forms("sterlina", "sterline"), _forms("penny", "pence")),
            "JPY": Coins(_forms("yen"), {}),
        },
        and_part="e",
        abbreviations={
            "Sig.": "signor",
            "Sig.ra": "signora",
            "Sig.na": "signorina",
            "Dott.": "dottor",
            "Dott.ssa": "dottoressa",
            "Prof.": "professor",
            "p. es.": "per esempio",
            "pag.": "pagina",
        },
        closing={"ecc.": "eccetera"},
        number_signs={"n.": "numero", "n°": "numero", "nº": "numero"},
    ),
    "nl": Facts(
        point="komma",
        to="tot",
        rules=_PLAIN,
        scales={
            "mln": (_MILLION, _forms("miljoen")),
            "mln.": (_MILLION, _forms("miljoen")),
            "mld": (_BILLION, _forms("miljard")),
            "mld.": (_BILLION, _forms("miljard")),
        },
        coins={
            "USD": Coins(_forms("dollar"), _forms("cent")),
            "EUR": Coins(_forms("euro"), _forms("cent")),
            "GBP": Coins(_forms("pond"), _forms("penny", "pence")),
            "JPY": Coins(_forms("yen"), {}),
        },
        and_part="en",
        year_after=r"(?i:in|sinds|tot|jaar|vanaf|rond|anno|zomer|winter|herfst|lente)",
        abbreviations={
            "bijv.": "bijvoorbeeld",
            "bv.": "bijvoorbeeld",
            "o.a.": "onder andere",
            "d.w.z.": "dat wil zeggen",
            "dhr.": "de heer",
            "mevr.": "mevrouw",
            "ca.": "circa",
            "Dr.": "dokter",
            "dr.": "dokter",
            "Prof.": "professor",
            "prof.": "professor",
        },
        closing={"enz.": "enzovoort", "etc.": "et cetera"},
        number_signs={"nr.": "nummer", "Nr.": "nummer"},
    ),
    "cs": Facts(
        point="celá",
        to="až",
        rules=_THREE,
        feminine=r"(?:a|e)$",
        neuter=r"o$",
        scales={
            "tis.": (3, _forms("tisíc", "tisíc", "tisíce", "tisíce")),
            "mil.": (_MILLION, _forms("milion", "milionů", "miliony", "milionu")),
            "mld.": (_BILLION, _forms("miliarda", "miliard", "miliardy", "miliardy")),
        },
        coins={
            "USD": Coins(
                _forms("dolar", "dolarů", "dolary", "dolaru"), _forms("cent", "centů", "centy", "centu")
            ),
            "EUR": Coins(_forms("euro", "eur", "eura", "eura"), _forms("cent", "centů", "centy", "centu")),
            "GBP": Coins(
                _forms("libra", "liber", "libry", "libry"), _forms("pence", "pencí", "pence", "pence")
            ),
            "CZK": Coins(
                _forms("koruna", "korun", "koruny", "koruny"), _forms("haléř", "haléřů", "haléře", "haléře")
            ),
            "JPY": Coins(_forms("jen", "jenů", "jeny", "jenu"), {}),
        },
        and_part="a",
        abbreviations={
            "např.": "například",
            "tj.": "to jest",
            "tzv.": "takzvaný",
            "tzn.": "to znamená",
            "cca": "cirka",
            "Dr.": "doktor",
            "prof.": "profesor",
            "Prof.": "profesor",
        },
        closing={"atd.": "a tak dále", "apod.": "a podobně"},
        number_signs={"č.": "číslo"},
    ),
    "ru": Facts(
        point="целых",
        to="-",
        rules=_THREE,
        feminine=r"[ая]$",
        neuter=r"[ое]$",
        scales={
            "тыс.": (3, _forms("тысяча", "тысячи", "тысячи", "тысяч")),
            "млн": (_MILLION, _forms("миллион", "миллиона", "миллиона", "миллионов")),
            "млрд": (_BILLION, _forms("миллиард", "миллиарда", "миллиарда", "миллиардов")),
        },
        coins={
            "USD": Coins(
                _forms("доллар", "доллара", "доллара", "долларов"), _forms("цент", "цента", "цента", "центов")
            ),
            "EUR": Coins(_forms("евро"), _forms("цент", "цента", "цента", "центов")),
            "GBP": Coins(
                _forms("фунт", "фунта", "фунта", "фунтов"), _forms("пенс", "пенса", "пенса", "пенсов")
            ),
            "RUB": Coins(
                _forms("рубль", "рубля", "рубля", "рублей"),
                _forms("копейка", "копейки", "копейки", "копеек"),
            ),
            "JPY": Coins(_forms("иена", "иены", "иены", "иен"), {}),
        },
        abbreviations={
            "т. е.": "то есть",
            "т.е.": "то есть",
            "напр.": "например",
            "т. к.": "так как",
            "т.к.": "так как",
        },
        closing={
            "и т. д.": "и так далее",
            "и т.д.": "и так далее",
            "и т. п.": "и тому подобное",
            "и т.п.": "и тому подобное",
            "и др.": "и другие",
        },
        number_signs={"№": "номер"},
    ),
}
