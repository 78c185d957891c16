"""Makes a command out of a configuration model: one source for flags, files, Python and help."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.logging import RichHandler

from exitkit.configuration.config import Choice
from exitkit.configuration.parsing import merge, option, ordered, require
from exitkit.errors import ExitkitError, ShortageError, UsageError, shortage
from exitkit.process import interrupts, stdout
from exitkit.process.outputs import why

COMMON = "Common"
POSITIONAL = {"artifact": "DIR", "artifacts": "DIR..."}

Show = Callable[[dict[str, Any], Console], None]


def command(
    app: typer.Typer,
    name: str,
    model: type[BaseModel],
    run: Callable[[Any], dict[str, Any]],
    show: Show,
    help: str,
    succeeded: Callable[[dict[str, Any]], bool] = lambda result: True,
    json_needs: str | None = None,
    needs: tuple[str, ...] = (),
    then: str | None = None,
) -> None:
    """Add a command whose options are the fields of `model`.

    Args:
        app: the program.
        name: what the command is called.
        model: its configuration.
        run: what it does; returns the JSON.
        show: prints a result for people.
        help: what `--help` says.
        succeeded: whether a result that was printed ends with exit code 0 or 1.
        json_needs: an option that `--json` cannot do without, because stdout is taken.
        needs: fields that must be given; checked here so that a missing one is said before torch is loaded.
        then: what people would run next, with the names of fields in braces; printed after the result.
    """

    def body(**given: Any) -> None:
        config, assignments = given.pop("config"), given.pop("set")
        as_json, debug = given.pop("json"), given.pop("debug")
        flags = {key: value for key, value in given.items() if value not in (None, [])}
        with reporting(as_json, debug, less_memory(model)) as console:
            settings = merge(model, flags, config, assignments)
            require(settings, *needs)
            if as_json and json_needs is not None and getattr(settings, json_needs) is None:
                raise UsageError(f"--json needs {option(json_needs)}: stdout carries the summary, not the answers.")
            result = run(settings)
            if as_json:
                write_json(result)
            else:
                with stdout.naming():
                    show(result, console)
                    if then is not None:
                        console.print("next:", then.format_map(vars(settings)), highlight=False, soft_wrap=True)
            if not succeeded(result):
                raise typer.Exit(1)

    parameters = [*_from_fields(model), *_common()]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=help, no_args_is_help=name != "demo")(body)


def less_memory(model: type[BaseModel]) -> str:
    """What makes a command need less of it, as the end of a sentence."""
    if "batch_size" in model.model_fields:
        return "use a smaller --batch-size"
    if "max_length" in model.model_fields:
        return "use a smaller --max-length, or fewer rows at a time (--set training.per_device_train_batch_size=8)"
    return "end other programs, or use a machine with more"


class reporting:  # reads as a phrase: with reporting(...)
    """Keeps stdout for the answer, sends logs and progress to stderr, turns errors into messages and exit codes.

    Args:
        as_json: whether an error is JSON on stdout too.
        debug: let errors pass as they are.
        less: what to do when memory runs out, as the end of a sentence.
    """

    def __init__(self, as_json: bool, debug: bool, less: str = "end other programs") -> None:
        self.as_json, self.debug, self.less = as_json, debug, less
        self.open = ExitStack()

    def __enter__(self) -> Console:
        from exitkit import progress

        answers = self.open.enter_context(stdout.kept_clean())
        stderr = Console(stderr=True)
        handler = RichHandler(console=stderr, show_time=False, show_path=False, show_level=True)
        log = logging.getLogger("exitkit")
        log.handlers = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False
        if stderr.is_terminal:
            progress.show_on(stderr)
        return Console(file=answers)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self.open:
            if error is not None and not isinstance(error, typer.Exit) and not self.debug:
                self._explain(error)

    def _explain(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt) or interrupts.pressed():  # libraries that load make others of it
            self._fail("interrupted", 130)
        if isinstance(error, BrokenPipeError):  # a reader like `head` has seen enough
            raise typer.Exit(0) from None
        short = None if isinstance(error, ShortageError) else shortage(error, self.less)
        if short is not None:
            self._fail(short, 1)
        if isinstance(error, ExitkitError):
            self._fail(str(error), error.exit_code)
        if isinstance(error, OSError):
            self._fail(f"{error.filename}: {why(error)}" if error.filename else f"cannot write: {why(error)}", 1)
        if isinstance(error, Exception):
            self._fail(
                f"{type(error).__name__}: {error} (a bug in exitkit or a library; --debug shows the traceback)", 1
            )

    def _fail(self, message: str, code: int) -> NoReturn:
        if self.as_json:
            with suppress(ExitkitError, BrokenPipeError):  # stdout may be what fails
                write_json({"error": message})
        with suppress(OSError):
            Console(stderr=True).print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
        raise typer.Exit(code) from None


def write_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout, in ASCII, which every encoding has."""
    stdout.write(json.dumps(result, indent=2, default=str, allow_nan=False).encode() + b"\n")


def _plain(text: str) -> str:
    """Text as it is, brackets included."""
    return text.replace("[", r"\[")


def _from_fields(model: type[BaseModel]) -> list[inspect.Parameter]:
    found = []
    for name, field in ordered(model).items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), f"{name} has no flag(...)"
        if extra["cli"]:
            found.append(_parameter(name, field, extra))
    return sorted(found, key=lambda parameter: parameter.name not in POSITIONAL)


def _parameter(name: str, field: FieldInfo, extra: dict[str, Any]) -> inspect.Parameter:
    annotation = _cli_type(field)
    help = _help(field)
    if name in POSITIONAL:
        spec: Any = typer.Argument(help=help, metavar=POSITIONAL[name], show_default=False)
    elif annotation is bool:
        spec = typer.Option(f"--{name.replace('_', '-')}", help=help, show_default=False)
    else:
        flags = [f"--{name.replace('_', '-')}", *([extra["short"]] if extra["short"] else [])]
        spec = typer.Option(
            *flags, help=help, show_default=False, rich_help_panel=extra["panel"], metavar=_metavar(name, field)
        )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, spec],
    )


def _cli_type(field: FieldInfo) -> Any:
    """What the command line parses a field as; the model does the rest."""
    kinds = [kind for kind in _members(field.annotation) if kind is not NoneType]
    if field.annotation is bool:
        return bool
    extra = field.json_schema_extra
    if any(kind is Choice for kind in kinds) or (isinstance(extra, dict) and extra["repeat"]):
        return list[str]
    if any(get_origin(kind) is list and get_args(kind)[0] is Path for kind in kinds):
        return list[Path]
    if kinds == [int] or kinds == [Path]:
        return kinds[0]
    return str


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type, without their annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _help(field: FieldInfo) -> str:
    default = field.default
    text = field.description or ""
    if isinstance(default, Choice):
        default = ",".join(default.name)
    if isinstance(default, list):
        default = ",".join(f"{one:g}x" if isinstance(one, float) else str(one) for one in default)
    if default in (None, "") or default is False or field.is_required() or repr(default).startswith("Pydantic"):
        return text
    return f"{text} [dim]\\[default: {default}][/dim]"


def _metavar(name: str, field: FieldInfo) -> str | None:
    for kind in _members(field.annotation):
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
    special = {"target_speedup": "3x", "speedups": "1x,2x,3x", "speedup": "3x", "batch_size": None, "data": "DATA"}
    if name in special:
        return special[name]
    kinds = _members(field.annotation)
    return "NAME" if any(kind is Choice for kind in kinds) else None


def _common() -> list[inspect.Parameter]:
    specs: dict[str, tuple[Any, Any, Any]] = {
        "config": (
            Path,
            None,
            typer.Option("--config", help="YAML file with any of these settings.", rich_help_panel=COMMON),
        ),
        "set": (
            list[str],
            None,
            typer.Option(
                "--set",
                metavar="KEY=VALUE",
                help="Set anything by its dotted name: policy.threshold=0.3, recipe.learning_rate=2e-5.",
                rich_help_panel=COMMON,
            ),
        ),
        "json": (bool, False, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=COMMON)),
        "debug": (bool, False, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=COMMON)),
    }
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind if kind is bool else kind | None, spec],
        )
        for name, (kind, default, spec) in specs.items()
    ]
