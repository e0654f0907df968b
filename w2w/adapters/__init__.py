"""Adapters made elsewhere: LoRA files of every usual format to and from flat vectors.

:mod:`~w2w.adapters.exchange` has ``load`` and ``save``; the other modules are its parts
(``formats``: spellings of keys, ``files``: one file's tensors, ``config``: rank and alpha,
``vectors``: strength, rank and gauge) and the experiment of ``configs/w2w_adapters.py``.
"""

from w2w.adapters.exchange import (
    FORMATS,
    AdapterError,
    Loaded,
    Reading,
    layout_of,
    load,
    read,
    save,
)

__all__ = ["FORMATS", "AdapterError", "Loaded", "Reading", "layout_of", "load", "read", "save"]
