"""BKinD-3D: 3-D keypoints discovered in synchronised, calibrated videos without labels.

Paper:    Sun et al., "BKinD-3D: Self-Supervised 3D Keypoint Discovery from Multi-View Videos",
          CVPR 2023.
Command:  python launch.py --config=configs/keypoints.py
Cost and numbers: keypoints/README.md.
Variants: smoke (CI), rodent (MuJoCo's rodent, extra `sim`), pose2sim (real people, four cameras),
          gpu (128 pixels, 64^3 voxels), folder (your own videos: --config.data.path, .calibration).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "keypoints"
    config.experiment = "keypoints.experiment"
    config.seed = 0
    config.data = ConfigDict(
        dict(
            source="capsules",  # capsules, rodent, pose2sim or folder
            subjects=5,  # capsules and rodent: animals or clips
            frames=300,  # of each
            views=4,
            size=64,  # pixels
            rate=30.0,  # frames a second
            oversample=2,  # capsules: rays a pixel along each axis
            path="",  # folder: one video or image folder for each camera
            calibration="",  # folder: see keypoints/calibration.py
            unit="mm",  # folder: of the calibration
            joints="",  # folder: known joints of all frames, .csv or .npy, to compare with
            stride=1,  # folder and pose2sim: every n-th frame
            motion=0.08,  # smallest change of a moving pixel, in [0, 1]
        )
    )
    config.volume = ConfigDict(
        dict(
            side=0.0,  # 0: found from cameras and motion
            centre=(0.0, 0.0, 0.0),
            axes="rig",  # or world
            margin=0.2,
        )
    )
    config.split = ConfigDict(dict(test_subjects=1, later=0.2, gap_seconds=1.0))
    config.model = ConfigDict(
        dict(
            keypoints=12,
            voxels=24,
            features=16,
            encoder=(16, 24, 32, 48),
            blocks=1,
            pyramid=32,
            volume=(16, 32, 64),
            front_kernel=3,
            decoder=(48, 32, 24, 16),
            sigmas=(0.0, 0.0, 0.1, 0.06),  # 0: not drawn at this level of the decoder
            aggregation="softmax",  # softmax, sum, mean or confidence
        )
    )
    config.train = ConfigDict(
        dict(
            num_steps=400,
            batch_size=3,
            learning_rate=2e-3,
            warmup=30,
            skeleton_rate=5.0,
            clip=10.0,
            separation=1.0,
            separation_sigma=0.12,
            length=0.5,
            length_start=150,
            length_ramp=100,
            length_momentum=0.95,
            rotation=0.5,
            rotation_start=0,
            rotation_ramp=1,
            silhouette=0.5,
            coverage=0.5,
            overlap=1.0,
            turn=True,
            perceptual=0.0,
            view_dropout=0.1,
            window=1.5,
            smooth=1.0,
            log_every=20,
            checkpoint_every=100,
        )
    )
    config.baseline = ConfigDict(dict(num_steps=400))  # 2-D heat maps + triangulation; 0: left out
    config.supervised = ConfigDict(  # the same network on true joints; 0: left out
        dict(num_steps=600, batch_size=8, learning_rate=2e-3, warmup=30, log_every=20)
    )
    config.evaluate = ConfigDict(dict(by_views=True))
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.quick_compile = variant == "smoke"
    if variant in _CHANGES:
        config.update(_CHANGES[variant])
    elif variant:
        known = ", ".join(_CHANGES)
        raise ValueError(f"configs/keypoints.py has no variant {variant!r}; it has: {known}")
    return config


_CHANGES: dict[str, dict] = {
    "smoke": dict(
        data=dict(subjects=3, frames=40, size=32, oversample=1, views=3),
        model=dict(
            keypoints=4, voxels=8, features=8, encoder=(8, 8, 8), pyramid=8, volume=(8, 8),
            decoder=(8, 8, 8), sigmas=(0.3, 0.2, 0.1),
        ),
        train=dict(
            num_steps=4, batch_size=4, warmup=2, log_every=2, checkpoint_every=3, length_start=1,
            length_ramp=2,
        ),
        baseline=dict(num_steps=2),
        supervised=dict(num_steps=2, batch_size=4, warmup=1, log_every=2),
        split=dict(gap_seconds=0.2),
        evaluate=dict(by_views=False),
    ),
    "rodent": dict(data=dict(source="rodent", subjects=4, frames=400)),
    "pose2sim": dict(
        data=dict(source="pose2sim", size=96, stride=1),
        supervised=dict(num_steps=0),
        split=dict(test_subjects=0, later=0.25, gap_seconds=0.5),
        train=dict(num_steps=200, length_start=80),  # 75 frames are soon known by heart
    ),
    "folder": dict(
        data=dict(source="folder"), split=dict(test_subjects=0, later=0.2),
        supervised=dict(num_steps=0),
    ),
    "gpu": dict(
        data=dict(subjects=12, frames=600, size=128),
        model=dict(
            keypoints=20, voxels=64, features=32, encoder=(32, 64, 128, 192), blocks=2,
            pyramid=96, volume=(32, 64, 128, 128), front_kernel=5, decoder=(192, 128, 64, 32),
            sigmas=(0.0, 0.0, 0.1, 0.04),
        ),
        train=dict(
            num_steps=12_000, batch_size=8, learning_rate=1e-3, warmup=300, length_start=3000,
            length_ramp=1000, checkpoint_every=1000,
        ),
        baseline=dict(num_steps=12_000),
        supervised=dict(num_steps=6000, warmup=300),
    ),
}  # fmt: skip
