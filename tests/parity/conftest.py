"""Makes torchvision importable beside a CPU build of torch, for the oracles that import it."""

import importlib.util
from pathlib import Path

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_operators() -> list[torch.library.Library]:
    """Declares the operators that torchvision's own library would, if it cannot be loaded.

    PyPI's wheel of torchvision is linked against CUDA. Beside a CPU build of torch its library does
    not load, and `import torchvision` fails on the first operator that it describes. No oracle here
    calls one of them. The declarations live as long as the returned object.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return []
    try:
        torch.ops.load_library(Path(found.origin).parent / "_C.so")
        return []
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in OPERATORS:
            library.define(schema)
        return [library]


_DECLARED = _declare_operators()
