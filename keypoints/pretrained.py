"""ImageNet weights for the ResNet encoder, from a file of the user's."""

import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from common import porting, torch_reader
from common.nets import resnet
from common.restricted_pickle import PickleError
from keypoints.encoders import ResNetEncoder
from keypoints.models import ModelConfig

Path = str | os.PathLike[str]
_HEADS = ("fc.", "classifier.")


class WeightsError(ValueError):
    """A file of weights is damaged or of another network; the message has its name."""


def load(path: Path, config: ModelConfig) -> dict:
    """Parameters of `encoders.ResNetEncoder`; a classifier in the file is left out.

    Args:
        path: `.safetensors`, or a PyTorch file of tensors (`.pth`, `.pt`, `.bin`) with the names of
            torchvision, timm or the Hugging Face hub; a state dict may stand under "model" or
            "state_dict".
        config: sizes of the network.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: see the class.
    """
    if config.backbone != "resnet":
        raise WeightsError(f"{path}: the encoder {config.backbone!r} takes no weights")
    path = pathlib.Path(path)
    try:
        found = (
            safetensors.numpy.load_file(path)
            if path.suffix == ".safetensors" else torch_reader.read(path)
        )  # fmt: skip
    except (PickleError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise WeightsError(f"{path} holds no named tensors but {type(found).__name__}")
    tensors = {name.removeprefix("module."): value for name, value in found.items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
    network = ResNetEncoder(config.stages, config.encoder, config.stem).network()
    try:
        variables = resnet.from_tensors(network, tensors)
    except porting.PortingError as error:
        raise WeightsError(f"{path} holds other weights than the encoder's: {error}") from error
    return {"weights": variables["params"], "statistics": variables["batch_stats"]}
