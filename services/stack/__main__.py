"""``python -m services.stack``: Voxfleet whole, on this machine, with nothing but Python."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from services.common.errors import VoxfleetError
from services.stack.config import DEFAULT_HOME, StackConfig
from services.stack.home import Home
from services.stack.stack import Stack

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3

_UP_HELP = """\
Starts PostgreSQL, an S3 server, a Ray head and Voxfleet's five services as child processes on free
loopback ports, and stays in the foreground until Ctrl-C or SIGTERM, when it stops them in order.
A service that crashes is started again. The state directory keeps everything for the next start:
data, ports, secrets and logs. The voxfleet command finds the endpoint and the API key in
HOME/client.json.

Environment:
  VOXFLEET_DATABASE_URL     use this PostgreSQL and start none
  VOXFLEET_S3_ENDPOINT      use this S3 (with VOXFLEET_S3_ACCESS_KEY, _SECRET_KEY, _BUCKET, _SECURE)
                            and start none
  VOXFLEET_BOOTSTRAP_TOKEN  the first team's API key, at the first start (default: generated)
  VOXFLEET_BOOTSTRAP_TEAM   the first team's name (default: local)
  VOXFLEET_LOG_LEVEL        of the services (default: INFO)

Exit status: 0 after a stop that was asked for, 1 where something could not be started.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m services.stack", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser(
        "up",
        help="start everything and stay in the foreground",
        description=_UP_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status = commands.add_parser(
        "status",
        help="say what runs in a state directory",
        description="Says what runs in a state directory. Exit status: 0 where a stack runs, else 3.",
    )
    for command in (up, status):
        command.add_argument(
            "--home", type=Path, default=DEFAULT_HOME, help="the state directory (default: %(default)s)"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    up.add_argument(
        "--virtual-gpus",
        type=int,
        metavar="N",
        help="GPUs for Ray to pretend to have (default: the real ones, or 2 where there are none)",
    )
    up.add_argument("--port", type=int, metavar="N", help="port of the endpoint (default: a free one, kept)")
    up.add_argument(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        dest="extra_env",
        help="environment variable for every service; may be repeated",
    )
    return top


def assignment(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` taken apart."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def has_nvidia_gpu() -> bool:
    """Whether the machine shows an NVIDIA GPU."""
    return Path("/dev/nvidia0").exists()


def up(arguments: argparse.Namespace) -> int:
    """Run a stack until told to stop."""
    virtual_gpus = arguments.virtual_gpus
    if virtual_gpus is None and not has_nvidia_gpu():
        virtual_gpus = 2
    config = StackConfig.from_environ(
        os.environ,
        home=arguments.home,
        virtual_gpus=virtual_gpus,
        gateway_port=arguments.port,
        extra_env=dict(arguments.extra_env),
    )
    # A pipe: an Event's lock may be held by the very thread that a signal interrupts.
    wait_end, ask_end = os.pipe()
    asked = False
    starting = True

    def on_signal(number: int, frame: object) -> None:
        nonlocal asked
        first, asked = not asked, True
        if first:
            os.write(ask_end, b"!")
        if starting and first:  # a second Ctrl-C must not break off the orderly stop
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    stack = Stack(config, say)
    try:
        stack.start()
        starting = False
    except VoxfleetError as error:
        say(f"error: {error.message}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("stopped before everything was up")
        return 0
    try:
        announce(stack, as_json=arguments.json)
        os.read(wait_end, 1)
        say("stopping: the services drain first")
    finally:
        stack.stop()
    say(f"stopped; the state stays in {stack.home}")
    return 0


def announce(stack: Stack, *, as_json: bool) -> None:
    """Say how to use the stack that is up."""
    if as_json:
        print(json.dumps(stack.document() | {"token": stack.token}), flush=True)
        return
    width = max(len(name) for name in stack.metrics)
    print(f"\nVoxfleet is up.\n  endpoint  {stack.endpoint}\n  team      {stack.team}")
    print(f"  token     {stack.token}")
    print(f"  client    {stack.home / 'client.json'} (the voxfleet command reads it)\n  metrics")
    for name, url in stack.metrics.items():
        print(f"    {name:<{width}}  {url}")
    print("Ctrl-C stops it; the state stays.", flush=True)


def status(arguments: argparse.Namespace) -> int:
    """Say what runs in a state directory."""
    if not arguments.home.expanduser().is_dir():
        print(
            json.dumps({"running": False}) if arguments.json else f"no stack was ever run in {arguments.home}"
        )
        return EXIT_NOT_RUNNING
    home = Home(arguments.home)
    running = home.is_locked()
    document = json.loads(home.state_path.read_text()) if running and home.state_path.exists() else {}
    if arguments.json:
        print(json.dumps({"running": running, **document}))
    elif not running:
        print(f"no stack runs in {home.path}")
    else:
        endpoint = document.get("endpoint") or "(none yet)"
        print(f"pid {document.get('pid', '?')}  endpoint {endpoint}  {home.path}")
        for name, facts in document.get("processes", {}).items():
            print(
                f"  {name:<10} {facts['state']:<12} pid {facts['pid'] or '-':<8} "
                f"restarts {facts['restarts']:<3} {facts['address']}"
            )
    return 0 if running else EXIT_NOT_RUNNING


def main(words: list[str] | None = None) -> int:
    """Run one command; the exit status is returned."""
    arguments = parser().parse_args(words)
    return up(arguments) if arguments.command == "up" else status(arguments)


if __name__ == "__main__":
    sys.exit(main())
