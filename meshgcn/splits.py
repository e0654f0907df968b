"""Monte Carlo splits: all scans of a person on one side, classes in proportion, checked."""

import numpy as np

__all__ = ["ROLES", "OneClassError", "OverlapError", "check", "monte_carlo", "people"]

ROLES = ("train", "validation", "test")


class OverlapError(ValueError):
    """Scans of one person are in two parts of a split."""


class OneClassError(ValueError):
    """A part of a split lacks a class."""


def monte_carlo(
    subject: np.ndarray,
    label: np.ndarray,
    trials: int,
    fractions: tuple[float, float, float],
    seed: int,
) -> np.ndarray:
    """Independent random splits of people; trial t uses the seed `seed + t`.

    A person who changed class counts as of the class of the first scan.

    Args:
      subject: `[scans]`, any values that tell people apart.
      label: `[scans]`, 0 or 1.
      trials: number of splits.
      fractions: shares of people for training, validation and test; they sum to 1.
      seed: of the first trial.

    Returns:
      int8 `[trials, scans]`, index into `ROLES`.

    Raises:
      ValueError: fractions that do not sum to 1, or arrays of unequal length.
      OneClassError: a class has too few people to be in every part.
    """
    subject, label = np.asarray(subject), np.asarray(label)
    if subject.shape != label.shape or subject.ndim != 1:
        raise ValueError(f"subject {subject.shape} and label {label.shape} need one length")
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {fractions} must be positive and sum to 1")
    _, first, who = np.unique(subject, return_index=True, return_inverse=True)
    kind = label[first]
    roles = np.empty((trials, len(subject)), np.int8)
    for trial in range(trials):
        random = np.random.default_rng(seed + trial)
        role = np.zeros(len(first), np.int8)
        for value in np.unique(kind):
            members = random.permutation(np.flatnonzero(kind == value))
            held = [round(fraction * len(members)) for fraction in fractions[1:]]
            role[members[: held[0]]] = 1
            role[members[held[0] : sum(held)]] = 2
        roles[trial] = role[who]
        check(subject, label, roles[trial], f"trial {trial}")
    return roles


def check(subject: np.ndarray, label: np.ndarray, roles: np.ndarray, name: str = "split") -> None:
    """Raises if a person is in two parts or a part lacks a class.

    Args:
      subject, label: `[scans]`.
      roles: `[scans]`, index into `ROLES`.
      name: what messages call it.

    Raises:
      OverlapError, OneClassError: see there.
    """
    seen: dict[int, set] = {i: set(subject[roles == i].tolist()) for i in range(len(ROLES))}
    for a in range(len(ROLES)):
        for b in range(a):
            both = sorted(seen[a] & seen[b])
            if both:
                raise OverlapError(
                    f"{name}: {len(both)} people are in {ROLES[b]} and {ROLES[a]}: "
                    f"{', '.join(map(str, both[:5]))}"
                )
    classes = np.unique(label)
    if len(classes) < 2:
        raise OneClassError(f"{name}: all {len(label)} scans have the label {classes.tolist()}")
    for index, part in enumerate(ROLES):
        missing = set(classes.tolist()) - set(label[roles == index].tolist())
        if missing:
            raise OneClassError(f"{name}: no scan with label {sorted(missing)} in {part}")


def people(subject: np.ndarray, roles: np.ndarray) -> list[dict[str, list]]:
    """The people of each part of each trial, sorted, as plain values for a file."""
    subject = np.asarray(subject)
    return [
        {part: np.unique(subject[row == i]).tolist() for i, part in enumerate(ROLES)}
        for row in roles
    ]
