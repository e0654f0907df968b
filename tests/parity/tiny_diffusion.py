"""Tiny torch models of the three generations of Stable Diffusion, with every parameter random."""

import contextlib
import warnings

import numpy as np
import torch

# The smallest UNet with all kinds of blocks but resizes; it compiles in half of the time.
ONE_LEVEL = dict(
    block_out_channels=(8,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
)
WORDS = "a photo of sks person low quality"


@contextlib.contextmanager
def quiet():
    """Torch, diffusers and transformers warn about themselves; here that is not an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def randomised(make, *args, **settings):
    """A module with noise on every parameter, so that none is hidden by a zero or one."""
    with quiet(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = make(*args, **settings)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return module.eval()


def state(module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def unet(kind="sd1", **changes):
    """diffusers' UNet with the peculiarities of "sd1", "sd2", "sdxl" or "refiner"."""
    import diffusers

    common = dict(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    more = {
        "sd1": {},
        "sd2": dict(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 4),
            use_linear_projection=True,
            upcast_attention=True,
        ),
        "sdxl": dict(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            cross_attention_dim=28,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 10,
        ),
        "refiner": dict(  # of SDXL: one number less besides the pooled text
            **ONE_LEVEL,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=5 * 4 + 10,
        ),
    }
    return randomised(diffusers.UNet2DConditionModel, **{**common, **more[kind], **changes})


def vae(**changes):
    import diffusers

    settings = dict(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=16,
    )
    return randomised(diffusers.AutoencoderKL, **{**settings, **changes})


def text_encoder(projection=None, **changes):
    import transformers

    settings = dict(
        vocab_size=60,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=11,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=projection or 12,
    )
    config = transformers.CLIPTextConfig(**{**settings, **changes})
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return randomised(getattr(transformers, kind), config)


def tokenizer():
    """A CLIP tokenizer whose tokens are letters."""
    import transformers

    letters = sorted(set(WORDS) - {" "})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    with quiet():
        return transformers.CLIPTokenizer(
            vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=11
        )


def pipeline(kind="sd1", scheduler=None):
    """A whole torch pipeline of "sd1" or "sdxl"."""
    import diffusers

    noise = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    with quiet():
        if kind == "sd1":
            return diffusers.StableDiffusionPipeline(
                vae=vae(),
                text_encoder=text_encoder(),
                tokenizer=tokenizer(),
                unet=unet("sd1", **ONE_LEVEL),
                scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, **noise),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        return diffusers.StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(10, hidden_size=16, num_attention_heads=2,
                                        hidden_act="gelu"),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet("sdxl"),
            scheduler=scheduler or diffusers.EulerDiscreteScheduler(
                timestep_spacing="leading", **noise
            ),
            add_watermarker=False,
        )
