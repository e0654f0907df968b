"""The face model that weights2weights customises: a text-conditioned diffusion UNet.

Command:  python launch.py --config=configs/face_base.py
Method:   flow matching with clean-image prediction, SD-type UNet with self- and cross-attention.
Data:     999 CelebA photographs and 25 of the 40 Olivetti people (w2w/data.py), grey, 64 x 64.
Cost and scores: see w2w/weights/face_base.md, the card of the weights that this command made.
Variants: smoke (CI), continue (further steps of the diffusion model, from the shipped weights).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "face_base"
    config.experiment = "w2w.base_experiment"
    config.seed = 0
    config.model = ConfigDict(
        dict(
            image_size=64,
            patch_size=4,
            autoencoder_channels=(64, 128),
            latent_channels=12,
            block_out_channels=(96, 160),
            layers_per_block=1,
            attention_levels=(True, True),
            num_heads=4,
            feed_forward_multiple=2,
            norm_groups=16,
            text_length=8,
            text_width=96,
            text_layers=2,
        )
    )
    config.start = ""  # "shipped" or a file: its autoencoder is kept, its UNet is trained further
    config.data = ConfigDict(
        dict(celeba=999, variants=16, olivetti=40, olivetti_variants=40)
    )
    # Small: what moves a face makes its features soft.
    config.data.jitter = ConfigDict(
        dict(rotation=2.0, shift=0.01, zoom=0.02, contrast=0.15, brightness=0.06, flip=0.5)
    )
    config.autoencoder = ConfigDict(
        dict(
            num_steps=2500,
            batch_size=16,
            learning_rate=1e-3,
            perceptual_weight=0.5,
            kl_weight=1e-4,
            log_every=50,
            checkpoint_every=500,
        )
    )
    config.train = ConfigDict(
        dict(
            num_steps=5200,
            batch_size=32,
            learning_rate=6e-4,
            warmup=200,
            weight_decay=0.01,
            ema_decay=0.999,
            time_mean=0.3,
            time_std=1.0,
            log_every=50,
            checkpoint_every=500,
        )
    )
    config.sample = ConfigDict(dict(steps=12, guidance=2.0, shift=1.5, count=32))
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.quick_compile = variant == "smoke"
    if variant == "smoke":
        config.model.autoencoder_channels = (16, 16)
        config.model.block_out_channels = (16, 32)
        config.model.text_width = 32
        config.data.celeba = 40
        config.data.olivetti = 16
        config.data.variants = 1
        config.data.olivetti_variants = 1
        for part in (config.autoencoder, config.train):
            part.num_steps = 4
            part.batch_size = 8
            part.log_every = 2
            part.checkpoint_every = 3
        config.train.warmup = 2
        config.sample.count = 4
        config.sample.steps = 2
    elif variant == "continue":
        config.start = "shipped"
        config.train.num_steps = 2600
        config.train.learning_rate = 5e-4
    elif variant:
        raise ValueError(
            f"configs/face_base.py has no variant {variant!r}; it has: smoke, continue"
        )
    return config
