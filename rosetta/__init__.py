"""Rosetta neurons: units that different vision networks share (Dravid et al., ICCV 2023)."""
