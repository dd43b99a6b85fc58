"""Names of estimators, spectra and networks, to which users add their own.

Three registries: :data:`ESTIMATORS`, :data:`SPECTRA` and :data:`NETWORKS`. The built-in entries are
``module:attribute`` strings that are imported on first use, so this module does not import torch. A user adds
an entry with :func:`register_estimator`, :func:`register_spectrum` or :func:`register_network`, or installs a
package that declares an entry point in the group ``rismusic.estimators``, ``rismusic.spectra`` or
``rismusic.networks``.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rismusic.errors import InputError


class Registry:
    """Values by name: built-in ones, those of entry points, and those that were registered at run time.

    Args:
        kind: what an entry is, for messages.
        group: group of entry points that is searched for further names.
        builtin: ``module:attribute`` of each built-in entry.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._builtin = dict(builtin)
        self._registered: dict[str, Any] = {}

    def register(self, name: str, value: Any) -> None:
        """Add an entry, or replace one that was registered under the same name.

        Raises:
            InputError: the name is not an identifier, or belongs to a built-in entry.
        """
        if not name.isidentifier():
            raise InputError(
                "name", f"{name!r} is not a valid {self.kind} name; use letters, digits and underscores"
            )
        if name in self._builtin:
            raise InputError("name", f"{name!r} is a built-in {self.kind} and cannot be replaced")
        self._registered[name] = value

    def unregister(self, name: str) -> None:
        """Remove an entry that was registered at run time; other names are left alone."""
        self._registered.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """All known names, the built-in ones first."""
        return tuple(dict.fromkeys((*self._builtin, *self._entry_points(), *self._registered)))

    def is_builtin(self, name: str) -> bool:
        """Whether an entry belongs to the package. Only those are known to be safe in several threads."""
        return name in self._builtin

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered or name in self._entry_points()

    def get(self, name: str) -> Any:
        """The value of a name, imported if necessary.

        Raises:
            InputError: the name is unknown, or its entry point cannot be imported.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            return getattr(import_module(module), attribute)
        points = self._entry_points()
        if name not in points:
            raise unknown_name(self.kind, self.kind, name, self.names())
        try:
            return points[name].load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                self.kind, f"the entry point {name!r} ({points[name].value}) cannot be imported: {error}"
            ) from error

    def check(self, name: str) -> str:
        """Return the name if it is known; otherwise raise an error."""
        if name not in self:
            raise unknown_name("kind", self.kind, name, self.names())
        return name

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}


def unknown_name(field: str, kind: str, name: str, known: Sequence[str]) -> InputError:
    """The error for a name that is in no registry."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(
        field,
        f"no {kind} is named {name!r}.{hint} Known: {', '.join(known)}; "
        "to use a method of your own, name its module with --plugins",
    )


CLASSICAL_METHODS = ("music", "soft_music", "mvdr", "bartlett", "omp", "relax", "sbl", "best")
"""The built-in methods that need no network."""

SPECTRA = Registry(
    "spectrum",
    "rismusic.spectra",
    {
        "music": "rismusic.estimation.classical:MUSIC",
        "soft_music": "rismusic.estimation.classical:SOFT_MUSIC",
        "mvdr": "rismusic.estimation.classical:MVDR",
        "bartlett": "rismusic.estimation.classical:BARTLETT",
    },
)
"""Spectra: ``SpectrumMethod`` or a function ``(covariance, n_sources) -> Spectrum``."""

ESTIMATORS = Registry(
    "method",
    "rismusic.estimators",
    {
        "hybrid": "rismusic.hybrid:HybridEstimator",
        **dict.fromkeys(CLASSICAL_METHODS, "rismusic.estimation.classical:ClassicalEstimator"),
    },
)
"""Estimators: factories ``(LocateSpec) -> Estimator``, see :class:`rismusic.Estimator`."""

NETWORKS = Registry("network", "rismusic.networks", {"sbl_unrolled": "rismusic.nn.network:Network"})
"""Networks: subclasses of :class:`rismusic.GridNetwork`."""


def method_names() -> tuple[str, ...]:
    """Names that ``locate(method=...)`` takes: all estimators, then the spectra that users added."""
    return tuple(dict.fromkeys((*ESTIMATORS.names(), *SPECTRA.names())))


def check_method(name: str) -> str:
    """Return the name if ``locate`` knows it."""
    if name in ESTIMATORS or name in SPECTRA:
        return name
    raise unknown_name("method", "estimator or spectrum", name, method_names())


def register_estimator(name: str, factory: Callable[..., Any]) -> None:
    """Make an estimator available as ``locate(method=name)``, in benchmarks and in reports.

    Args:
        name: an identifier that no built-in method has.
        factory: ``(LocateSpec) -> Estimator``; the estimator is called as ``(recording, n_sources)``, with
            ``n_sources`` an int, a tensor [S] or ``"auto"``, and returns an :class:`~rismusic.Estimate`.

    Raises:
        InputError: the name is taken by a built-in method.
    """
    if name in SPECTRA:
        raise InputError("name", f"{name!r} is already the name of a spectrum")
    ESTIMATORS.register(name, factory)


def register_spectrum(name: str, function: Any) -> None:
    """Make a spectrum available as ``locate(method=name)`` and in :func:`rismusic.spectrum`.

    Peak search, Newton refinement, maximum likelihood and the estimate of the number of sources are added.

    Args:
        name: an identifier that no built-in method has.
        function: ``(covariance, n_sources) -> Spectrum``, with ``covariance`` the sample covariance of S
            scenes and ``n_sources`` a tensor [S], all at least 1; or a
            :class:`~rismusic.estimation.spectra.SpectrumMethod`.

    Raises:
        InputError: the name is taken by a built-in method.
    """
    if name in ESTIMATORS:
        raise InputError("name", f"{name!r} is already the name of an estimator")
    SPECTRA.register(name, function)


def register_network(name: str, cls: Callable[..., Any]) -> None:
    """Make a network class available as ``--network.kind name`` in training.

    Args:
        name: an identifier that no built-in network has.
        cls: a subclass of :class:`~rismusic.GridNetwork`, built as ``cls(spec, grid)``.

    Raises:
        InputError: the name is taken by a built-in network.
    """
    NETWORKS.register(name, cls)


@contextmanager
def plugin_errors(kind: str, name: str) -> Iterator[None]:
    """Errors of a user's own code are input errors that say where they were raised."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            "method", f"the {kind} {name!r} failed with {cause} (at {last.filename}:{last.lineno})"
        ) from error


def load_plugins(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Import modules that register estimators, spectra or networks, and return their names.

    Raises:
        InputError: a module cannot be imported.
    """
    for module in modules:
        if not all(module.split(".")) or "\0" in module:
            raise InputError("plugins", f"{module!r} is not the name of a module on PYTHONPATH")
        try:
            import_module(module)
        except ImportError as error:
            name = (
                f"the name without .py, {module[:-3]!r}" if module.endswith(".py") else "the name of a module"
            )
            raise InputError(
                "plugins", f"cannot import {module!r} ({error}); give {name} on PYTHONPATH"
            ) from error
    return modules
