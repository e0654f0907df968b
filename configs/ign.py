"""Idempotent Generative Network: one network generates, projects, refines and detects.

Paper:    Shocher et al., "Idempotent Generative Network", ICLR 2024.
Command:  python launch.py --config=configs/ign.py
Cost and numbers: ign/README.md.
Variants: smoke (CI), fashion, faces (Olivetti and CelebA, grey, 64 x 64), celeba64 (the paper's
          network and weights), gpu (MNIST at the published width), seeds (five MNIST trainings).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "ign"
    config.experiment = "ign.experiment"
    config.seed = 0
    config.data = ConfigDict(dict(source="mnist", size=28, channels=1, limit=0))
    config.noise = "normal"  # normal, half or hermitian; see ign/noise.py
    config.net = ConfigDict(
        dict(
            kind="patch", width=32, latent=256, hidden=512, depth=1,
            principal=True,  # the images' principal components beside the layers
            linear=False,  # a learnt linear map there, instead of `principal`
            norm="group", dropout=0.0, conditional=False,
        )
    )
    config.loss = ConfigDict(
        dict(
            metric="l2",  # l1, l2 or lpips
            reconstruction_metric="",  # "" is `metric`
            idempotence_form="drift",  # or purified
            reconstruction=3.0,
            idempotence=2.0,
            tightness=0.9,
            matching=1.0,
            joint=True,  # idempotence and tightness on the matched noise
            clamp=1.5,  # 0: no clamp
            temperature=0.1,  # of transport
            spread=0.3,  # see ign/transport.py
            # Values of a weight that are tried, one training for each and each seed.
            grid=dict(
                reconstruction=(), idempotence=(), tightness=(), matching=(), clamp=(),
                temperature=(), spread=(),
            ),
        )
    )
    config.train = ConfigDict(
        dict(
            seeds=(0,),  # one training for each
            mode="auto",  # vmap, map or auto; see ign/population.py
            num_steps=6000,
            batch_size=64,
            learning_rate=2e-3,
            betas=(0.9, 0.999),
            clip_norm=0.0,
            warmup=100,
            tightness_start=0,
            tightness_warmup=500,
            tightness_decay_from=0.85,  # share of the steps after which its weight falls to 0
            augment=1.0,  # strength, see ign/augment.py
            augment_matching=True,
            input_noise=0.15,
            input_blur=1.5,  # pixels, greatest deviation
            random_noise=True,  # of uniform deviation up to input_noise, for each image
            target="nearest",  # or transport; see ign/matching.py, ign/transport.py
            pool=2,  # samples drawn for each real image (nearest)
            bank=1024,  # samples (and images, for transport) that are remembered
            once=True,  # a sample is used for one image only (nearest)
            balance=0,  # rounds of normalisation (transport)
            slices=64,  # random directions of the spread
            ema_decay=0.99,
            decay_from=0.5,
            log_every=50,
            checkpoint_every=1000,
        )
    )
    config.probe = ConfigDict(dict(count=500, every=1000))
    config.judge = ConfigDict(
        dict(num_steps=1800, batch_size=64, log_every=50, checkpoint_every=0)
    )
    config.baseline = ConfigDict(
        dict(
            num_steps=1000, batch_size=64, learning_rate=2e-3, noise=0.5, augment=1.0,
            log_every=50, checkpoint_every=1000,
        )
    )  # fmt: skip
    config.evaluate = ConfigDict(
        # inception: weights of pytorch-fid (pt_inception-2015-12-05-6726825d.pth), for true FID
        dict(count=2000, other="fashion", inception="")
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.quick_compile = variant == "smoke"  # its programs run for seconds
    if variant in _CHANGES:
        config.update(_CHANGES[variant])
    elif variant:
        known = ", ".join(_CHANGES)
        raise ValueError(f"configs/ign.py has no variant {variant!r}; it has: {known}")
    return config


_FACES = dict(
    data=dict(source="faces", size=64),
    # Stronger distortions undo the alignment of the faces. More steps draw nearer to the data, and
    # repeat themselves more.
    loss=dict(matching=0.4, spread=0.6, tightness=2.0),
    train=dict(num_steps=1200, augment=0.5, augment_matching=False),
    probe=dict(every=200),
    baseline=dict(augment=0.5),
    evaluate=dict(other=""),
)
_CHANGES: dict[str, dict] = {
    "smoke": dict(
        data=dict(limit=1024),
        net=dict(width=8, latent=16, hidden=32),
        train=dict(
            num_steps=6, batch_size=16, bank=64, log_every=2, checkpoint_every=3,
            tightness_warmup=2,
        ),
        probe=dict(count=64, every=3),
        judge=dict(num_steps=8, batch_size=32, log_every=4),
        baseline=dict(num_steps=4, batch_size=16, log_every=2, checkpoint_every=3),
        evaluate=dict(count=128, other=""),
    ),
    "fashion": dict(
        data=dict(source="fashion"),
        judge=dict(num_steps=2000),
        evaluate=dict(other="mnist"),
    ),
    "faces": _FACES,
    "celeba64": dict(
        data=dict(source="celeba", size=64, channels=3),
        noise="half",
        net=dict(kind="dcgan", width=64, latent=512, principal=False),
        loss=dict(
            metric="l1", reconstruction=20.0, idempotence=20.0, tightness=2.5, matching=0.0,
            joint=False,
        ),
        train=dict(
            num_steps=100_000, batch_size=256, learning_rate=1e-4, betas=(0.5, 0.999), warmup=0,
            tightness_warmup=0, tightness_decay_from=1.0, augment=0.0, input_noise=0.0,
            input_blur=0.0, slices=0, ema_decay=0.999, decay_from=1.0,
        ),
        baseline=dict(augment=0.0),
        evaluate=dict(other=""),
    ),
    "gpu": dict(
        net=dict(kind="dcgan", width=64, latent=256),
        train=dict(num_steps=30_000, seeds=(0, 1, 2, 3, 4)),
        baseline=dict(num_steps=8000),
    ),
    "seeds": dict(train=dict(seeds=(0, 1, 2, 3, 4))),
}  # fmt: skip
