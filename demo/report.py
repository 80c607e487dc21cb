"""``report.html``: one page that shows, and plays, what the demo made."""

from __future__ import annotations

import html
from pathlib import Path

from demo import figures
from demo.record import Record, Step

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #e2e8f0 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3rem .6rem; vertical-align: top }
tr:nth-child(even) { background: #f7fafc } .bad { color: #c53030; font-weight: 600 } .good { color: #2f855a }
.note { background: #fffaf0; border-left: 4px solid #dd6b20; padding: .5rem .8rem }
.pair { display: flex; flex-wrap: wrap; gap: 1rem } .pair figure { margin: 0; flex: 1 1 28rem }
img { max-width: 100% } audio { width: 100% } code { font-size: .85em; overflow-wrap: anywhere }
"""


def write(record: Record, folder: Path) -> Path:
    """Writes the page into the folder that holds the audio files; returns its path."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'><title>Voxfleet demo</title>",
        f"<style>{_STYLE}</style>",
        "<h1>Voxfleet demo</h1>",
        f"<p>Release {html.escape(record.version)}: the main job on real recorded speech.</p>",
    ]
    parts += [f"<p class=note>{html.escape(note)}</p>" for note in record.notes]
    parts.append(_table(record))
    parts += [_section(step, folder) for step in record.steps if step.files or step.curve]
    path = folder / "report.html"
    path.write_text("\n".join(parts))
    return path


def _table(record: Record) -> str:
    rows = []
    for step in record.steps:
        state = (
            "<span class=good>ok</span>" if step.ok else f"<span class=bad>{html.escape(step.error)}</span>"
        )
        measures = ", ".join(f"{name} {_figure(value)}" for name, value in step.measures.items())
        rows.append(
            f"<tr><td>{html.escape(step.title)}<td>{state}<td>{step.seconds:.1f} s"
            f"<td><code>{html.escape(step.artifact)}</code><td>{html.escape(step.weights)}"
            f"<td>{html.escape(measures)}"
        )
    head = "<tr><th>step<th>result<th>time<th>artefact<th>weights<th>measured"
    return f"<table>{head}{''.join(rows)}</table>"


def _section(step: Step, folder: Path) -> str:
    parts = [f"<h2>{html.escape(step.title)}</h2>"]
    if step.curve:
        image = figures.curves(step.curve, ("loss_mel", "loss_g", "loss_d", "loss_kl"))
        parts.append(f"<img alt='loss curves' src='{image}'>")
    if step.files:
        players = [
            f"<figure><figcaption><code>{html.escape(name)}</code></figcaption>"
            f"<img alt='waveform and spectrogram' src='{figures.sound(folder / name)}'>"
            f"<audio controls preload=none src='{html.escape(name)}'></audio></figure>"
            for name in step.files
        ]
        parts.append(f"<div class=pair>{''.join(players)}</div>")
    return "".join(parts)


def _figure(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
