"""What jsonargparse says about a wrong command line or configuration, in a few lines.

jsonargparse nests exceptions as it nests parsers: each level names a key or a class, the innermost
says what is wrong. Following them gives the place, and the place gives the names that are valid.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from inspect import isabstract, isclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from .configs import shipped
from .errors import UsageError, nearest

_MAX_LINES = 6
_MAX_WIDTH = 240
_PREFERRED = ("lightning_opt.", "torch.optim.", "pytorch_lightning.")  # suggested before others


def explain(parser: ArgumentParser, message: str, error: BaseException | None) -> str:
    """What is wrong, the nearest valid names and a way out, in a few lines.

    Args:
        parser: The parser that failed: LightningCLI's, or that of one of its subcommands.
        message: What jsonargparse would print.
        error: The exception behind the message, if there is one.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, UsageError):  # of a parser further in: explained already
            return str(cause)
    texts = list(dict.fromkeys([message, *map(str, causes)]))  # a level may be told twice
    place = _Place(_subcommand_parser(parser))
    for text in texts:
        place.enter(text)
    leaf = texts[-1]
    if place.missing_class:
        return _shortened(_unknown_class(place, place.missing_class))
    for pattern, answer in _ANSWERS:
        if match := re.search(pattern, leaf):
            return _shortened(answer(place, *match.groups()))
    return _shortened(f"{place.option or place.command}: {leaf}")


class _Place:
    """Where in the configuration an error lies: the option, and the parser that accepts it."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.command = parser.prog.replace(" [options]", "")
        self.parser = parser  # accepts what stands at this place
        self.action: argparse.Action | None = None  # of the innermost option
        self.owner: type | None = None  # the class whose argument it is
        self.missing_class: str | None = None
        self._keys: list[str] = []
        self._helps: list[str] = []

    @property
    def option(self) -> str:
        return self.name()

    def name(self, *keys: str) -> str:
        """The command line's name of the option here, or of one below it."""
        path = ".".join([*self._keys, *keys])
        return f"--{path}" if path else ""

    def enter(self, text: str) -> None:
        """Follows one level of jsonargparse's messages."""
        if match := re.match(r'(?:Parser key "|--)([\w.]+?)(?:"|\.help: )', text):
            self._keys.append(match[1])
            self.action = _action(self.parser, match[1])
        elif match := (
            re.match(r"Problem with given class_path '([^']*)'", text)
            or re.match(r"(?s)Type .* expects a .*class_path='([^']*)'", text)
        ):
            self._enter_class(match[1])

    def help(self) -> str:
        """The command that lists what is accepted here."""
        return " ".join([self.command, *self._helps]) if self._helps else f"{self.command} --help"

    def bases(self) -> list[type]:
        """The classes of which the option here takes subclasses."""
        return _classes(getattr(self.action, "_typehint", None))

    def options(self) -> list[str]:
        """Names of the options that are accepted here."""
        names = (name for action in self.parser._actions for name in action.option_strings)
        return sorted({_bare(name) for name in names if name.startswith("--")})

    def _enter_class(self, path: str) -> None:
        module, _, name = path.rpartition(".")
        try:
            self.owner = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            self.missing_class = path
            return
        parser = type(self.parser)(exit_on_error=False)
        parser.add_class_arguments(self.owner, fail_untyped=False, instantiate=False)
        self.parser = parser
        self._helps.append(f"{self.option}.help {name}")


def _unknown_option(place: _Place, name: str) -> str:
    if place.owner is None:
        if not name.startswith("-") and place.option:
            name = f"{place.option}.{name}"
        bare = _bare(name)
        close = [f"--{option}" for option in _close_options(bare, place.options())]
        return (
            f"{place.command}: there is no option --{bare}.{_did_you_mean(close)}\n"
            f"All options: {place.help()}"
        )
    name = name.removeprefix("init_args.")
    if close := nearest(name, ["class_path", "init_args"]):
        return f"{place.option}: there is no key {name!r}.{_did_you_mean(close)}"
    if place.owner in place.bases() and place.owner.__subclasses__():
        return (
            f"{place.name(name)}: {place.option} needs a class first, for instance "
            f"{_examples(place.bases())}."
        )
    close = [place.name(option) for option in _close_options(name, place.options())]
    return (
        f"{place.name(name)}: {place.owner.__name__} takes no {name!r}.{_did_you_mean(close)}\n"
        f"All it takes: {place.help()}"
    )


def _unknown_in_group(place: _Place, group: str, name: str) -> str:
    return _unknown_option(place, f"--{group}.{name}")


def _unrecognized(place: _Place, arguments: str) -> str:
    first = arguments.split()[0]
    if not first.startswith("-"):
        return f"{place.command}: there is one argument too many: {first!r}."
    return _unknown_option(place, first.split("=")[0])


def _unknown_class(place: _Place, name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return f"{place.option}: there is no file {name}."
    names = _subclass_names(place.bases())
    if place.option == "--optimizer":
        names = [*shipped("optimizers"), *names]
    close = nearest(name.rpartition(".")[2], names)
    message = f"{place.option}: there is no class {name!r}.{_did_you_mean(close)}"
    if not close:
        message += f" It takes, for instance, {_examples(place.bases())}."
    return f"{message}\nA class of your own is named by its import path: package.module.Class."


def _wrong_class(place: _Place, path: str, base: str) -> str:
    bases = " or ".join(cls.__name__ for cls in place.bases()) or base
    return (
        f"{place.option}: {path} is no {bases}. It takes, for instance, {_examples(place.bases())}."
    )


def _wrong_value(place: _Place, value: str) -> str:
    if match := re.fullmatch(r"NestedArg\(key='(.*)', val='?(.*?)'?\)", value):
        return f"{place.name(match[1])}: {match[2]!r} does not fit."
    accepted = _type_name(getattr(place.action, "_typehint", None))
    return f"{place.option}: {value!r} does not fit. It takes {accepted}."


def _missing(place: _Place, keys: str) -> str:
    subcommand = place.command.rpartition(" ")[2]
    names = [place.name(key.removeprefix(f"{subcommand}.")) for key in keys.split(", ")]
    owner = place.owner.__name__ if place.owner else place.command
    message = f"{owner} needs {' and '.join(names)}."
    if names[0] in ("--model", "--data"):
        message += (
            "\nGive classes, for instance --model ImageClassifier --model.network ShallowCNN "
            "--data Digits,\n"
            f"or a configuration: --config FILE, or the name of a shipped one, "
            f"--config {' or '.join(shipped('tasks'))}."
        )
    return message


def _no_yaml(place: _Place, problem: str) -> str:
    told = " ".join(problem.split()).replace('in "<unicode string>", ', "at ")
    return f"this is not valid YAML: {told}."


def _no_mapping(place: _Place, text: str) -> str:
    return f"a configuration has keys and values, not just {text!r}."


def _no_file(place: _Place, path: str) -> str:
    shown = os.path.relpath(path)
    names = [*shipped("tasks"), *shipped("optimizers")]
    close = nearest(Path(path).stem, names)
    return (
        f"{place.option or place.command}: there is no file {shown}, nor a shipped configuration "
        f"of that name.{_did_you_mean(close)}\nShipped are: {', '.join(names)}."
    )


# What the innermost message says, and how it is answered with the groups of the pattern.
_ANSWERS: list[tuple[str, Callable[..., str]]] = [
    (r"^Group '([^']+)' does not accept option '([^']+)'", _unknown_in_group),
    (r"does not accept option '([^']+)'", _unknown_option),
    (r"Option '([^']+)' is not accepted$", _unknown_option),
    (r"^unrecognized arguments: (.+)", _unrecognized),
    (r"(?:Expected a dot import path string|Unexpected import path format): (\S+)", _unknown_class),
    (r"Import path (\S+) does not correspond to a subclass of (\S+?)\.?(?:\s|$)", _wrong_class),
    (r"the following arguments are required: (.+)", _missing),
    (r"File does not exist: '([^']+)'", _no_file),
    (r'(?s)(.+in "<unicode string>".+)', _no_yaml),
    (r"^Unexpected config: (.+)", _no_mapping),
    (r"Got value: (.+)", _wrong_value),
]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _subcommand_parser(parser: ArgumentParser) -> ArgumentParser:
    """The parser of the subcommand that is being run, where ``parser`` is the one above it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = [argument for argument in parser.args if argument in action.choices]
            return action.choices[chosen[0]] if chosen else parser
    return parser


def _action(parser: ArgumentParser, key: str) -> argparse.Action | None:
    return next((action for action in parser._actions if action.dest == key), None)


def _bare(option: str) -> str:
    return option.lstrip("-").removesuffix("+").removesuffix(".help")


def _close_options(name: str, options: Iterable[str]) -> list[str]:
    """Like ``name`` but for the first part of it that no option has.

    >>> _close_options("trainr.max_epochs", ["trainer.max_epochs", "model"])
    ['trainer.max_epochs']
    >>> _close_options("max_epochs", ["trainer.max_epochs", "model"])
    ['trainer.max_epochs']
    """
    options = list(options)
    if inside := [option for option in options if option.endswith(f".{name}")]:
        return inside
    parts = name.split(".")
    known = [option.split(".") for option in options]
    for depth, part in enumerate(parts):
        siblings = {path[depth] for path in known if path[:depth] == parts[:depth] != path}
        if part not in siblings:
            close = nearest(part, siblings)
            return [".".join([*parts[:depth], other, *parts[depth + 1 :]]) for other in close]
    return []


def _classes(hint: Any) -> list[type]:
    """The classes inside a type hint, but for the built-in ones."""
    if isinstance(hint, list):  # the arguments of a Callable
        return []
    if isclass(hint) and not get_args(hint):
        return [] if hint.__module__ in ("builtins", "pathlib") else [hint]
    return list(dict.fromkeys(cls for arg in get_args(hint) for cls in _classes(arg)))


def _subclass_names(bases: Iterable[type]) -> list[str]:
    """Short names of the concrete classes that are imported, this project's first."""
    seen: set[type] = set()
    waiting = list(bases)
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.add(cls)
            waiting.extend(type.__subclasses__(cls))
    public = [
        cls
        for cls in seen
        if not (isabstract(cls) or cls.__name__.startswith("_") or "<locals>" in cls.__qualname__)
    ]
    public.sort(key=lambda cls: (_rank(cls), cls.__name__))
    return list(dict.fromkeys(cls.__name__ for cls in public))


def _rank(cls: type) -> int:
    return next((i for i, name in enumerate(_PREFERRED) if cls.__module__.startswith(name)), 9)


def _examples(bases: list[type]) -> str:
    names = [name for name in _subclass_names(bases) if name not in {b.__name__ for b in bases}]
    return ", ".join(names[:6]) or "package.module.Class"


def _did_you_mean(close: list[str]) -> str:
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _type_name(hint: Any) -> str:
    if hint is None or hint is type(None):
        return "null"
    if isclass(hint) and not get_args(hint):
        return hint.__name__
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_type_name, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(hint))


def _shortened(message: str) -> str:
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    cut = [line if len(line) <= _MAX_WIDTH else f"{line[:_MAX_WIDTH]} …" for line in lines]
    return "\n".join(cut[:_MAX_LINES] + ["…"] * (len(cut) > _MAX_LINES))
