"""Objects by name from the reader's own code: ``package.module:attribute`` and ``file.py:attribute``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import shlex
import site
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from convexlab.errors import ConvexLabError, FailureError, MisuseError

__all__ = [
    "accepts",
    "call_accepted",
    "call_asked",
    "check_trusted",
    "failure_in",
    "imported",
    "is_spec",
    "load_object",
    "remember",
    "required_of",
]

# Kinds of data whose name goes on with a path.
_FILES = frozenset({"npz", "imagefolder", "npy", "webdataset"})
# Where code lies that is neither of this package nor the reader's own.
_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED = [*_LIBRARIES, *site.getsitepackages(), site.getusersitepackages()]
# How torch passes on what a worker process of a DataLoader raised.
_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
# Of an error's own words.
_MOST_WORDS = 600
# Names that the user has given or trusted in this process: naming them again in a file adds nothing.
_REMEMBERED: set[str] = set()


def is_spec(name: str) -> bool:
    """Return whether ``name`` is meant for `load_object`: it has a colon, which no registered name has."""
    return ":" in name


def check_trusted(names: Mapping[str, str], source: Path, *, trust: bool) -> None:
    """Refuse names of code or files of this machine that only an untrusted file gives.

    Args:
        names: by option, as ``source`` states them. One without a colon is looked up in a registry: it needs nothing.
        source: the file, which may come from anyone.
        trust: whether the user trusts ``source``.

    Raises:
        MisuseError: such a name, which the user has not given in this process either.
    """
    for option, name in names.items():
        if not trust and is_spec(name) and _identity(name) not in _REMEMBERED:
            raise MisuseError(
                f"{str(source)!r} names {option}={name!r}, which would {_effect(option, name)}. Nothing of that was "
                f"done. If you trust who made the file, pass --trust (trust=True in Python), or name it yourself: "
                f"--{option} {shlex.quote(name)}."
            )


def remember(spec: str) -> None:
    """Note that the user has named or trusted this: `check_trusted` lets it pass from now on."""
    _REMEMBERED.add(_identity(spec))


def _identity(spec: str) -> str:
    """Return a name that stays the same when the current folder changes."""
    kind, _, argument = spec.partition(":")
    if kind in _FILES:
        return f"{kind}:{Path(argument).expanduser().absolute()}"
    source, _, attribute = spec.rpartition(":")
    return f"{Path(source).expanduser().absolute()}:{attribute}" if source.endswith(".py") else spec


def _effect(option: str, spec: str) -> str:
    kind, _, argument = spec.partition(":")
    if option in {"dataset", "data"} and kind in _FILES:
        return f"read {argument!r}"
    source, _, attribute = spec.rpartition(":")
    return f"run the code of {source!r} and call {attribute!r} there"


def load_object(spec: str) -> Any:
    """Import the callable that ``spec`` names.

    A module is looked for in the current folder first, as ``python -m`` does. A file is run once a process, as an
    imported module is, and may import its neighbours. Both run the reader's code: name only code that you trust.

    Args:
        spec: ``package.module:attribute`` or ``path/to/file.py:attribute``; the attribute may be dotted.

    Raises:
        MisuseError: not of this form, no such file, module or attribute, an import that fails, or not callable.
    """
    source, _, attribute = spec.rpartition(":")
    if not source or not attribute:
        raise MisuseError(f"expected 'package.module:factory' or 'file.py:factory', got {spec!r}.")
    module = _load_file(Path(source), spec) if source.endswith(".py") else _load_module(source, spec)
    factory = _attribute(module, attribute, spec)
    if not callable(factory):
        raise MisuseError(
            f"{spec!r} is not callable: expected a function or class, got {type(factory).__name__}. "
            "Name a function that returns the object."
        )
    remember(spec)
    return factory


def imported(module: str, extra: str) -> Any:
    """Import a module that an extra of this package brings.

    Raises:
        MisuseError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MisuseError(
            f"expected {missing.partition('.')[0]!r} to be installed, which the extra {extra!r} brings "
            f"({error}). Install it: pip install 'convexlab[{extra}]'."
        ) from error


def accepts(factory: Callable[..., Any], name: str) -> bool:
    """Return whether ``factory``'s signature names a keyword argument, so that `call_accepted` passes it on."""
    return any(parameter.name == name and _takes_keyword(parameter) for parameter in _parameters(factory))


def call_accepted(factory: Callable[..., Any], spec: str, **available: object) -> Any:
    """Call ``factory`` with those of ``available`` that its signature names, and return what it returns.

    ``**kwargs`` names nothing, so it receives nothing: many factories pass it on to a call that knows other names.

    Args:
        factory: the callable.
        spec: what it was asked for by, for the error message.
        **available: the keyword arguments on offer.

    Raises:
        MisuseError: the factory requires an argument that is not on offer.
        FailureError: the factory itself raised an error, which is the cause of this one.
    """
    named = {parameter.name: parameter for parameter in _parameters(factory)}
    accepted = {name: value for name, value in available.items() if name in named and _takes_keyword(named[name])}
    missing = [name for name, parameter in named.items() if name not in accepted and _is_required(parameter)]
    if missing:
        offered = f"at most the keyword arguments {', '.join(available)}" if available else "no argument"
        raise MisuseError(
            f"{spec!r} requires {', '.join(missing)}: expected a callable that needs {offered}. Give the others "
            "defaults."
        )
    try:
        return factory(**accepted)
    except ConvexLabError:
        raise
    except Exception as error:
        raise FailureError(f"{spec!r} raised {failure_in(error) or _words_of(error)}") from error


def call_asked(factory: Callable[..., Any], spec: str, asked: Mapping[str, object | None], **available: object) -> Any:
    """Call a factory as `call_accepted` does, also with what was asked for; what is None was not.

    Raises:
        MisuseError: it does not take what was asked for, or as `call_accepted`.
        FailureError: as `call_accepted`.
    """
    given = {option: value for option, value in asked.items() if value is not None}
    for option, value in given.items():
        if not accepts(factory, option):
            raise MisuseError(f"{spec!r} takes no {option}, got {value!r}: it decides that itself. Leave {option} out.")
    return call_accepted(factory, spec, **available, **given)


def required_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of the positional arguments that a function needs; none where its signature is not known."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in _parameters(function) if p.kind in positional and _is_required(p)]


def failure_in(error: BaseException) -> str:
    """Return what went wrong in the reader's code and where, "ValueError: no (/home/me/net.py:12, in forward)".

    It is the innermost place in a file of neither this package nor an installed one, or in a package that the reader
    has named. "" where there is none.
    """
    place = _place_in_worker(str(error)) or _place_in(error.__traceback__)
    return f"{_words_of(error)} ({place})" if place else ""


def _words_of(error: BaseException) -> str:
    text = str(error).strip()
    if worker := _IN_WORKER.match(text):
        return f"{worker[1]}: {text.splitlines()[-1].partition(': ')[2]}"
    return f"{type(error).__name__}: {text[:_MOST_WORDS]}{'...' * (len(text) > _MOST_WORDS)}"


def _place_in(trace: TracebackType | None) -> str:
    frames = list(traceback.walk_tb(trace))
    ours = [number for number, (frame, _) in enumerate(frames) if _is_within(frame.f_code.co_filename, [_PACKAGE])]
    own, named = "", ""
    packages = {spec.partition(".")[0].partition(":")[0] for spec in _REMEMBERED} - {"torch", "convexlab"}
    for frame, line in frames[ours[0] if ours else 0 :]:
        code, module = frame.f_code, str(frame.f_globals.get("__name__", ""))
        place = f"{code.co_filename}:{line}, in {code.co_name}"
        if _is_readers(code.co_filename):
            own = place
        elif module.partition(".")[0] in packages:
            named = place
    return own or named


def _place_in_worker(text: str) -> str:
    """Return the place that a worker process of a DataLoader wrote into the error's text."""
    if not _IN_WORKER.match(text):
        return ""
    places = [f"{file}:{line}, in {name}" for file, line, name in _FRAME.findall(text) if _is_readers(file)]
    return places[-1] if places else ""


def _is_readers(file: str) -> bool:
    return not (file.startswith("<frozen") or _is_within(file, [_PACKAGE, *_INSTALLED]))


def _is_within(file: str, folders: Iterable[str]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _load_module(name: str, spec: str) -> ModuleType:
    with _import_errors(spec), _first_on_path(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that exists may itself import one that does not; that is another fault, with another remedy.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise MisuseError(
                f"no module {error.name!r} for {spec!r}. Install it, start in the folder that holds it, "
                "or give a file: path/to/file.py:factory."
            ) from error


def _load_file(path: Path, spec: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise MisuseError(f"no file {str(path)!r} for {spec!r}. Check the path; it is taken from the current folder.")
    # Registered, because dataclasses and pickle look their module up; the checksum keeps equal file names apart.
    name = f"_convexlab_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    located = importlib.util.spec_from_file_location(name, path)
    assert located is not None  # for the type checker: an ending .py always has a loader
    assert located.loader is not None
    module = importlib.util.module_from_spec(located)
    sys.modules[name] = module
    try:
        with _import_errors(spec), _first_on_path(path.parent):
            located.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # as a failed import does, so that the next attempt runs the file again
        raise
    return module


def _attribute(module: ModuleType, dotted: str, spec: str) -> Any:
    value: Any = module
    for name in dotted.split("."):
        if not hasattr(value, name):
            defined = sorted(public for public in vars(value) if not public.startswith("_"))
            shown = ", ".join(defined[:12]) or "nothing"
            raise MisuseError(f"no {name!r} for {spec!r}. Defined there: {shown}{', ...' if defined[12:] else ''}.")
        value = getattr(value, name)
    return value


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some callables written in C tell no signature
        return []


def _takes_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


@contextlib.contextmanager
def _import_errors(spec: str) -> Iterator[None]:
    try:
        yield
    except MisuseError:
        raise
    except Exception as error:
        raise MisuseError(
            f"importing {spec!r} failed: {failure_in(error) or _words_of(error)}. Mend that code first."
        ) from error


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have removed it
            sys.path.remove(entry)
