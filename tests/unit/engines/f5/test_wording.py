"""Numbers and what goes with them in words, by language; and what is left as it is written."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.jobs.tasks import Pronunciation
from services.engines.f5.wording import spoken
from services.engines.f5.wording.facts import FACTS

ENGLISH = [
    ("I have 5 apples.", "I have five apples."),
    ("1,000,000 people, -5 degrees", "one million people, minus five degrees"),
    ("3.14 and 0.5", "three point one four and zero point five"),
    (
        "$5.50, €1,234, -$5",
        "five dollars and fifty cents, one thousand two hundred thirty-four euros, minus five dollars",
    ),
    (
        "$5m, $3.2bn, $5 million",
        "five million dollars, three point two billion dollars, five million dollars",
    ),
    ("£0.01 and £5.00", "one penny and five pounds"),
    ("5 USD or 100 SEK", "five dollars or one hundred Swedish kronor"),
    ("5 km at 80 km/h", "five kilometers at eighty kilometers per hour"),
    (
        "21°C, 1 kg, 5%, 10-15 %",
        "twenty-one degrees Celsius, one kilogram, five percent, ten to fifteen percent",
    ),
    ("20 mph, 5 ft, 2 m²", "twenty miles per hour, five feet, two square meters"),
    ("On May 3, 2024 at noon", "On May third, twenty twenty-four at noon"),
    ("3 May 2024", "the third of May, twenty twenty-four"),
    ("In May 12 people came, you may 5 times", "In May twelve people came, you may five times"),
    ("In May 2024", "In May twenty twenty-four"),
    ("the 3rd of May", "the third of May"),
    ("2024-05-03", "May third, twenty twenty-four"),
    ("13/05/2024", "the thirteenth of May, twenty twenty-four"),
    ("14:30, 9:05 pm, 9:00 am, 9:00", "fourteen thirty, nine oh five pm, nine am, nine o'clock"),
    ("in 1984, since 2005", "in nineteen eighty-four, since two thousand five"),
    ("the 1990s, 44 BC, 1066 AD", "the nineteen nineties, forty-four BC, ten sixty-six AD"),
    ("1984 people", "one thousand nine hundred eighty-four people"),
    ("1914-1918 and 3–4", "nineteen fourteen to nineteen eighteen and three to four"),
    ("21st, 2nd, 11th", "twenty-first, second, eleventh"),
    ("Mr. Smith vs. Dr. No, e.g. 5", "Mister Smith versus Doctor No, for example five"),
    ("No. 5 and #3", "number five and number three"),
    ("Cats, dogs, etc. And more etc.", "Cats, dogs, et cetera. And more et cetera."),
    ("a 5-year plan, COVID-19, (5)", "a five-year plan, COVID-nineteen, (five)"),
    ("007", "zero zero seven"),
]
SPANISH = [
    (
        "1 libro, 1 casa, 21 casas, 200 páginas, 1 día",
        "un libro, una casa, veintiuna casas, doscientas páginas, un día",
    ),
    ("5,50 € o $5", "cinco euros con cincuenta céntimos o cinco dólares"),
    ("1.234 euros y 3 millones de €", "mil doscientos treinta y cuatro euros y tres millones de euros"),
    ("21 °C, 5 %, 1 h, 3,14", "veintiún grados Celsius, cinco por ciento, una hora, tres coma uno cuatro"),
    (
        "el 3 de mayo de 2024, 03/05/2024",
        "el tres de mayo de dos mil veinticuatro, tres de mayo de dos mil veinticuatro",
    ),
    ("a las 14:30", "a las catorce y treinta"),
    ("1.º, 2.ª y 1er", "primero, segunda y primer"),
    ("el Sr. García, p. ej., n.º 5", "el señor García, por ejemplo, número cinco"),
    ("500 m, 1 000 alumnos", "quinientos metros, mil alumnos"),
]
FRENCH = [
    ("80 livres et 1 234 pages", "quatre-vingts livres et mille deux cent trente-quatre pages"),
    ("5,50 €", "cinq euros et cinquante centimes"),
    (
        "5 M€, 1 000 000 €, 3 millions d'euros",
        "cinq millions d'euros, un million d'euros, trois millions d'euros",
    ),
    (
        "21 °C, 5 %, 1 h, 3,14",
        "vingt-et-un degrés Celsius, cinq pour cent, une heure, trois virgule un quatre",
    ),
    (
        "le 1er mai 2024, 03/05/2024",
        "le premier mai deux mille vingt-quatre, trois mai deux mille vingt-quatre",
    ),
    ("à 14h30, 14 h 30, 1:05", "à quatorze heures trente, quatorze heures trente, une heure cinq"),
    ("1er, 2e, 3ème", "premier, deuxième, troisième"),
    ("à 20h ou 8h du matin", "à vingt heures ou huit heures du matin"),
    ("M. Dupont, Mme Dupont, n° 5", "monsieur Dupont, madame Dupont, numéro cinq"),
]
GERMAN = [
    ("1 Buch, 21 Bücher, Kapitel 1", "ein Buch, einundzwanzig Bücher, Kapitel eins"),
    ("5,50 € und 1.234 Euro", "fünf Euro und fünfzig Cent und eintausendzweihundertvierunddreißig Euro"),
    ("5 Mio. €, 3,2 Mrd. Euro", "fünf Millionen Euro, drei Komma zwei Milliarden Euro"),
    (
        "21 °C, 10–15 %, 1 h, 80 km/h",
        "einundzwanzig Grad Celsius, zehn bis fünfzehn Prozent, eine Stunde, achtzig Kilometer pro Stunde",
    ),
    (
        "am 3. Mai 2024, der 3. Mai, 03.05.2024",
        "am dritten Mai zweitausendvierundzwanzig, der dritte Mai, dritter Mai zweitausendvierundzwanzig",
    ),
    ("um 14:30 Uhr, 9:05", "um vierzehn Uhr dreißig, neun Uhr fünf"),
    ("im Jahr 1984", "im Jahr neunzehnhundertvierundachtzig"),
    ("Es dauert 5–6 Std.", "Es dauert fünf bis sechs Stunden."),
    ("im Mai 1984, Seite 5. Danach", "im Mai neunzehnhundertvierundachtzig, Seite fünf. Danach"),
    ("im 3. Stock, der 21. Mann", "im dritten Stock, der einundzwanzigste Mann"),
    ("z. B. Dr. Müller, Nr. 5, usw.", "zum Beispiel Doktor Müller, Nummer fünf, und so weiter."),
]
ITALIAN = [
    ("1 libro, 1 casa, 21 libri", "un libro, una casa, ventuno libri"),
    ("5,50 €, 5 mln di euro", "cinque euro e cinquanta centesimi, cinque milioni di euro"),
    ("21 °C, 5 %, 1 h, 3,14", "ventuno gradi Celsius, cinque percento, un'ora, tre virgola uno quattro"),
    ("il 1° maggio 2024, 03/05/2024", "il primo maggio duemilaventiquattro, tre maggio duemilaventiquattro"),
    ("alle 14:30", "alle quattordici e trenta"),
    ("1º, 2ª, il Sig. Rossi, n. 5", "primo, seconda, il signor Rossi, numero cinque"),
]
DUTCH = [
    ("1 boek, 21 boeken", "één boek, eenentwintig boeken"),
    ("€ 5,50, 5 mln euro", "vijf euro en vijftig cent, vijf miljoen euro"),
    (
        "80 km/u, 21 °C, 5 %, 2 h",
        "tachtig kilometer per uur, eenentwintig graden Celsius, vijf procent, twee uur",
    ),
    ("3 mei 2024, 03-05-2024", "drie mei tweeduizendvierentwintig, drie mei tweeduizendvierentwintig"),
    ("om 14:30 uur", "om veertien uur dertig"),
    ("in 1984, 1e, 2de, 20ste", "in negentienvierentachtig, eerste, tweede, twintigste"),
    ("bijv. dhr. Jansen, nr. 5", "bijvoorbeeld de heer Jansen, nummer vijf"),
]
CZECH = [
    ("1 auto, 2 psy, 5 psů", "jedno auto, dva psy, pět psů"),
    (
        "5,50 €, 1 234 Kč, 2 mld. Kč",
        "pět eur a padesát centů, tisíc dvě stě třicet čtyři korun, dvě miliardy korun",
    ),
    ("5 km, 2 %, 2 h, 21 °C", "pět kilometrů, dvě procenta, dvě hodiny, dvacet jeden stupňů Celsia"),
    ("3,14 a 1,5 km", "tři celé čtrnáct setin a jedna celá pět desetin kilometru"),
    (
        "3. května 2024, 3. 5. 2024",
        "třetího května dva tisíce dvacet čtyři, třetího května dva tisíce dvacet čtyři",
    ),
    ("21. května", "dvacátého prvního května"),
    ("14:30, 9:05, 9:00", "čtrnáct třicet, devět nula pět, devět hodin"),
    ("např. č. 5, atd.", "například číslo pět, a tak dále."),
]
RUSSIAN = [
    (
        "1 книга, 2 книги, 2 дома, 1 окно, 21 книга",
        "одна книга, две книги, два дома, одно окно, двадцать одна книга",
    ),
    (
        "5,50 €, 5 млн руб., 1,50 ₽",
        "пять евро пятьдесят центов, пять миллионов рублей, один рубль пятьдесят копеек",
    ),
    (
        "80 км/ч, 21 °C, 2 %, 2 мин",
        "восемьдесят километров в час, двадцать один градус Цельсия, два процента, две минуты",
    ),
    ("3,14 и 1,5 км", "три целых четырнадцать сотых и одна целая пять десятых километра"),
    ("3 мая 2024 года", "третьего мая две тысячи двадцать четвертого года"),
    (
        "в 1984 году, 1984 год",
        "в тысяча девятьсот восемьдесят четвертом году, тысяча девятьсот восемьдесят четвертый год",
    ),
    ("14:30, 9:05, 9:00", "четырнадцать тридцать, девять ноль пять, девять ноль-ноль"),
    ("1-й, 2-я, 3-го, № 5, и т. д.", "первый, вторая, третьего, номер пять, и так далее."),
    ("10–15 %", "десять-пятнадцать процентов"),
    ("В 2024-м году, 100 тыс. человек", "В две тысячи двадцать четвертом году, сто тысяч человек"),
]
CASES = [
    *(("en", *case) for case in ENGLISH),
    *(("es", *case) for case in SPANISH),
    *(("fr", *case) for case in FRENCH),
    *(("de", *case) for case in GERMAN),
    *(("it", *case) for case in ITALIAN),
    *(("nl", *case) for case in DUTCH),
    *(("cs", *case) for case in CZECH),
    *(("ru", *case) for case in RUSSIAN),
    # A region decides where its language does not.
    ("en-GB", "101 km, 03/05/2024", "one hundred and one kilometres, the third of May, twenty twenty-four"),
    ("en-US", "03/05/2024", "March fifth, twenty twenty-four"),
    ("es-MX", "$1,234.50", "mil doscientos treinta y cuatro pesos con cincuenta centavos"),
    ("de_CH", "1'234 km", "eintausendzweihundertvierunddreißig Kilometer"),
    # Others: numbers, decimals where CLDR's rules say how, percentages, units.
    ("sv", "5 km, 5 %, 3,14", "fem kilometer, fem procent, tre komma ett fyra"),
    (
        "pt-BR",
        "5 km, 1.234, 3,14",
        "cinco quilômetros, mil duzentos e trinta e quatro, três vírgula um quatro",
    ),
    (
        "pl",
        "21 °C, 1 234 km",
        "dwadzieścia jeden stopni Celsjusza, tysiąc dwieście trzydzieści cztery kilometry",
    ),
]
AS_WRITTEN = [
    ("en", "F5, v1.2.3, 192.168.0.1, MP3, 1/2, 5'10\", 3th"),
    ("en", "http://example.com/5 and mail5@example.org"),
    ("en", "3/5/2024"),  # March or May
    ("en", "100,00 and 12345678901234567 and 3-1"),
    ("en", "2024-13-45, 25:00, 9:61"),
    ("de", "3.5 und 1.23.456"),
    ("en", "1 000 000 people; +1 (555) 123-4567, 24/7"),
    ("cs", "20. století"),
    ("ru", "5-этажный, 25%-ный, XIX век"),
    ("pl", "3,14"),  # CLDR's Polish rules lose the decimals
    ("fr", "J. M. Barrie"),
    ("zh", "有5个"),
    ("xx", "5 km"),
    ("", "5 km"),
]


def said(text: str, language: str) -> str:
    return spoken(text, language, verbatim=False, pronunciations=())


@pytest.mark.parametrize(("language", "text", "words"), CASES)
def test_numbers_in_words(language, text, words):
    assert said(text, language) == words


@pytest.mark.parametrize(("language", "text", "words"), CASES)
def test_what_was_put_into_words_stays_as_it_is(language, text, words):
    assert said(words, language) == words


@pytest.mark.parametrize(("language", "text"), AS_WRITTEN)
def test_what_is_not_understood_stays_as_it_is_written(language, text):
    assert said(text, language) == text


@pytest.mark.parametrize(("language", "text", "words"), CASES)
def test_verbatim_leaves_numbers(language, text, words):
    assert spoken(text, language, verbatim=True, pronunciations=()) == text


LETTERS = st.text(st.characters(categories=["L", "M"]), min_size=1, max_size=12)
PLAIN = st.text(
    st.one_of(st.characters(categories=["L", "M"]), st.sampled_from(" ,;:!?—…\"'()\n")), max_size=80
)


@settings(max_examples=200, deadline=None)
@given(text=PLAIN, language=st.sampled_from([*FACTS, "sv", "zh", "xx"]))
def test_a_text_with_nothing_to_put_into_words_is_left_alone(text, language):
    # Some words are abbreviations without a full stop.
    if not {"Mme", "Mmes", "Mlle", "Dr", "Pr", "cca"} & set(text.split()):
        assert said(text, language) == text


AMOUNTS = (
    "5% $5.50 10 km 3–4 21st 14:30 2024-05-03 5 € 1,234 1.234 1 234 °C etc. Dr. №5 -7 1-й 3. % Mio. mld."
)
TOKEN = st.one_of(
    # Longer than any unit, scale or suffix, so that it is a word of its own whatever stands before it.
    LETTERS.filter(lambda word: len(word) > 7 and word.isalpha()),
    st.integers(0, 10**16).map(str),
    st.decimals(0, 10**6, places=2).map(str),
    st.sampled_from(AMOUNTS.split()),
)


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(TOKEN, max_size=12), language=st.sampled_from([*FACTS, "sv", "pl"]))
def test_no_word_is_lost_and_none_changes_its_place(tokens, language):
    heard = said(" ".join(tokens), language).split()
    words = [token for token in tokens if token.isalpha() and len(token) > 7]
    at = 0
    for word in words:
        assert word in heard[at:], (word, heard)
        at = heard.index(word, at) + 1


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), language=st.sampled_from([*FACTS, "hu", "ja"]))
def test_any_text_at_all_can_be_given(text, language):
    heard = said(text, language)
    assert bool(heard.strip()) == bool(text.strip())


@pytest.mark.parametrize(
    "text",
    ["1" * 5000, "1 " * 2500, "1," * 2500, "1-" * 2500, "a." * 2500, "$" * 5000, "a@" * 2500, "- 1" * 1600],
)
@pytest.mark.parametrize("language", ["en", "fr", "ru"])
def test_the_work_does_not_explode(text, language):
    def cost(part: str) -> float:
        began = time.process_time()
        said(part, language)
        return time.process_time() - began

    cost(text[:100])
    half = min(cost(text[: len(text) // 2]) for _ in range(3))
    # Four times would be quadratic; the floor is the clock's own noise.
    assert min(cost(text) for _ in range(3)) < 8 * half + 0.05


def test_a_lexicons_words_are_taken_as_they_stand():
    entries = (Pronunciation(grapheme="km", alias="kay em"), Pronunciation(grapheme="X5", alias="ex 5"))
    assert spoken("5 km in an X5", "en", verbatim=False, pronunciations=entries) == "five kay em in an ex 5"
    assert spoken("5 km in an X5", "en", verbatim=True, pronunciations=entries) == "5 kay em in an ex 5"
