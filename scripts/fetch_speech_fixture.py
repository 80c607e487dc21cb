"""Rebuild tests/fixtures/speech from Debian's Asterisk prompts: real recorded speech, with texts.

Needs apt (or ``--packages DIR`` with the five .deb files in it) and dpkg-deb. The result is committed,
so nobody needs this to run the tests; it says how every file there was made, and makes it again to
the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.common.media.encode import Format, encode  # noqa: E402

RATE_HZ = 16_000
GAP_S = 0.3
FADE_S = 0.005
PACKAGE = "asterisk-core-sounds-{language}-g722"


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks a language's prompts, and on what terms."""

    name: str
    folder: str
    licence: str
    credit: str


# Spanish and English are the same person: a pair for cross-language cloning, not for conversion.
SPEAKERS = {
    "en": Speaker("allison-smith", "en_US_f_Allison", "CC-BY-SA-3.0", "2003-2010, Allison Smith"),
    "es": Speaker("allison-smith", "es_MX_f_Allison", "CC-BY-SA-3.0", "2003-2010, Allison Smith"),
    "fr": Speaker("june-wallack", "fr_CA_f_June", "CC-BY-SA-3.0", "2006-2008, June Wallack"),
    "it": Speaker("carlo-flora", "it_IT_m_Carlo", "CC-BY-3.0", "2012, Carlo Flora"),
    "ru": Speaker("ivrvoice-ru", "ru_RU_f_IvrvoiceRU", "CC-BY-3.0", "2010, Maxim Topal (ivrvoice.ru)"),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of the fixture: what it is for, and the prompts that are joined in it."""

    file: str
    kind: str
    language: str
    prompts: tuple[tuple[str, str | None], ...]


TARGET = (
    ("demo-thanks", "Goodbye. Thank you for trying out the Asterisk Open Source PBX."),
    (
        "tt-allbusy",
        (
            "All representatives of the household are currently assisting other telemarketers. "
            "Please hold and your call will be answered in the order it was received."
        ),
    ),
    (
        "queue-periodic-announce",
        (
            "All of our representatives are currently busy. Please stay on the line and your call will be "
            "answered by the next available representative."
        ),
    ),
    ("vm-newuser", "Welcome to Comedian Mail. First, I will guide you through a short setup process."),
    (
        "ss-noservice",
        "The number you have dialed is not in service. Please check the number and try again.",
    ),
    ("privacy-unident", "The party you are trying to reach does not accept unidentified calls."),
    ("vm-tmpexists", "There is a temporary greeting, which overrides your standard greetings."),
    (
        "followme/status",
        "The person you are calling is not at their desk; I will try to locate them for you.",
    ),
    (
        "vm-invalid-password",
        "That password does not meet the minimum requirements for this mailbox. Please try again.",
    ),
    ("vm-nobox", "You cannot reply to this message because the sender does not have a mailbox."),
)
HELD_OUT = (
    (
        "queue-youarenext",
        "Your call is now first in line and will be answered by the next available representative.",
    ),
    ("privacy-prompt", "Please enter your phone number, starting with the area code."),
    ("followme/sorry", "I'm sorry, but I was unable to locate the person you are calling."),
    ("invalid", "I am sorry, that's not a valid extension. Please try again."),
    ("vm-mismatch", "The passwords you entered and re-entered did not match. Please try again."),
    ("vm-nonumber", "I'm afraid I don't know who sent this message."),
    ("vm-sorry", "I'm sorry I did not understand your response."),
    ("vm-nobodyavail", "Nobody is available to take your call at the moment."),
)
REFERENCE = (
    (
        "demo-nogo",
        (
            "I am afraid I was unable to create a connection to the Digium demonstration Asterisk server. "
            "You may find some helpful debugging information on the Asterisk console."
        ),
    ),
)
CLIPS = (
    ("conf-onlyone", "There is currently one other participant in the conference."),
    ("vm-whichbox", "To leave a message, please enter a mailbox number."),
    ("tt-weasels", "Weasels have eaten our phone system."),
    ("priv-introsaved", "Thank you. Please hold, while I attempt to connect you with your party!"),
    ("dir-nomore", "There are no more compatible entries in the directory."),
)

PIECES = (
    Piece("target_en.flac", "target", "en", TARGET),
    Piece("heldout_en.flac", "heldout", "en", HELD_OUT),
    Piece("reference_en.flac", "reference", "en", REFERENCE),
    *(Piece(f"clip_en_{number}.flac", "clip", "en", (clip,)) for number, clip in enumerate(CLIPS, start=1)),
    Piece("source_it.flac", "source", "it", (("tt-allbusy", None),)),
    Piece("source_fr.flac", "source", "fr", (("demo-nogo", None),)),
    *(
        Piece(f"clip_{language}.flac", "clip", language, (("privacy-unident", None),))
        for language in ("es", "fr", "it", "ru")
    ),
)


def main() -> None:
    """Build every piece and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder with the .deb files; else apt fetches them")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "fixtures" / "speech")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        sounds = unpack(arguments.packages, Path(scratch))
        entries = [build(piece, sounds, arguments.out) for piece in PIECES]
    manifest = {"rate_hz": RATE_HZ, "channels": 1, "gap_s": GAP_S, "files": entries}
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (arguments.out / "manifest.json").write_text(text, encoding="utf-8")


def unpack(packages: Path | None, scratch: Path) -> Path:
    """Fetch the packages if need be and unpack them; returns the folder of the speakers' folders."""
    if packages is None:
        names = [PACKAGE.format(language=language) for language in SPEAKERS]
        subprocess.run(["apt-get", "download", *names], cwd=scratch, check=True)
        packages = scratch
    for language in SPEAKERS:
        (deb,) = sorted(packages.glob(PACKAGE.format(language=language) + "_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(scratch / "root")], check=True)
    return scratch / "root" / "usr" / "share" / "asterisk" / "sounds"


def build(piece: Piece, sounds: Path, out: Path) -> dict[str, object]:
    """Join a piece's prompts, write it, and return its entry in the manifest."""
    speaker = SPEAKERS[piece.language]
    parts: list[NDArray[np.float32]] = []
    prompts: list[dict[str, object]] = []
    position = 0
    for name, text in piece.prompts:
        if parts:
            parts.append(np.zeros(round(GAP_S * RATE_HZ), np.float32))
            position += parts[-1].size
        parts.append(faded(read_g722(sounds / speaker.folder / f"{name}.g722")))
        start_s = position / RATE_HZ
        position += parts[-1].size
        prompts.append({"name": name, "text": text, "start_s": start_s, "end_s": position / RATE_HZ})
    texts = [text for _, text in piece.prompts if text is not None]
    tags = {
        "artist": speaker.credit,
        "copyright": f"(c) {speaker.credit}. {speaker.licence}. Cut, joined and re-encoded.",
        "title": ", ".join(name for name, _ in piece.prompts),
    }
    data = encode(np.concatenate(parts), RATE_HZ, Format.FLAC, metadata=tags)
    (out / piece.file).write_bytes(data)
    return {
        "file": piece.file,
        "kind": piece.kind,
        "language": piece.language,
        "speaker": speaker.name,
        "licence": speaker.licence,
        "text": " ".join(texts) if texts else None,
        "duration_s": position / RATE_HZ,
        "sha256": hashlib.sha256(data).hexdigest(),
        "source": PACKAGE.format(language=piece.language),
        "prompts": prompts,
    }


def read_g722(path: Path) -> NDArray[np.float32]:
    """A headerless G.722 file as float32 at 16 kHz."""
    with av.open(str(path), format="g722") as container:
        frames = [
            frame.to_ndarray().astype(np.float32).reshape(-1)
            for frame in container.decode(container.streams.audio[0])
        ]
    return np.concatenate(frames) / np.float32(32768.0)


def faded(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ramp both ends: the prompts are cut so tightly that a join would click."""
    out = samples.copy()
    ramp = np.linspace(0.0, 1.0, round(FADE_S * RATE_HZ), dtype=np.float32)
    out[: ramp.size] *= ramp
    out[-ramp.size :] *= ramp[::-1]
    return out


if __name__ == "__main__":
    main()
