"""Experiment configurations: one file each, with `get_config(variant="") -> ConfigDict`."""
