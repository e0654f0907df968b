"""The space of an earlier run, which takes in the adapters that were added since.

Only new adapters are computed with (see :mod:`w2w.pca.incremental`). They are told from the earlier
ones by the checksums of their rows, so names may change; a space cannot forget, so the earlier
ones must all be there.
"""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from common.config import ConfigError
from common.stages import RECORD
from common.storage import load_json
from w2w import subspace
from w2w.bank import Bank
from w2w.pca import incremental
from w2w.subspace import Subspace

_OPTION = "config.space.update_from"


class _Chosen:
    """Some rows of a bank, read as they are asked for."""

    def __init__(self, bank: Bank, rows: list[int]) -> None:
        self._bank, self._rows = bank, np.array(rows)
        self.shape, self.dtype = (len(rows), bank.shape[1]), bank.dtype

    def __getitem__(self, where: slice) -> np.ndarray:
        return self._bank.rows[self._rows[where]]


def settings(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Settings of the space stage, among them the earlier run as it is now.

    Args:
      config: the configuration's ``space`` group.
      workdir: of this run.

    Raises:
      ConfigError: ``update_from`` is not a finished earlier run.
    """
    if not config.update_from:  # a fit does not depend on an option that it has no use for
        return {name: value for name, value in config.items() if name != "update_from"}
    folder = pathlib.Path(config.update_from)
    if folder.resolve() == workdir.resolve():
        raise ConfigError(f"{_OPTION}: {folder} is this run itself; give it another --workdir")
    records = {}
    for stage in ("import", "space"):
        path = folder / "stages" / stage / RECORD
        if not path.is_file():
            raise ConfigError(f"{_OPTION}: {folder} is not an earlier run, it has no {path}")
        records[stage] = load_json(path)
    if records["space"]["needs"] != {"import": records["import"]["fingerprint"]}:
        raise ConfigError(f"{_OPTION}: {folder} was interrupted, its space is of other adapters")
    return {**config, "earlier": records["space"]["fingerprint"]}


def updated(config: ConfigDict, bank: Bank) -> tuple[Subspace, dict[str, Any]]:
    """The earlier space with the rows of ``bank`` that it does not have.

    Args:
      config: ``update_from``, and ``components``: 0 for all, if the earlier space has all that its
        adapters span, otherwise for as many as it has.
      bank: all adapters.

    Returns:
      The space, and ``{"from", "known", "new"}``: folder and numbers of adapters.

    Raises:
      ConfigError: adapters of another kind, earlier ones that are not in the bank, or more
        components than there are.
    """
    folder = pathlib.Path(config.update_from)
    before = Bank(folder / "stages/import/bank")
    space, _ = subspace.load(folder / "stages/space/space.safetensors")
    rows = _added(folder, before, bank)
    print(f"{folder}: a space of {len(before)} adapters takes in {len(rows)} new ones")
    whole = space.k == min(space.n - 1, int(np.count_nonzero(space.std)))
    k = config.components or (0 if whole else space.k)
    try:
        if rows:
            space = incremental.update(space, _Chosen(bank, rows), k)
        elif k:
            space = subspace.truncate(space, k)
    except ValueError as error:
        raise ConfigError(f"config.space.components: {error}") from error
    return space, {"from": str(folder), "known": len(before), "new": len(rows)}


def _added(folder: pathlib.Path, before: Bank, bank: Bank) -> list[int]:
    """Rows of ``bank`` that are not in ``before``."""
    for what, theirs, ours in (
        ("rank", before.layout.rank, bank.layout.rank),
        ("alpha", before.alpha, bank.alpha),
        ("layout", before.layout.sha256[:12], bank.layout.sha256[:12]),
        ("bank.dtype", before.dtype, bank.dtype),
    ):
        if theirs != ours:
            raise ConfigError(
                f"{_OPTION}: adapters of {folder} have {what} {theirs}, those of this run {ours}"
            )
    here = {entry.checksum for entry in bank.entries}
    lost = [entry.name for entry in before.entries if entry.checksum not in here]
    if len(lost) == len(before):
        raise ConfigError(f"{_OPTION}: none of the {len(before)} adapters of {folder} is among the "
                          f"{len(bank)} of this run")  # fmt: skip
    if lost:
        raise ConfigError(
            f"{_OPTION}: {len(lost)} of the {len(before)} adapters of {folder} are changed or not "
            f"here, the first is {lost[0]!r}; a space cannot forget them, fit without update_from"
        )
    known = {entry.checksum for entry in before.entries}
    return [row for row, entry in enumerate(bank.entries) if entry.checksum not in known]
