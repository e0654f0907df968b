"""Clinical variables as numbers: what is fitted on the training patients is applied to all others.

Numbers are standardised and limited to `LIMIT` deviations (tables hold slips of the pen), and
absent ones become the training mean (0); categories become one column each. A variable that some
training patients lack gets a further column that says so. Columns are in the variables' order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Columns = Mapping[str, np.ndarray]
LIMIT = 5.0


class Patients(NamedTuple):
    """Clinical variables of real patients, and what became of them.

    Attributes:
      columns: variable to its values ``[patients]``, see `fit`.
      labels: int32 ``[patients]``, index into `levels`.
      levels: names of the outcomes, from the least to the most severe.
    """

    columns: dict[str, np.ndarray]
    labels: np.ndarray
    levels: tuple[str, ...]


class VariableError(ValueError):
    """Clinical variables cannot be used; the message names the variable and the value."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """How one variable becomes columns.

    Attributes:
      name: of the variable.
      categories: of a category, sorted; empty for a number.
      mean: of a number in the training set; `deviation` likewise, 1 for a constant.
      absent: whether a column says that the value is absent.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0
    absent: bool = False

    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        own = tuple(f"{self.name}={c}" for c in self.categories) or (self.name,)
        return (*own, f"{self.name} absent") if self.absent else own


@dataclasses.dataclass(frozen=True)
class Encoder:
    """All variables in order; see `fit` and `transform`."""

    variables: tuple[Variable, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(name for variable in self.variables for name in variable.names())

    def transform(self, columns: Columns, unseen: str = "error") -> np.ndarray:
        """float32 ``[patients, columns]``.

        Args:
          columns: variable to its values ``[patients]``, see `fit`; further variables are ignored.
          unseen: what to do with a category that no training patient had: "error", or "zeros" (0 in
            all columns of that variable).

        Raises:
          VariableError: a variable is missing, is not a number, or has an unseen category.
        """
        if unseen not in ("error", "zeros"):
            raise ValueError(f"unseen={unseen!r}; known: error, zeros")
        absent = [v.name for v in self.variables if v.name not in columns]
        if absent:
            raise VariableError(f"no variable {absent[0]!r} ({len(absent)} of "
                                f"{len(self.variables)} are missing)")
        parts = [_encode(v, np.asarray(columns[v.name]), unseen) for v in self.variables]
        return np.concatenate(parts, axis=1)

    def to_plain(self) -> list[dict[str, Any]]:
        """For JSON; `from_plain` reads it."""
        return [dataclasses.asdict(v) for v in self.variables]

    @classmethod
    def from_plain(cls, found: Sequence[Mapping[str, Any]]) -> "Encoder":
        return cls(tuple(
            Variable(**{**v, "categories": tuple(v["categories"])}) for v in found))


def fit(columns: Columns, names: Sequence[str] | None = None) -> Encoder:
    """The encoder of training patients.

    Args:
      columns: variable to its values ``[patients]``: numbers (NaN: absent), or objects of which
        None is absent and the others are categories by their text.
      names: variables to use, in order; all of them if None.

    Raises:
      VariableError: a variable is missing, is infinite, or no patient has it.
    """
    chosen = tuple(columns) if names is None else tuple(names)
    fitted = []
    for name in chosen:
        if name not in columns:
            raise VariableError(f"no variable {name!r}; there are {', '.join(columns)}")
        values = np.asarray(columns[name])
        absent = _absent(values)
        if absent.all():
            raise VariableError(f"variable {name!r}: no training patient has a value")
        if values.dtype == object:
            categories = tuple(sorted({str(v) for v in values[~absent]}))
            fitted.append(Variable(name, categories, absent=bool(absent.any())))
        else:
            known = _numbers(name, values)[~absent]
            mean, deviation = float(known.mean()), float(known.std())
            # The deviation of a constant is not 0 but rounding: of 0.1 three times, 1e-17.
            constant = deviation <= 1e-12 * max(abs(mean), float(np.abs(known).max()))
            fitted.append(Variable(name, (), mean, 1.0 if constant else deviation,
                                   bool(absent.any())))
    return Encoder(tuple(fitted))


def _encode(variable: Variable, values: np.ndarray, unseen: str) -> np.ndarray:
    absent = _absent(values)
    if variable.categories:
        text = np.array(["" if a else str(v) for v, a in zip(values, absent, strict=True)], object)
        strange = sorted({t for t, a in zip(text, absent, strict=True)
                          if not a and t not in variable.categories})
        if strange and unseen == "error":
            raise VariableError(
                f"variable {variable.name!r}: category {strange[0]!r} does not occur in the "
                f"training set, which has {', '.join(variable.categories)}")
        table = (text[:, None] == np.array(variable.categories, object)) & ~absent[:, None]
        table = table.astype(np.float32)
    else:
        number = _numbers(variable.name, values)
        scaled = np.clip((number - variable.mean) / variable.deviation, -LIMIT, LIMIT)
        table = np.where(absent, 0, scaled)[:, None].astype(np.float32)
    if variable.absent:
        table = np.concatenate([table, absent[:, None].astype(np.float32)], axis=1)
    return table


def _absent(values: np.ndarray) -> np.ndarray:
    if values.dtype == object:
        return np.array([v is None for v in values], bool)
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise VariableError(f"variable {name!r}: a number was expected, found {values[:1]!r}")
    if np.isinf(values.astype(np.float64)).any():
        raise VariableError(f"variable {name!r}: a value is infinite")
    return values.astype(np.float64)
