"""The command ``lightning-opt``: which subcommand runs, and how its errors are told.

Nothing heavy is imported here: every subcommand imports its own implementation when it runs, so
that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ._version import __version__
from .errors import UsageError, did_you_mean

PROG = "lightning-opt"


class Command(NamedTuple):
    """A subcommand: its line in ``--help``, and what runs it with the arguments after its name."""

    summary: str
    run: Callable[[str, list[str]], int]


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UsageError` instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}\nIts options: {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].split("=")[0]
            if not name.startswith("-"):
                self.error(f"there is one argument too many: {name!r}.")
            known = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(f"there is no option {name}. {did_you_mean(name, known)}")
        return options


def _lightning(name: str, arguments: list[str]) -> int:
    from .lightning_cli import run

    return run([name, *arguments])


def _study(name: str, arguments: list[str]) -> int:
    from .configs import shipped

    studies = ", ".join(shipped("studies"))
    parser = _Parser(
        prog=f"{PROG} {name}",
        description="Runs a study: tasks × optimizers × learning rates × seeds, then its report. "
        "Cells that are finished already are not run again.",
    )
    parser.add_argument(
        "study", nargs="?", metavar="NAME_OR_FILE", help=f"a shipped study ({studies}) or a file"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/<name of the study>")
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes at a time; default: one a core"
    )
    options = parser.parse(arguments)
    if options.study is None:
        raise UsageError(
            f"{PROG} {name} needs a study: the path of a YAML file, or the name of a shipped one.\n"
            f"Shipped are: {studies}."
        )

    from .study import run_study

    out, counts = run_study(options.study, options.out, options.workers)

    from .report import write_report

    page = write_report(out)
    told = ", ".join(f"{counts[status]} {status}" for status in ("finished", "diverged", "failed"))
    print(f"{told}.\nReport: {page}")
    if counts["failed"]:
        print("The report lists what failed, and why. To try that again, run the study again.")
        return 1
    return 0


def _report(name: str, arguments: list[str]) -> int:
    parser = _Parser(
        prog=f"{PROG} {name}",
        description="Writes the page, figures and tables of a study from its run directories.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the study's output directory")
    directory = parser.parse(arguments).directory

    from .report import write_report

    print(write_report(directory))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1.")
    return int(text)


COMMANDS = {
    "fit": Command("train a model (LightningCLI)", _lightning),
    "validate": Command("evaluate on the validation set (LightningCLI)", _lightning),
    "test": Command("evaluate on the test set (LightningCLI)", _lightning),
    "predict": Command("predict, with a callback that keeps it (LightningCLI)", _lightning),
    "study": Command("compare optimizers over learning rates and seeds", _study),
    "report": Command("write the page of a study from its run directories", _report),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (the process' own by default) and returns the exit code.

    0 is success, 1 a failed run, 2 a mistake in what was asked for, 130 an interruption.

    >>> main(["--version"])
    lightning-opt 0.1.0
    0
    """
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        # Lightning answers an interruption of a fit by exiting with 1.
        if isinstance(exit_.__context__, KeyboardInterrupt):
            return 130
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
            return 1
        return exit_.code or 0


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else None
    if first is None or first in ("-h", "--help"):
        print(_help())
        return 0 if first else 2
    if first == "--version":
        print(f"{PROG} {__version__}")
        return 0
    if first.split("=")[0] in ("-c", "--config"):  # LightningCLI takes it before a subcommand, too
        return _lightning(first, arguments[1:])
    if first not in COMMANDS:
        kind = "option" if first.startswith("-") else "command"
        known = COMMANDS if kind == "command" else ("--help", "--version", "--config")
        raise UsageError(
            f"{PROG}: there is no {kind} {first!r}. {did_you_mean(first, known)}\n"
            f"What there is: {PROG} --help"
        )
    return COMMANDS[first].run(first, arguments[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {COMMANDS[name].summary}" for name in COMMANDS)
    return (
        f"usage: {PROG} [--help] [--version] COMMAND ...\n\n"
        "Plug any optimizer into any LightningModule, compare it fairly, and look at the minimum\n"
        f"it ended in.\n\ncommands:\n{commands}\n\n"
        f"{PROG} COMMAND --help lists a command's options. A first study: {PROG} study demo"
    )
