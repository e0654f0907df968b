"""Configurations of UNet, autoencoder and text encoder from diffusers' ``config.json`` files.

Keys that are used become fields of our configurations. A key that would change the computation and
is not supported at its value is an error that names it, and so is a key that is not known at all
and holds anything but null or false.
"""

from collections.abc import Mapping
from typing import Any

from w2w.diffusion.autoencoder import AutoencoderConfig
from w2w.diffusion.text import TextConfig
from w2w.diffusion.unet import UNetConfig

Config = Mapping[str, Any]

# Left behind by training scripts that averaged weights; no part of the network.
_EMA = {"decay", "inv_gamma", "min_decay", "min_value", "optimization_step", "power",
        "update_after_step", "use_ema_warmup", "collected_params"}

_UNET_USED = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "norm_num_groups", "cross_attention_dim", "transformer_layers_per_block",
    "attention_head_dim", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
}

# Keys and the values at which they change nothing here.
_UNET_ACCEPTED: dict[str, tuple] = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "dual_cross_attention": (False,),
    "use_linear_projection": (False, True),  # the same map, kept as a matrix
    "upcast_attention": (False, True),  # attention weights are float32 always
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
}
_UNET_IGNORED = {"sample_size", "dropout", "addition_embed_type_num_heads", *_EMA}

_VAE_USED = {"in_channels", "out_channels", "down_block_types", "up_block_types",
             "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
             "scaling_factor"}
_VAE_ACCEPTED: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
_VAE_IGNORED = {"sample_size", "force_upcast", *_EMA}  # bfloat16 has float32's range

_TEXT_ACCEPTED: dict[str, tuple] = {
    "model_type": ("clip_text_model",),
    "layer_norm_eps": (1e-5,),
    "use_attention_mask": (False, None),
}


def _check(
    kind: str, config: Config, used: set, accepted: Mapping[str, tuple], ignored: set
) -> None:
    for key, value in config.items():
        if key.startswith("_") or key in used or key in ignored:
            continue
        if not (value in accepted[key] if key in accepted else value in (None, False)):
            raise ValueError(f"{kind} configuration: {key} = {value!r} is not supported")


def _levels(kind: str, key: str, value: Any, count: int) -> tuple[int, ...]:
    """One integer for each level from an integer or a list."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{kind} configuration: {key} = {value!r} for {count} levels")
    return values


def _single(kind: str, key: str, value: Any) -> int:
    """The integer that a list repeats."""
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise ValueError(f"{kind} configuration: {key} = {value!r} differs between levels, which "
                         "is not supported")
    return values.pop()


def unet_config(config: Config, size_count: int = 6) -> UNetConfig:
    """Our configuration of diffusers' ``UNet2DConditionModel``.

    Args:
      config: its ``config.json``.
      size_count: numbers that a UNet with ``text_time`` conditioning is told besides the pooled
        text: 6 of SDXL, 5 of its refiner (sizes, crop, aesthetic score). The file does not say.

    Raises:
      ValueError: a key is not supported at its value.
    """
    _check("UNet", config, _UNET_USED, _UNET_ACCEPTED, _UNET_IGNORED)
    widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
    count = len(widths)
    down = tuple(config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)))
    up = tuple(config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3))
    for key, types, allowed in (
        ("down_block_types", down, {"CrossAttnDownBlock2D": True, "DownBlock2D": False}),
        ("up_block_types", up, {"CrossAttnUpBlock2D": True, "UpBlock2D": False}),
    ):
        if len(types) != count or set(types) - set(allowed):
            raise ValueError(f"UNet configuration: {key} = {list(types)} is not supported")
    attention = tuple(name == "CrossAttnDownBlock2D" for name in down)
    if attention != tuple(name == "CrossAttnUpBlock2D" for name in reversed(up)):
        raise ValueError(f"UNet configuration: up_block_types = {list(up)} does not mirror "
                         f"down_block_types = {list(down)}, which is not supported")
    heads = _levels("UNet", "attention_head_dim", config.get("attention_head_dim", 8), count)
    depth_key = "transformer_layers_per_block"
    depths = _levels("UNet", depth_key, config.get(depth_key, 1), count)
    sizes: dict[str, Any] = {}
    kind = config.get("addition_embed_type")
    if kind == "text_time":
        width = config["addition_time_embed_dim"]
        # What the embedded sizes leave of the input's width is the pooled text.
        pooled = config["projection_class_embeddings_input_dim"] - size_count * width
        if pooled <= 0:
            raise ValueError("UNet configuration: projection_class_embeddings_input_dim = "
                             f"{config['projection_class_embeddings_input_dim']} leaves nothing "
                             f"beside {size_count} sizes of addition_time_embed_dim = {width}")
        sizes = dict(size_embedding=width, pooled_width=pooled, size_count=size_count)
    elif kind is not None:
        raise ValueError(f"UNet configuration: addition_embed_type = {kind!r} is not supported")
    return UNetConfig(
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        block_out_channels=widths,
        layers_per_block=_single("UNet", "layers_per_block", config.get("layers_per_block", 2)),
        attention_levels=attention,
        num_heads=heads,
        cross_attention_dim=_single(
            "UNet", "cross_attention_dim", config.get("cross_attention_dim", 1280)
        ),
        norm_groups=config.get("norm_num_groups", 32),
        transformer_layers=depths,
        **sizes,
    )


def autoencoder_config(config: Config) -> tuple[AutoencoderConfig, float]:
    """Our configuration of diffusers' ``AutoencoderKL`` and its ``scaling_factor``.

    Raises:
      ValueError: a key is not supported at its value.
    """
    _check("autoencoder", config, _VAE_USED, _VAE_ACCEPTED, _VAE_IGNORED)
    widths = tuple(config.get("block_out_channels", (64,)))
    for key, name in (
        ("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"),
    ):
        types = list(config.get(key, [name]))
        if types != [name] * len(widths):
            raise ValueError(f"autoencoder configuration: {key} = {types} is not supported")
    channels = config.get("in_channels", 3)
    if config.get("out_channels", 3) != channels:
        raise ValueError(f"autoencoder configuration: out_channels = {config['out_channels']} with "
                         f"in_channels = {channels} is not supported")
    ours = AutoencoderConfig(
        channels=channels,
        latent_channels=config.get("latent_channels", 4),
        block_out_channels=widths,
        layers_per_block=config.get("layers_per_block", 1),
        norm_groups=config.get("norm_num_groups", 32),
    )
    return ours, float(config.get("scaling_factor", 0.18215))


def text_config(config: Config, projected: bool = False) -> TextConfig:
    """Our configuration of transformers' ``CLIPTextModel``.

    Args:
      config: its ``config.json``; keys of text generation and of training are ignored.
      projected: it is a ``CLIPTextModelWithProjection``.

    Raises:
      ValueError: a key is not supported at its value.
    """
    for key, accepted in _TEXT_ACCEPTED.items():
        if key in config and config[key] not in accepted:
            raise ValueError(f"text encoder configuration: {key} = {config[key]!r} is not "
                             "supported")
    try:
        return TextConfig(
            vocabulary=config.get("vocab_size", 49408),
            length=config.get("max_position_embeddings", 77),
            width=config.get("hidden_size", 512),
            layers=config.get("num_hidden_layers", 12),
            num_heads=config.get("num_attention_heads", 8),
            activation=config.get("hidden_act", "quick_gelu"),
            hidden=config.get("intermediate_size", 2048),
            projection=config.get("projection_dim", 512) if projected else None,
            eos_token=config.get("eos_token_id", 49407),
        )
    except ValueError as error:
        raise ValueError(f"text encoder configuration: hidden_act: {error}") from error
