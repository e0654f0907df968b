"""Objects of foreign pickles as inert records: their state is looked at, their code never run."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Allowed", "Record"]


class Record:
    """An object of a pickle: arguments and state, no behaviour."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Allowed(Mapping[str, Any]):
    """What a pickle may ask for: known names, and those with some prefixes, which become records.

    Args:
      known: "module.name" -> marker, see `common.restricted_pickle`.
      prefixes: of the other names.
    """

    def __init__(self, known: Mapping[str, Any], prefixes: tuple[str, ...]) -> None:
        self._known, self._prefixes = dict(known), prefixes

    def __contains__(self, name: object) -> bool:
        return name in self._known or str(name).startswith(self._prefixes)

    def __getitem__(self, name: str) -> Any:
        return self._known.get(name, Record)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
