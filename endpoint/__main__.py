"""`python -m endpoint up|down`: SageMaker's asynchronous inference on this machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

from endpoint.settings import Settings
from endpoint.terminal import Terminal, TerminalHandler

_LAST_LINES_S = 1.0

DEFAULTS = Settings(data_dir=Path(".endpoint"))


def main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C before the platform listens to it
    options = _parser().parse_args()
    errors = Terminal(sys.stderr.fileno())
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[TerminalHandler(errors)],
        force=True,
    )
    for chatty in ("botocore", "urllib3", "aiohttp", "s3transfer"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from endpoint import platform

    output = Terminal(sys.stdout.fileno())

    def leave(status: int) -> NoReturn:
        for terminal in (output, errors):
            terminal.close(_LAST_LINES_S)
        os._exit(status)

    try:
        if options.command == "down":
            asyncio.run(platform.down(options.data_dir.resolve(), leave))
        else:
            platform.up(_settings(options), output, leave)
    except platform.CannotRun as error:
        errors.put(f"endpoint: {error}")
    except Exception:
        logging.getLogger(__name__).exception("a mistake of the endpoint's own")
    leave(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m endpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULTS.data_dir,
        help="everything that outlives a restart is below it (%(default)s)",
    )
    up = commands.add_parser(
        "up",
        parents=[common],
        help="serve AWS's API until Ctrl-C, which ends all of it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    up.add_argument("--port", type=_port, default=DEFAULTS.port, help="of AWS's API on 127.0.0.1")
    up.add_argument(
        "--backend", default=DEFAULTS.backend, help="S3, SNS, SQS and the rest: embedded, or the URL of another AWS"
    )
    up.add_argument("--region", default=DEFAULTS.region)
    up.add_argument("--account", type=_account, default=DEFAULTS.account)
    up.add_argument(
        "--time-scale",
        type=_scale,
        default=DEFAULTS.time_scale,
        help="the platform's own waiting (start-up window, TTL, metric periods) is so many times shorter",
    )
    up.add_argument("--runner", choices=["process"], default="process", help="what an instance is")
    up.add_argument(
        "--serve", type=_command, default=shlex.join(DEFAULTS.serve), help="the command that an instance's process runs"
    )
    up.add_argument(
        "--concurrency",
        type=int,
        choices=range(1, 1001),
        metavar="1..1000",
        default=DEFAULTS.concurrency,
        help="invocations at once per instance where ClientConfig says nothing",
    )
    up.add_argument(
        "--on-no-answer",
        choices=["fail", "redeliver"],
        default=DEFAULTS.on_no_answer,
        help="what becomes of a request whose container died under it",
    )
    commands.add_parser("down", parents=[common], help="end `up`, or what a killed one has left running")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        data_dir=options.data_dir.resolve(),
        port=options.port,
        backend=options.backend,
        region=options.region,
        account=options.account,
        time_scale=options.time_scale,
        serve=options.serve,
        concurrency=options.concurrency,
        on_no_answer=options.on_no_answer,
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def _account(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and len(text) == 12):
        raise argparse.ArgumentTypeError(f"{text!r} is no account: 12 digits")
    return text


def _command(text: str) -> tuple[str, ...]:
    try:
        command = tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no command: {error}") from error
    if not command:
        raise argparse.ArgumentTypeError("an empty command starts nothing")
    return command


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 1 <= scale <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no time scale: 1 to 1000")
    return scale


if __name__ == "__main__":
    main()
