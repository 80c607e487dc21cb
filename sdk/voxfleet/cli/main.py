"""The ``voxfleet`` command."""

from __future__ import annotations

import json
import os
import sys

import typer

from voxfleet.cli.commands import audio, fleet, jobs, lexicons, models, setup, speech, trust, voices, webhooks

app = typer.Typer(
    name="voxfleet",
    help="Clone, convert and synthesise voices on a Voxfleet. Every command takes --json; exit codes and "
    "environment are in docs/reference/cli.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (audio, voices, lexicons, speech, jobs, webhooks, models, fleet, trust, setup):
    _module.add(app)


def main() -> None:
    """Runs the command line, and exits with its code."""
    # gRPC's C core writes its own log lines to standard error, where programs expect ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = typer.main.get_command(app).main(prog_name="voxfleet", standalone_mode=False)
    except typer.TyperException as error:
        # How the command was called is wrong.
        if "--json" in sys.argv:
            sys.stderr.write(
                json.dumps({"error": {"reason": "USAGE", "message": error.format_message()}}) + "\n"
            )
        else:
            error.show()  # type: ignore[attr-defined]
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
