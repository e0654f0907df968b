"""BKinD-3D: 3-D keypoints discovered in synchronised, calibrated videos without labels.

Paper:    Sun et al., "BKinD-3D: Self-Supervised 3D Keypoint Discovery from Multi-View Videos",
          CVPR 2023.
Command:  python launch.py --config=configs/keypoints.py
Cost and numbers: keypoints/README.md.
Variants: smoke (CI); rodent, humanoid, fly (MuJoCo's, extra `sim`); pose2sim (a real person before
          four cameras); folder (your own videos: --config.data.path, --config.data.calibration);
          rat7m, human36m (your copies of these, see the files in keypoints/);
          rodent_gpu (128 pixels, 32^3 voxels, minutes of an accelerator); gpu (128 pixels, 64^3
          voxels); published (the paper's sizes and objective, also for one).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.name = "keypoints"
    config.experiment = "keypoints.experiment"
    config.seed = 0
    config.data = ConfigDict(
        dict(
            source="capsules",  # see `keypoints.data.SOURCES`
            subjects=5,  # animals, or clips of MuJoCo's
            frames=300,  # of each
            views=4,
            size=64,  # pixels
            rate=30.0,  # frames a second
            oversample=2,  # capsules: rays a pixel along each axis
            path="",  # folder: one video or image folder for each camera
            calibration="",  # folder: see keypoints/calibration.py
            unit="mm",  # folder: of the calibration
            joints="",  # folder: known joints of all frames, .csv or .npy, to compare with
            stride=1,  # folder, pose2sim and rat7m: every n-th frame
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
            backbone="small",  # small or resnet
            encoder=(16, 24, 32, 48),
            blocks=1,
            stages=(3, 4, 6, 3),  # resnet: 50 layers
            stem=64,
            pyramid=32,
            volume=(16, 32, 64),
            front_kernel=3,
            front_blocks=0,
            full_volume=False,
            decoder=(48, 32, 24, 16),
            sigmas=(0.0, 0.0, 0.1, 0.06),  # 0: not drawn at this level of the decoder
            aggregation="softmax",  # softmax, sum, mean or confidence
        )
    )
    config.train = ConfigDict(
        dict(
            num_steps=800,
            encoder_weights="",  # resnet: a file of ImageNet weights, torchvision's names or timm's
            batch_size=3,
            learning_rate=2e-3,
            warmup=30,
            skeleton_rate=5.0,
            clip=10.0,
            separation=1.0,
            separation_sigma=0.12,
            length=0.5,
            length_start=300,
            length_ramp=200,
            length_momentum=0.95,
            rotation=0.5,
            rotation_start=0,
            rotation_ramp=1,
            silhouette=1.0,
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
    config.baseline = ConfigDict(dict(num_steps=800))  # 2-D heat maps + triangulation; 0: left out
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


def _mujoco(scene: str) -> dict:
    return dict(
        data=dict(source=scene, subjects=4, frames=400, rate=10.0),
        model=dict(keypoints=15),
        # With 1, some keypoints float above the animal and say to which side of the pictures it
        # heads, and the others need not find its head.
        train=dict(silhouette=3.0),
    )


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
    "rodent": _mujoco("rodent"),
    "humanoid": _mujoco("humanoid"),
    "fly": _mujoco("fly"),
    "pose2sim": dict(
        data=dict(source="pose2sim", size=96, stride=1),
        supervised=dict(num_steps=0),
        split=dict(test_subjects=0, later=0.25, gap_seconds=0.5),
        # 75 frames are soon known by heart
        train=dict(num_steps=200, length_start=80, length_ramp=100, silhouette=3.0),
        baseline=dict(num_steps=200),
    ),
    "folder": dict(
        data=dict(source="folder"), split=dict(test_subjects=0, later=0.2),
        supervised=dict(num_steps=0),
    ),
    "rat7m": dict(
        data=dict(source="rat7m", size=96, stride=12),
        split=dict(test_subjects=0, later=0.2, gap_seconds=0.5),
    ),
    "human36m": dict(
        data=dict(source="human36m", size=96, rate=50.0),
        split=dict(test_subjects=0, later=0.2, gap_seconds=0.4),
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
    "rodent_gpu": dict(
        data=dict(source="rodent", subjects=4, frames=400, rate=10.0, size=128),
        model=dict(
            keypoints=20, voxels=32, encoder=(24, 48, 64, 96), pyramid=48, volume=(16, 48, 96),
            decoder=(96, 64, 48, 32),
        ),
        train=dict(
            num_steps=1000, batch_size=8, warmup=60, length_start=375, length_ramp=250,
            checkpoint_every=1000,
        ),
        baseline=dict(num_steps=1000),
        supervised=dict(num_steps=1000, warmup=60),
    ),
    "published": dict(
        data=dict(size=256),
        split=dict(gap_seconds=0.4),  # 20 frames at 50 Hz
        model=dict(
            keypoints=15, voxels=64, features=32, backbone="resnet",
            encoder=(256, 512, 1024, 2048), pyramid=256,
            volume=(32, 64, 128, 128, 128, 128), front_kernel=7, front_blocks=3,
            full_volume=True,
            decoder=(1024, 512, 256, 128, 64, 64),
            sigmas=(0.316, 0.316, 0.1, 0.1, 0.0316, 0.0),
        ),
        train=dict(
            num_steps=20_000, batch_size=1, learning_rate=3e-4, warmup=500, separation=0.1,
            separation_sigma=0.08, length=1.0, length_start=8000, length_ramp=1, rotation=0.0,
            silhouette=0.0, coverage=0.0, overlap=0.0, turn=False, perceptual=1.0,
            view_dropout=0.0, checkpoint_every=1000,
        ),
        baseline=dict(num_steps=0),
        supervised=dict(num_steps=0),
    ),
}  # fmt: skip
