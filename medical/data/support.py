"""SUPPORT2: 9,105 seriously ill patients of five hospitals, with their first days and survival.

Knaus et al., "The SUPPORT Prognostic Model", Annals of Internal Medicine 1995; here the copy of the
package SurvSet (Drysdale 2022), in which race, income and so on have been recoded.
"""

import numpy as np

from common import frame_reader, registry
from medical.data.variables import Patients

VARIABLES = (
    "num_age", "fac_sex", "fac_dzgroup", "fac_ca", "fac_diabetes", "fac_dementia", "num_num_co",
    "num_scoma", "num_hday", "num_meanbp", "num_hrt", "num_resp", "num_temp", "num_wblc",
    "num_pafi", "num_alb", "num_bili", "num_crea", "num_sod", "num_ph", "num_glucose", "num_bun",
    "num_urine", "num_adlp", "num_adls",
)  # fmt: skip
"""What is known on the third day. Left out: predictions of SUPPORT's own models (`num_surv2m`,
`num_surv6m`, `num_sps`), what is decided or found later (`fac_dnr`, `fac_sfdm2`), and race, income
and education."""

LEVELS = ("low", "intermediate", "high")


def risk_level(
    days: np.ndarray, died: np.ndarray, cuts: tuple[float, float] = (30.0, 180.0)
) -> np.ndarray:
    """The level of risk from survival: 2 (high) died within the first cut, 1 within the second,
    0 alive after it; -1 unknown: follow-up ended before.

    Args:
      days: ``[n]`` days to death or to the end of follow-up.
      died: ``[n]``, whether it was death.
      cuts: days.
    """
    died, days = np.asarray(died, bool), np.asarray(days, float)
    level = np.where(died & (days <= cuts[0]), 2, np.where(died & (days <= cuts[1]), 1, 0))
    return np.where(~died & (days <= cuts[1]), -1, level).astype(np.int32)


def read(cuts: tuple[float, float] = (30.0, 180.0)) -> Patients:
    """All patients whose level is known, in the order of the table."""
    path = registry.fetch("survset") / "support2.pickle"
    table = frame_reader.read(path).columns
    level = risk_level(table["time"], table["event"], cuts)
    known = level >= 0
    return Patients({name: table[name][known] for name in VARIABLES}, level[known], LEVELS)
