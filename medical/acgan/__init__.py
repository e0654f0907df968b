"""AC-GAN whose discriminator is used as the classifier, for few labelled images.

Networks, losses, truncated codes and the step of one trial; there is no low-data experiment yet.
"""
