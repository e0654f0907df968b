"""DeepCOVID-Fuse: an image and clinical variables in one classifier; either may be absent.

`experiment` runs ``configs/deepcovid_fuse.py``; `missing` has the policies for absent modalities.
"""
