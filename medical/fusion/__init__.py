"""DeepCOVID-Fuse: an image and clinical variables in one classifier; either may be absent.

Networks, policies for absent modalities and alarms; there is no training run of it yet.
"""
