"""AC-GAN whose discriminator is used as the classifier, for few labelled images.

Networks, losses, truncated codes, and the low-data comparison with CNNs of the same trunk: all
subset sizes and seeds of a method are one program.
"""
