"""Package description: `pip install -e .` for use, `pip install -e ".[test]"` to run the tests."""

import pathlib

from setuptools import find_packages, setup

METHODS = ("w2w", "ign", "rosetta", "medical", "keypoints", "meshgcn")
README = pathlib.Path(__file__).with_name("README.md")

# Heavy packages that one method needs and the others do not.
EXTRAS = {
    "w2w": ["diffusers>=0.40", "huggingface_hub>=1", "transformers>=5"],
    "keypoints": ["h5py>=3.12", "opencv-python-headless>=4.10", "pyyaml>=6"],
    "medical": ["h5py>=3.12", "pydicom>=3", "scikit-image>=0.25", "scikit-learn>=1.6"],
    "meshgcn": [
        "fast-simplification>=0.1.9", "jraph>=0.0.6.dev0", "meshio>=5.3", "nibabel>=5.3"
    ],
    "rosetta": ["huggingface_hub>=1"],
    # Scenes with ground truth for keypoints, rendered by MuJoCo.
    "sim": ["dm-control>=1.0.28", "mujoco>=3.3,<4"],
}
# Oracles and tools of the test suite; torch is pinned because parity tests compare with it.
EXTRAS["test"] = [
    *(package for method in METHODS for package in EXTRAS.get(method, ())),
    "captum>=0.8",
    "hypothesis>=6.100",
    "mlstatkit>=0.1.9",
    "mypy>=1.15",
    "open_clip_torch>=3.3",
    "pandas>=2.2",
    "peft>=0.19",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "pytorch-fid>=0.3",
    "pytorch-pretrained-biggan==0.1.1",
    "ruff>=0.9",
    "statsmodels>=0.14.4",
    "timm>=1.0.20",
    "torch==2.13.0",
    "torch_geometric>=2.6",
    "torchvision==0.28.0",  # of timm and open_clip; not used, see tests/parity/conftest.py
]
EXTRAS["dev"] = [*EXTRAS["test"], "pre-commit>=4"]

setup(
    name="manifoldry",
    version="0.1.0",
    description="Weight spaces, generative models and shared representations as pure JAX programs",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=[f"{name}{tail}" for name in (*METHODS, "common", "configs")
                                    for tail in ("", ".*")]),
    py_modules=["launch"],
    package_data={name: ["README.md", "weights/*"] for name in METHODS},
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.89",
        "flax>=0.12",
        "grain>=0.2.12",
        "jax>=0.10",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=11",
        "safetensors>=0.5",
        "scipy>=1.14",
        "tensorboardX>=2.6.2",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
