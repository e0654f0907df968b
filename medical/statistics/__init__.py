"""Statistics of diagnostic tests: ROC curves, paired comparisons, intervals, calibration.

Everything is NumPy in float64 on the host. Nothing here says that a classifier is fit for use.
"""
