"""The Typer application, its exit statuses and its list of commands.

Each command imports what it needs when it runs, so that --help is quick. Exit status 0 means success, 2 bad input (one
line on stderr), 130 an interruption. Results go to stdout. Progress goes to stderr, and only to a terminal.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer

from ..engine.errors import EngineFileError, PfdiffError
from .arguments.process import OWN_PROCESS, ends_with, leave_at_once
from .arguments.typed import as_typed
from .bench import bench
from .build import build
from .compare import compare
from .demo.demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .kernels import kernels
from .sample import sample
from .serve import serve
from .table import table
from .tune import tune

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
LONGEST_LINE = 600  # of a message
# New objects before Python looks for garbage. At its own 700, looking through the many objects of torch, diffusers and
# an exported graph takes a tenth of a build.
OBJECTS = 50_000
FILE_OPTIONS = (
    "-o",
    "--out",
    "--json",
    "--csv",
    "--pictures",
    "--calibrate-prompts",
    "--calibrate-conditions",
)  # '' would be the current folder
# BadParameter < UsageError < ClickException; Typer keeps the last in its own copy of Click.
ClickException: Any = typer.BadParameter.__mro__[2]


def command() -> NoReturn:
    """The process `pfdiff`: run the command line, and end with its exit status."""
    leave_at_once()
    sys.exit(ends_with(_run(sys.argv[1:], OWN_PROCESS)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 after bad input, 130 after an interruption.

    arguments: by default those of the process.
    """
    return _run(sys.argv[1:] if arguments is None else arguments, None)


def _run(arguments: Sequence[str], process: object) -> int:
    given = list(arguments) or ["--help"]
    try:
        os.getcwd()
    except FileNotFoundError:
        return _fail("the current directory was deleted; change to another one")
    for before, one in zip(("", *given), given, strict=False):
        if any("\ud800" <= letter <= "\udfff" for letter in one):
            return _fail(f"argument {one!a}: its bytes are no UTF-8 text; rename the file")
        name = before if not one else one.removesuffix("=")
        if name in FILE_OPTIONS and one in ("", f"{name}="):
            return _fail(f"{name}: got '', expected the name of a file or folder")
    try:
        with warnings.catch_warnings(), _seldom_collected():
            warnings.showwarning = _announce
            status = app(given, prog_name="pfdiff", standalone_mode=False, obj=process)
        if status == 130:
            return _fail("interrupted", 130)
        return status if isinstance(status, int) else 0
    except ClickException as error:
        return _fail(_with_help(error))
    except EngineFileError as error:
        return _fail(str(error))  # of a file, whose fields are no options
    except PfdiffError as error:
        return _fail(as_typed(str(error)))
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(
            f"{error.filename or 'the system'}: {error.strerror or error}; check the path, its rights and the disk"
        )
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Garbage in cycles is looked for after `OBJECTS` new objects. Large weights do not wait: builds free them."""
    former, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(OBJECTS, *former[1:])
    try:
        yield
    finally:
        gc.set_threshold(*former)
        if not frozen:
            gc.unfreeze()


def _announce(message: Warning | str, *_: object, **__: object) -> None:
    """A warning of the library, such as a plan being built, as one line on stderr."""
    print("pfdiff:", _one_line(str(message)), file=sys.stderr)


def _with_help(error: Any) -> str:
    """A usage error, followed by where the command's help is unless it already asks "did you mean"."""
    message = error.format_message()
    command = error.ctx.command_path if error.ctx else "pfdiff"
    return message if message.endswith("?") else f"{message.rstrip('.')}; see {command} --help"


def _fail(message: str, status: int = 2) -> int:
    print("pfdiff:", _one_line(message), file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """A message without line breaks and control characters; of a very long one the beginning and the remedy."""
    from .output.figures import printable

    line = printable(" ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 105]} ... {line[-100:]}"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("pfdiff", version("pfdiff"))
        raise typer.Exit


@app.callback()
def pfdiff(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Few-step diffusion samplers, compiled into small tables and run on your own network."""


# Options that a command does not declare are the network's conditions, such as --label 3.
CONDITIONS = {"ignore_unknown_options": True, "allow_extra_args": True}

app.command()(build)
app.command(context_settings=CONDITIONS)(sample)
app.command()(info)
app.command()(demo)
app.command()(bench)
app.command(context_settings=CONDITIONS)(tune)
app.command(context_settings=CONDITIONS)(compare)
app.command(context_settings=CONDITIONS)(evaluate)
app.command(context_settings=CONDITIONS)(generate)
app.command()(export)
app.command()(kernels)
app.command()(serve)
app.add_typer(table, name="table")
