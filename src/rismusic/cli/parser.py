"""From arguments to a command: options are made from the fields of its spec, and values come in layers.

A value on the command line wins over one in a TOML file, which wins over a preset, which wins over the
default. pydantic checks the result once, so that both sources give the same errors.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rismusic.cli.command import EVERYDAY, Command, Option, note
from rismusic.errors import InputError, renamed_command, renamed_option, renamed_setting
from rismusic.spec import Spec, merged, nested, read_toml

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
_INDENT = 26
# Values that begin as an option does. argparse knows them without an exponent only.
_NEGATIVE = re.compile(r"-(\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|inf(inity)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Setting:
    """One option: a field and its dotted name, without the prefix of those of ``Command.FLAT``."""

    path: str
    field: FieldInfo

    @property
    def option(self) -> Option:
        """How it is written."""
        return next((one for one in self.field.metadata if isinstance(one, Option)), Option())

    @property
    def flag(self) -> str:
        """The long option."""
        return "--" + (self.option.name or self.path).replace("_", "-")

    @property
    def negative(self) -> str:
        """The option that switches it off."""
        start, dot, last = self.flag.removeprefix("--").rpartition(".")
        return f"--{start}{dot}no-{last}"

    @property
    def types(self) -> list[Any]:
        """The types that it may have, of elements where it holds several."""
        return list(_leaves(self.field.annotation))

    @property
    def nargs(self) -> str | None:
        """Number of values, as argparse counts them."""
        alternatives = _alternatives(self.field.annotation)
        several = [one for one in alternatives if get_origin(one) is tuple]
        if not several:
            return None
        return "*" if len(several) == len(alternatives) else "+"

    @property
    def metavar(self) -> str:
        """Placeholder of the value."""
        if self.option.metavar:
            return self.option.metavar
        names = []
        for one in self.types:
            if isinstance(one, type):
                name = {int: "INT", float: "NUMBER", Path: "FILE", str: "NAME"}.get(one, "")
                names += [name] if name else []
            else:
                names.append(str(one))
        return "|".join(dict.fromkeys(names))

    @property
    def help(self) -> str:
        """The docstring of the field, and its default."""
        text = " ".join((self.field.description or "").split())
        default = self.field.default
        if self.field.is_required():
            return f"{text} (required)"
        if isinstance(default, tuple):
            default = " ".join(map(str, default))
        elif isinstance(default, bool):
            default = None
        return text if default in (None, "") else f"{text} (default: {default})"

    def value(self, text: str) -> object:
        """A number where the setting may be one, else the text."""
        if any(one in (int, float) or isinstance(one, (int, float)) for one in self.types):
            for kind in (int, float):
                try:
                    return kind(text)
                except ValueError:
                    pass
        return text


def parse(args: Sequence[str], commands: Mapping[str, type[Command]]) -> Command:
    """The command that the arguments describe."""
    kind = command_kind(args, commands)
    settings = {one.path: one for one in settings_of(kind)}
    typed = _typed(list(args[1:]), kind, settings)
    kind.check_options(typed)
    layers: dict[str, Any] = {}
    files = []
    for name, table in kind.CONFIG_TABLES.items():
        if name in typed:
            content = _from_file(Path(str(typed[name])), kind, table)
            files.append((str(typed[name]), content))
            layers = merged(layers, content)
    options = nested(typed)
    layers = merged(layers, options)
    layers = merged(kind.base(layers), layers)
    for name, field in kind.model_fields.items():
        if field.is_required() and name not in layers:
            needed = settings[name]
            raise InputError(
                needed.metavar if name == kind.POSITIONAL else needed.flag,
                f"is required; see rismusic {args[0]} --help",
            )
    try:
        command = _command(kind, layers)
    except InputError as error:
        wrong = _meant(error.field, settings, typed)
        # The error is in the file if it occurs without the options as well.
        for file, content in files if wrong is None or wrong.path not in typed else ():
            try:
                required = {name: options[name] for name in options if kind.model_fields.get(name)}
                _command(kind, merged(required, content))
            except InputError as first:
                if first.field == error.field:
                    raise InputError(file, str(first)) from None
        raise InputError(error.field if wrong is None else wrong.flag, error.problem) from None
    for path, reason in command.without_effect(typed):
        flag = settings[path].negative if typed[path] is False else settings[path].flag
        note(f"{flag} has no effect: {reason}")
    return command


def command_kind(args: Sequence[str], commands: Mapping[str, type[Command]]) -> type[Command]:
    """The command that is named first."""
    names = ", ".join(commands)
    if not args:
        raise InputError("rismusic", f"give a command: {names} (rismusic --help lists them)")
    changed = renamed_command(" ".join(args[:2]))
    if changed is not None:
        raise InputError(" ".join(("rismusic", *args[:2])), changed)
    if args[0] not in commands:
        close = difflib.get_close_matches(args[0], commands, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {names}"
        raise InputError("rismusic", f"unknown command {args[0]!r}; {hint}")
    return commands[args[0]]


def settings_of(kind: type[Spec], prefix: str = "") -> Iterator[Setting]:
    """All options of a command, its own ones first."""
    flat = kind.FLAT if issubclass(kind, Command) else ""
    groups = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            groups.append((field.annotation, prefix if name == flat else f"{prefix}{name}."))
        elif not any(isinstance(one, Option) and one.hidden for one in field.metadata):
            yield Setting(prefix + name, field)
    for inner, inner_prefix in groups:
        yield from settings_of(inner, inner_prefix)


def _meant(name: str, settings: Mapping[str, Setting], typed: Mapping[str, Any]) -> Setting | None:
    """The option that the field of an error means, which may lack the tables around it; none if unknown."""
    same = [one for one in settings.values() if one.path == name or one.path.endswith(f".{name}")]
    return min(same, key=lambda one: (one.path not in typed, one.path != name), default=None)


def _similar(name: str, known: Iterable[str], n: int = 1) -> list[str]:
    """Names that may have been meant: nearly the same, or in some table."""
    known = list(known)
    inside = [one for one in known if one.endswith("." + name.removeprefix("--"))]
    return difflib.get_close_matches(name, known, n=n, cutoff=0.7) or inside[:n]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise, in place of printing the usage and leaving."""
        name, _, problem = message.removeprefix("argument ").partition(": ")
        if problem in ("expected one argument", "expected at least one argument"):
            problem = "a value is missing"
        raise InputError(name.split("/")[-1] or "rismusic", problem or message)


def _typed(args: list[str], kind: type[Command], settings: Mapping[str, Setting]) -> dict[str, Any]:
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser._negative_number_matcher = _NEGATIVE
    swept = _sweepable(kind)
    for one in settings.values():
        flags = [one.option.short] * bool(one.option.short) + [one.flag]
        if one.types == [bool]:
            parser.add_argument(one.flag, dest=one.path, action="store_true")
            parser.add_argument(one.negative, dest=one.path, action="store_false")
        else:
            nargs = "+" if one.path in swept else one.nargs
            parser.add_argument(*flags, dest=one.path, nargs=nargs)
    known, rest = parser.parse_known_args(args)
    options = (word for word in rest if word.startswith("-") and not _NEGATIVE.fullmatch(word))
    strange = next(options, None)
    if strange is not None:
        raise _unknown_option(strange.partition("=")[0], settings)
    typed = dict(vars(known))
    if rest and kind.POSITIONAL:
        field = kind.positional_field(rest[0])
        if field in typed:
            raise InputError(settings[field].flag, f"given twice: {typed[field]} and {rest[0]}")
        typed[field] = rest.pop(0)
    further, rest = (rest, []) if kind.FURTHER else ([], rest)
    if rest:
        raise InputError("rismusic", f"unexpected argument {rest[0]!r}")
    for path, value in typed.items():
        one = settings[path]
        if isinstance(value, list):
            values = tuple(one.value(text) for text in value)
            single = one.nargs == "+" or path in swept
            typed[path] = values[0] if single and len(values) == 1 else values
        elif isinstance(value, str):
            typed[path] = one.value(value)
    if further:
        typed[kind.FURTHER] = tuple(further)
    return typed


def _unknown_option(flag: str, settings: Mapping[str, Setting]) -> InputError:
    changed = renamed_option(flag)
    if changed is not None:
        return InputError(flag, changed)
    flags = [
        name for one in settings.values() for name in ([one.flag, one.negative][: 1 + (one.types == [bool])])
    ]
    close = _similar(flag, [*flags, HELP[1], HELP_ALL], n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"{HELP_ALL} lists the options of the command"
    return InputError(flag, f"unknown option; {hint}")


def _from_file(path: Path, kind: type[Command], table: str) -> dict[str, Any]:
    """Settings of a TOML file, as far as their names go."""
    content = read_toml(path)
    known = {one.path for one in settings_of(kind)} - set(kind.CONFIG_TABLES)
    tree = (
        {table: content}
        if table
        else {name: value for name, value in content.items() if name not in kind.IGNORED}
    )
    for name in _names(tree):
        if any(one == name or one.startswith(f"{name}.") for one in known):
            continue
        inner = name.removeprefix(f"{table}.") if table else name
        changed = renamed_setting(name)
        if changed is None:
            close = _similar(name, known)
            hint = close[0].removeprefix(f"{table}.") if close and table else "".join(close)
            changed = "unknown setting" + (f"; did you mean {hint}?" if hint else "")
        raise InputError(str(path), f"{inner}: {changed}")
    return tree


def _names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _sweepable(kind: type[Command]) -> set[str]:
    """Settings whose several values make a sweep."""
    return {
        one.path
        for one in settings_of(kind)
        if one.path.partition(".")[0] in kind.SWEPT and one.nargs is None and one.types != [bool]
    }


def _with_sweep(kind: type[Command], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, with those of swept settings apart."""
    sweepable = _sweepable(kind)
    sweep: dict[str, tuple[Any, ...]] = {}
    single: dict[str, Any] = {}
    for table, settings in values.items():
        for name, value in settings.items() if isinstance(settings, Mapping) else ():
            path = f"{table}.{name}"
            if path in sweepable and isinstance(value, (list, tuple)) and value:
                single[path] = value[0]
                if len(value) > 1:
                    sweep[path] = tuple(value)
    if not single:
        return values
    values = merged(values, nested(single))
    return kind.with_sweep(values, sweep) if sweep else values


def _command(kind: type[Command], values: Mapping[str, Any]) -> Command:
    values = _with_sweep(kind, values)
    own = {name: value for name, value in values.items() if name in kind.model_fields}
    if kind.FLAT:
        flat = kind.model_fields[kind.FLAT]
        assert isinstance(flat.annotation, type)
        assert issubclass(flat.annotation, Spec)
        inner = {name: value for name, value in values.items() if name not in kind.model_fields}
        start = flat.default.model_dump(exclude_unset=True) if isinstance(flat.default, Spec) else {}
        own[kind.FLAT] = flat.annotation(**merged(_with_defaults(flat.annotation, inner, start), inner))
    return kind(**own)


def _with_defaults(kind: type[Spec], values: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Below partly given groups of settings, the default of the group, where that is not its class's."""
    tree = dict(start)
    for name, value in values.items():
        field = kind.model_fields.get(name)
        if field is not None and isinstance(field.default, Spec) and isinstance(value, Mapping):
            default = field.default.model_dump(exclude_unset=True)
            tree[name] = merged(default, tree.get(name, {}))
    return tree


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for one in get_args(annotation) for leaf in _alternatives(one)]
    return [] if annotation is NoneType else [annotation]


def _leaves(annotation: Any) -> Iterator[Any]:
    """Types and literal values of an annotation."""
    for one in _alternatives(annotation):
        if get_origin(one) is tuple:
            for part in get_args(one):
                if part is not Ellipsis:
                    yield from _leaves(part)
        elif get_origin(one) is Literal:
            yield from get_args(one)
        else:
            yield one


def overview(description: str, commands: Mapping[str, type[Command]]) -> str:
    """The help of the program."""
    lines = ["usage: rismusic COMMAND [options]", "", description, "", "commands:"]
    for name, kind in commands.items():
        lines += _entry(name, _first_line(kind))
    lines += ["", "options:", *_entry("-h, --help", "Show the help of the program, or of a command.")]
    lines += _entry("--help-all", "With a command: show all of its options.")
    lines += _entry("--version", "Show the version.")
    return "\n".join(lines)


def help_text(name: str, kind: type[Command], *, everything: bool) -> str:
    """The help of a command."""
    settings = list(settings_of(kind))
    shown = [one for one in settings if everything or one.path in EVERYDAY[name]]
    if not everything:
        shown.sort(key=lambda one: EVERYDAY[name].index(one.path))
    word = kind.POSITIONAL
    positional = next((one for one in settings if one.path == word), None)
    usage = f"usage: rismusic {name}"
    if positional is not None:
        required = positional.field.is_required()
        usage += f" {positional.metavar}" if required else f" [{positional.metavar}]"
        usage += f" [{positional.metavar} ...]" if kind.FURTHER else ""
    needed = [one for one in shown if one.field.is_required() and one is not positional]
    usage += "".join(f" {one.flag} {one.metavar}" for one in needed) + " [options]"
    lines = [usage, "", *textwrap.wrap(_first_line(kind), _width()), ""]
    if positional is not None and positional.field.is_required():
        lines += ["arguments:", *_entry(positional.metavar, positional.help), ""]
    group = None
    swept = _sweepable(kind)
    for one in shown:
        if one is positional and positional.field.is_required():
            continue
        table = one.path.rpartition(".")[0] if everything else ""
        if table != group:
            lines += [""] * (group is not None) + [f"{table} options:" if table else "options:"]
            group = table
        flag, text = one.flag, one.help
        if one.types == [bool]:
            if one.field.default is True:
                flag, text = one.negative, f"Do not {text[:1].lower()}{text[1:]}"
        else:
            short = one.option.short
            several = " ..." if one.path in swept else ""
            flag = f"{short}, " * bool(short) + f"{flag} {one.metavar}{several}"
        lines += _entry(flag, text)
    if not everything:
        lines += _entry(HELP_ALL, f"Show all {len(settings)} options.")
    return "\n".join(lines)


def _width() -> int:
    return min(100, max(_INDENT + 20, shutil.get_terminal_size().columns))


def _entry(head: str, text: str) -> list[str]:
    body = textwrap.wrap(text, _width() - _INDENT) or [""]
    if len(head) > _INDENT - 4:
        return [f"  {head}", *(" " * _INDENT + line for line in body)]
    return [f"  {head}".ljust(_INDENT) + body[0], *(" " * _INDENT + line for line in body[1:])]


def _first_line(kind: type[Command]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
