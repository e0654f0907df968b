"""Principal components of populations of adapters, in memory and far beyond it.

:mod:`~w2w.pca.dense` has the methods of :func:`w2w.subspace.fit`; :mod:`~w2w.pca.streaming` fits a
source of rows larger than memory in few passes, over many devices and processes;
:mod:`~w2w.pca.incremental` adds models to a space without starting over. The rest are their parts.
"""
