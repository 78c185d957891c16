"""Code of plugins, called so that whatever goes wrong in it is an error that names the plugin.

Plugins raise all sorts of things: SystemExit, GeneratorExit, a KeyboardInterrupt of their own. None of them may end
the program, or be taken for a bug of exitkit's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from exitkit.errors import ExitkitError, PluginError, shortage
from exitkit.process import interrupts

Complaint = Callable[..., str | None]
"""complaint(plugin's object, what its method gave, *its arguments) → what is wrong with that, as the end of a sentence
that begins with the method's name; None when nothing is."""

_registered: WeakKeyDictionary[type, tuple[str, str, str]] = WeakKeyDictionary()  # kind, name and distribution


def remember(kind: str, name: str, thing: type, distribution: str) -> None:
    """Note under which name a class was registered, and by which distribution, for messages."""
    _registered.setdefault(thing, (kind, name, distribution))


def called(kind: str, thing: type | str) -> str:
    """What a message calls a class, or whatever has a name: `policy 'margin' of exitkit-margin 0.1.0`."""
    if isinstance(thing, str):
        name = thing
        distribution = next((one[2] for one in _registered.values() if one[:2] == (kind, name)), None)
    else:
        unknown = (kind, f"{thing.__module__}.{thing.__qualname__}", None)
        _, name, distribution = _registered.get(thing, unknown)
    return f"{kind} '{name}'" + (f" of {distribution}" if distribution else "")


def broken(kind: str, thing: type | str, what: str) -> PluginError:
    """The error of a plugin's class, or of what has a name, that does not do what it must."""
    return PluginError(f"{called(kind, thing)} breaks its contract: {what}")


def passes(error: BaseException) -> bool:
    """Whether an error that comes out of a plugin is none of its faults: the user's Control-C, or too little memory."""
    if isinstance(error, KeyboardInterrupt):
        return interrupts.by_user()
    return isinstance(error, Exception) and shortage(error, "") is not None


def reraise(kind: str, thing: type | str, what: str, error: BaseException) -> NoReturn:
    """Raise for what a plugin raised: an error that names it and says `what` happened, or the same."""
    if passes(error):
        raise error
    raise broken(kind, thing, f"{what}: {described(error)}.") from error


def described(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


@contextmanager
def containing(
    kind: str, thing: type, doing: str, allowed: tuple[type[Exception], ...] = (ExitkitError,)
) -> Iterator[None]:
    """Turn what a plugin's class raises into an error that names it.

    Errors that are `allowed` pass: as a rule what exitkit, or somebody in its stead, raises on purpose.
    """
    try:
        yield
    except allowed:
        raise
    except BaseException as error:
        reraise(kind, thing, f"{doing} failed", error)


def contain(
    cls: type,
    kind: str,
    base: type,
    methods: Mapping[str, Complaint | None],
    allowed: tuple[type[Exception], ...] = (),
) -> None:
    """Make methods of a plugin's class contain themselves, and check what they give.

    Those that the class has from exitkit stay as they are: what fails there is not the plugin's fault.

    Args:
        cls: a subclass of `base`, just made.
        kind: what messages call such a class.
        base: the contract.
        methods: of the contract, by name, with what may be wrong with what they give.
        allowed: errors that a method may raise.
    """

    def contained(function: Callable[..., Any], method: str, complaint: Complaint | None) -> Callable[..., Any]:
        @functools.wraps(function)
        def asked(this: Any, *args: Any, **more: Any) -> Any:
            thing = this if isinstance(this, type) else type(this)
            with containing(kind, thing, method, (ExitkitError, *allowed)):
                found = function(this, *args, **more)
                wrong = None if complaint is None else complaint(this, found, *args, **more)
            if wrong is not None:
                raise broken(kind, thing, f"{method} {wrong}.")
            return found

        asked.__dict__[MARK] = True
        return asked

    for method, complaint in methods.items():
        found = inspect.getattr_static(cls, method, None)
        kept_as = type(found) if isinstance(found, property | classmethod) else None
        function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if function is not None and found is not inspect.getattr_static(base, method, None) and _is_plugins(function):
            asked = contained(function, method, complaint)
            setattr(cls, method, asked if kept_as is None else kept_as(asked))


MARK = "__exitkit_contained__"


def _is_plugins(function: Any) -> bool:
    """Whether a function comes from outside of exitkit and is neither abstract nor contained already."""
    if not inspect.isfunction(function) or getattr(function, "__isabstractmethod__", False):
        return False
    return MARK not in function.__dict__ and function.__module__.partition(".")[0] != "exitkit"
