"""What the commands share: flags, one clear line for what a user can put right, and the cache of compiled programs.

Import it first: it makes `jrobust` and `configs` importable from any folder.

Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/jrobust/compiled, so the second start of a
command does not compile again. The folder may be deleted at any time.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks on start-up; errors still show

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jrobust import xla_flags
from jrobust.errors import InputError, unknown

xla_flags.set_defaults()  # the backend, which reads them, starts with the first array
ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = flags.FLAGS
TRACEBACK = "JROBUST_TRACEBACK"
# What disks and rights do; any other OSError is an error of ours.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def define_config(*, required: bool = True) -> None:
    """Define --config=FILE[:words], locked: a key that it does not have cannot be set."""
    config_flags.DEFINE_config_file("config", None, "FILE[:word,name=value]", lock_config=True)
    if required:
        flags.mark_flag_as_required("config")


def run(main: Callable[[], int | None]) -> None:
    """Parse the flags, run `main`, and end the process with its status.

    An InputError, a wrong flag or a wrong config ends it with one line on stderr and status 1; `--traceback` or the
    environment variable JROBUST_TRACEBACK=1 shows where it came from.
    """
    if "traceback" not in FLAGS:
        flags.DEFINE_bool("traceback", False, "show where an error came from")
    # Before absl takes the file apart, which prints a usage text of many pages for any mistake.
    app.run(lambda _: _guarded(main), flags_parser=lambda arguments: _guarded(lambda: _parse(arguments), exits=False))


def conclude(failures: list[str]) -> int:
    """Print what failed, a line each, on stderr; return the status: 1 if anything did."""
    for line in failures:
        print(line, file=sys.stderr, flush=True)
    return 1 if failures else 0


def config_argument(line: Sequence[str] | None = None) -> str:
    """Return what is given for --config on a command line, this one's by default, words behind the colon included."""
    line, given = sys.argv if line is None else line, ""
    for position, argument in enumerate(line):
        if match := re.fullmatch(r"--?config=(.*)", argument):
            given = match[1]
        elif argument in ("--config", "-config") and position + 1 < len(line):
            given = line[position + 1]
    return given


def split_overrides(line: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line without its --config.FIELD=VALUE, and these.

    >>> split_overrides(["--config=c.py", "--config.seed", "3", "--noconfig.data.resident", "--workdir=RUN"])
    (['--config=c.py', '--workdir=RUN'], ['--config.seed=3', '--noconfig.data.resident'])
    """
    rest: list[str] = []
    overrides: list[str] = []
    expects_value = False
    for word in line:
        if re.match(r"--?(no)?config\.", word):
            overrides.append(word)
            expects_value = "=" not in word and not re.match(r"--?no", word)
            continue
        if expects_value and not word.startswith("-"):
            overrides[-1] += f"={word}"
        else:
            rest.append(word)
        expects_value = False
    return rest, overrides


def read_config(argument: str, overrides: Sequence[str] = ()) -> Any:
    """Return the config, locked, that a command line with --config=ARGUMENT and these overrides names.

    Raises:
      InputError: as for the command line.
    """
    own, line = flags.FlagValues(), ["", f"--config={argument}", *overrides]
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=own, sys_argv=line)
    try:
        own(line)
    except (flags.Error, AttributeError, KeyError) as error:
        raise _flag_error(error, own, line) from error
    _check_config_file(own, line)
    return own["config"].value


def set_up() -> None:
    """Quieten the libraries and switch the cache of compiled programs on."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    # Orbax leaves futures behind when a damaged checkpoint cannot be read; that is reported in one line of ours.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.showwarning = _show_warning
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "jrobust" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _guarded(call: Callable[[], object], *, exits: bool = True) -> object:
    """Call, and turn what a user can put right into one line and status 1."""
    try:
        result = call()
    except (InputError, OSError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in DISK:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            message = "the device has not enough memory: lower train.batch_size or evaluation.batch_size"
        else:
            message = " ".join(str(error).split())
        if os.environ.get(TRACEBACK, "0") not in ("", "0") or any(_is_traceback(word) for word in sys.argv):
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    if exits:
        sys.exit(result if isinstance(result, int) else 0)
    return result


def _is_traceback(word: str) -> bool:
    return word in ("--traceback", "-traceback", "--traceback=true", "--traceback=True", "--traceback=1")


def _parse(arguments: list[str]) -> list[str]:
    """Return what is left of the arguments after the flags."""
    set_up()
    try:
        rest = FLAGS(arguments)
    except SystemExit:
        sys.exit(0)  # --help, which absl counts as a failure
    except (flags.Error, AttributeError, KeyError) as error:
        raise _flag_error(error, FLAGS, sys.argv) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    if "config" in FLAGS and FLAGS["config"].value is not None:
        _check_config_file(FLAGS, sys.argv)
    return rest


def _check_config_file(values: flags.FlagValues, line: Sequence[str]) -> None:
    """Raise the error for a config file that could not be read; the flag itself would raise it on first use."""
    config: Any = values["config"].value
    try:
        config.keys()
    except OSError as error:
        name = config_argument(line).partition(":")[0]
        names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("[!_]*_*.py"))
        raise unknown("config file", name, names) from error


def _flag_error(error: Exception, values: flags.FlagValues, line: Sequence[str]) -> InputError:
    """Return the error in our words for one of absl's and ml_collections' on a command line."""
    text = str(error.args[0] if error.args else error).strip()
    if "Error whilst parsing config file" in text:  # with the traceback in the text
        last = text.splitlines()[-1]
        kind, _, message = last.partition(": ")
        if kind.endswith("InputError"):
            return InputError(message)
        return InputError(f"{config_argument(line)} could not be read: {last}")
    if "must have a value other than None" in text:
        name = text.partition("--")[2].partition("=")[0]
        return InputError(
            f"--{name} is missing: expected --{name}={'configs/FILE.py' if name == 'config' else 'VALUE'}"
        )
    if isinstance(error, AttributeError | KeyError):
        return _unknown_key(error, text, values, line)
    for theirs, ours in (
        (r"invalid literal for int\(\).*", "expected a whole number"),
        (r"could not convert string to float.*", "expected a number"),
        (r"Failed to parse '.*' as a ConfigDict.*", "this is a section; set one of its keys"),
        (r"Found (\S+) in argv before a value for --config.*", r"\1 comes before --config: write --config=FILE first"),
    ):
        text = re.sub(theirs, ours, text, flags=re.DOTALL)
    return InputError(" ".join(text.split()))


def _unknown_key(error: Exception, text: str, values: flags.FlagValues, line: Sequence[str]) -> InputError:
    """Return the error for a key that the config has not, naming the nearest one of its section."""
    for argument in line:
        match = re.match(r"--?(?:no)?config\.([\w.\[\]]+)", argument)
        if match is None:
            continue
        # Read once more: the flag has no value when one of its overrides is wrong.
        section: Any = values["config"].parser.parse(config_argument(line))
        path = match[1].split(".")
        for depth, key in enumerate(path):
            if not hasattr(section, "keys"):
                return InputError(f"{'.'.join(path[:depth])} is no section of the config: it has no key {key!r}")
            if key not in section:
                above = ".".join([*path[:depth], ""])
                return unknown("config key", above + key, [above + name for name in section])
            section = section[key]
    return InputError(f"{config_argument(line)} raised {type(error).__name__}: {' '.join(text.split())}")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=file or sys.stderr, flush=True)
