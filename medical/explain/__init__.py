"""Explanations of image classifiers as pure functions, and how well they find what they should.

Every function takes ``score``, a pure function of images ``[batch, height, width, channels]`` that
returns ``[batch]``: the output to be explained of each image, computed from that image alone. A
fixed class is ``lambda x: apply(params, x)[:, target]``. Close over traced parameters freely:
nothing here compiles, so one `jax.jit` around a call covers a whole batch.
"""
