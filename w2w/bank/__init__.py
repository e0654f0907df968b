"""The weight bank: many adapters in one memory-mapped store, and what is imported into it.

:class:`Bank` is the store, :mod:`~w2w.bank.folder` imports folders of adapter files, and
:mod:`~w2w.bank.hub_release` reads the space and the adapters that the paper's authors released.
"""

from w2w.bank.store import Bank, BankError, Entry, checksum

__all__ = ["Bank", "BankError", "Entry", "checksum"]
