"""``python -m demo``: starts a stack of its own, runs the main job, writes the report, stops the stack."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from demo import report
from demo.record import Record, Step
from demo.steps import STEPS, Demo, explain
from services.common.errors import VoxfleetError
from services.stack.config import StackConfig
from services.stack.stack import running_stack
from voxfleet.client import Client
from voxfleet.v1 import job_pb2

ROOT = Path(__file__).parents[1]
LINE_S = 2.0
PIPE_WIDTH = 160


def main() -> int:
    """Runs the demo; 0 where every step went well."""
    arguments = _arguments()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    out: Path = arguments.out.resolve()
    for stale in (out / "audio", out / "stack"):
        shutil.rmtree(stale, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    record = Record(version=metadata.version("voxfleet"))
    config = StackConfig.from_environ(
        os.environ, home=out / "stack", virtual_gpus=arguments.virtual_gpus, team="demo"
    )
    try:
        _on_a_stack(config, out, record, console)
    except VoxfleetError as error:
        console.print(f"the stack does not start: {error.message}", style="red", markup=False)
        return 1
    _finish(record, out, console)
    return 0 if record.ok else 1


def _on_a_stack(config: StackConfig, out: Path, record: Record, console: Console) -> None:
    with running_stack(config, lambda line: console.print(f"[dim]stack: {line}[/]", soft_wrap=True)) as stack:
        with Client(endpoint=stack.endpoint, token=stack.token, team=stack.team) as client:
            demo = Demo(
                client=client,
                endpoint=stack.endpoint,
                token=stack.token,
                team=stack.team,
                speech=ROOT / "tests" / "fixtures" / "speech",
                lines=ROOT / "demo" / "fixtures" / "lines.jsonl",
                out=out,
                record=record,
                say=lambda line: console.print(f"  {line}", markup=False),
                watch=lambda name: _watch(client, name, console),
            )
            _run(demo, console)
        console.print("[dim]stack: stopping[/]")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="where to leave the report")
    parser.add_argument("--virtual-gpus", type=int, default=2, help="GPUs for Ray to pretend to have")
    return parser.parse_args()


def _run(demo: Demo, console: Console) -> None:
    """Runs the steps in order, as long as they go well: each needs those before it."""
    for number, run in enumerate(STEPS, start=1):
        title = (run.__doc__ or run.__name__).split(";")[0].split("\n")[0].rstrip(".")
        step = Step(name=run.__name__, title=title)
        demo.record.steps.append(step)
        console.print(f"[bold]{number}/{len(STEPS)} {title}[/]")
        began = time.monotonic()
        try:
            run(demo, step)
            step.ok = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the step's result
            step.error = explain(error)
            console.print(f"  failed: {step.error}", style="red", markup=False)
        step.seconds = time.monotonic() - began
        if not step.ok:
            return


def _finish(record: Record, out: Path, console: Console) -> None:
    if any("untrained weights" in step.weights for step in record.steps):
        record.notes.append(
            "Speech marked `untrained weights` was made with the small random bundle that comes with the "
            "project: it exercises the whole chain but is noise, not language. "
            "`voxfleet models pull f5-v1-base` brings the official weights where there is a network."
        )
    record.save(out / "report.json")
    page = report.write(record, out)
    table = Table("step", "ok", "seconds", "artefact", "weights", "measured")
    for step in record.steps:
        measures = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in step.measures.items()
        )
        verdict = "ok" if step.ok else "FAILED"
        table.add_row(step.name, verdict, f"{step.seconds:.1f}", step.artifact, step.weights, measures)
    console.print(table)
    for note in record.notes:
        console.print(note, style="yellow", markup=False)
    console.print(f"report: {page}", markup=False)


def _watch(client: Client, name: str, console: Console) -> job_pb2.Job:
    """Waits for a job: a bar on a terminal, a line every two seconds in a pipe."""
    if console.is_terminal:
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        ) as bars:
            bar = bars.add_task("queued", total=100, facts="")

            def draw(message: job_pb2.WatchJobResponse) -> None:
                shown = message.job.progress
                bars.update(
                    bar,
                    completed=shown.percent,
                    description=shown.phase or "queued",
                    facts=_facts(message.job),
                )

            return client.jobs.wait(name, on_message=draw)
    return client.jobs.wait(name, on_message=_line_printer(console))


def _line_printer(console: Console) -> Callable[[job_pb2.WatchJobResponse], None]:
    printed = 0.0

    def draw(message: job_pb2.WatchJobResponse) -> None:
        nonlocal printed
        if message.HasField("change") or time.monotonic() - printed >= LINE_S:
            printed = time.monotonic()
            shown = message.job.progress
            state = job_pb2.JobState.Name(message.job.state)[10:].lower()
            text = f"  {state} {shown.phase} {shown.percent:.0f}% {_facts(message.job)}"
            console.print(text.rstrip(), markup=False)

    return draw


def _facts(job: job_pb2.Job) -> str:
    shown = job.progress
    parts = [f"{shown.step}/{shown.total_steps}"] if shown.total_steps else []
    parts += [f"{key} {shown.metrics[key]:.3g}" for key in ("loss_mel", "loss_g") if key in shown.metrics]
    if shown.remaining_s:
        parts.append(f"ETA {shown.remaining_s:.0f} s")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
