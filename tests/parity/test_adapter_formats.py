"""Adapter files of peft and diffusers in both directions, on a small random Stable Diffusion UNet.

The reference of every export is `w2w.lora.merge`: kernels merged by this project are put into the
torch network, and its output is compared with that of the network which loaded the exported file.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from flax import traverse_util
from safetensors.torch import load_file, save_file

from w2w import adapters, lora

pytestmark = pytest.mark.parity

ALPHA, TARGETS = 27, ["to_q", "to_v"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only wait for each other in a network this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def run(unet):
    torch.manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    with torch.no_grad():
        return unet(x, torch.tensor([10, 700]), text).sample.numpy()


@functools.cache
def plain_output():
    return run(new_unet())


def trained(rank, **changes):
    """The UNet inside a PEFT model whose adapter has an effect."""
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=TARGETS, **changes)
    model = peft.get_peft_model(new_unet(), config)
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return model


@pytest.fixture(scope="module", params=[1, 4], ids=["rank1", "rank4"])
def saved(request, tmp_path_factory):
    """A folder written by peft, its layout, its vector by concatenation, the UNet's output.

    The output is that of the kernels that `w2w.lora` merges, checked against peft's own.
    """
    folder = tmp_path_factory.mktemp("peft")
    model = trained(request.param)
    model.save_pretrained(folder, save_embedding_layers=False)
    tensors = load_file(folder / "adapter_model.safetensors")
    vector = np.concatenate([tensors[key].numpy().ravel() for key in sorted(tensors)])
    layout = adapters.layout_of(folder)
    ours = merged_output(vector, layout, ALPHA)
    np.testing.assert_allclose(ours, run(model), atol=1e-5)
    assert np.abs(ours - plain_output()).max() > 0.05
    return folder, layout, vector, ours


def merged_output(vector, layout, alpha):
    """Output of the UNet with kernels merged by `w2w.lora`."""
    unet = new_unet()
    kernels = {m: unet.get_submodule(m).weight.detach().numpy().T for m, _, _ in layout.modules}
    params = traverse_util.unflatten_dict(
        {f"{lora.flax_path(m)}/kernel": kernel for m, kernel in kernels.items()}, sep="/"
    )
    config = lora.LoraConfig(layout.rank, alpha)
    merged = traverse_util.flatten_dict(
        lora.merge(params, lora.unflatten(jnp.asarray(vector), layout), config), sep="/"
    )
    for module in kernels:
        kernel = torch.tensor(merged[f"{lora.flax_path(module)}/kernel"].T.copy())
        unet.get_submodule(module).weight.data = kernel
    return run(unet)


def test_layout_is_that_of_the_network(saved):
    """Order and shapes of a file equal what the network's own modules give."""
    folder, layout, vector, _ = saved
    assert layout.names == tuple(sorted(load_file(folder / "adapter_model.safetensors")))
    modules = [
        (name, module.in_features, module.out_features)
        for name, module in new_unet().named_modules()
        if name.split(".")[-1] in TARGETS
    ]
    assert layout == lora.Layout(tuple(modules), layout.rank)
    assert layout.size == vector.size


def write_peft(folder, path):
    return folder


def write_identity1(folder, path):
    """The original's export keeps the adapter's name in the keys."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (path / "unet").mkdir(parents=True)
    renamed = {k.replace(".weight", ".identity1.weight"): v for k, v in tensors.items()}
    save_file(renamed, path / "unet" / "adapter_model.safetensors")
    config = (folder / "adapter_config.json").read_text()
    (path / "unet" / "adapter_config.json").write_text(config)
    return path


def unet_tensors(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model."): value for key, value in tensors.items()}


def metadata(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def write_pipeline(folder, path, convert=convert_state_dict_to_diffusers, with_metadata=True):
    more = {"unet_lora_adapter_metadata": metadata(folder)} if with_metadata else {}
    StableDiffusionPipeline.save_lora_weights(
        path, unet_lora_layers=convert(unet_tensors(folder)), **more
    )
    return path


def write_raw_pipeline(folder, path):
    return write_pipeline(folder, path, lambda tensors: tensors)


def fill(module, tensors, name):
    """Puts saved factors in the place of an adapter's; works without data, too."""
    named = {key.replace(".weight", f".{name}.weight"): value for key, value in tensors.items()}
    found = module.load_state_dict(named, strict=False, assign=True)
    assert not found.unexpected_keys and not any("lora" in key for key in found.missing_keys)


def write_model(folder, path, make=new_unet):
    unet = make()
    config = peft.LoraConfig(
        **{k: metadata(folder)[k] for k in ("r", "lora_alpha", "target_modules")}
    )
    unet.add_adapter(config, adapter_name="anna")
    fill(unet, unet_tensors(folder), "anna")
    unet.save_lora_adapter(path, adapter_name="anna")
    return path


def write_kohya(folder, path):
    path.mkdir()
    tensors = convert_state_dict_to_kohya(
        {f"unet.{key}": value for key, value in unet_tensors(folder).items()}
    )
    alphas = [key for key in tensors if key.endswith(".alpha")]
    assert alphas and {float(tensors[key]) for key in alphas} == {metadata(folder)["r"]}
    for key in alphas:  # diffusers writes the rank; a trainer writes its alpha
        tensors[key] = torch.tensor(ALPHA)
    save_file(tensors, path / "anna.safetensors")
    return path / "anna.safetensors"


WRITERS = [
    write_peft,
    write_identity1,
    write_pipeline,
    write_raw_pipeline,
    write_model,
    write_kohya,
]


@pytest.mark.parametrize("write", WRITERS)
def test_files_of_the_libraries_give_one_vector(saved, tmp_path, write):
    folder, layout, vector, _ = saved
    path = write(folder, tmp_path / "out")
    loaded = adapters.load(path, layout)  # a warning would be an error
    np.testing.assert_array_equal(loaded.vector, vector)
    assert loaded.vector.dtype == np.float32 and loaded.alpha == ALPHA and loaded.notes == ()
    assert adapters.layout_of(path) == layout


def published_unet():
    """The UNet of Stable Diffusion 1.5 as shapes; adapters of it can be filled and written."""
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder that peft writes for `published_unet`, and its vector by concatenation."""
    config = peft.LoraConfig(r=1, lora_alpha=ALPHA, target_modules=TARGETS)
    model = peft.get_peft_model(published_unet(), config)
    shapes = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    torch.manual_seed(3)
    tensors = {key: torch.randn(value.shape) for key, value in shapes.items()}
    fill(model, tensors, "default")
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder, save_embedding_layers=False)
    written = load_file(folder / "adapter_model.safetensors")
    return folder, np.concatenate([written[key].numpy().ravel() for key in sorted(tensors)])


@pytest.mark.parametrize("write", WRITERS)
def test_files_of_the_libraries_at_the_published_size(published, tmp_path, write):
    """64 modules, 128 tensors, 99,648 values, the same from every file."""
    folder, vector = published
    more = {"make": published_unet} if write is write_model else {}
    path = write(folder, tmp_path / "out", **more)
    layout = adapters.layout_of(path)
    assert (len(layout.modules), len(layout.names), layout.size) == (64, 128, 99_648)
    assert layout.sha256 == "71c04e30d94d3cb81ba19216f5818168e14bdac5534441b2de6a4c9bc7df2af7"
    loaded = adapters.load(path, layout)
    np.testing.assert_array_equal(loaded.vector, vector)
    assert loaded.alpha == ALPHA and np.ptp(vector) > 6
    if write is write_peft:
        back = jax.jit(lambda v: lora.flatten(lora.unflatten(v, layout), layout))(vector)
        np.testing.assert_array_equal(back, vector)


def test_pipeline_file_without_metadata(saved, tmp_path):
    """Refused; folded as diffusers would apply it; or given its alpha."""
    folder, layout, vector, _ = saved
    path = write_pipeline(folder, tmp_path / "out", with_metadata=False)
    with pytest.raises(adapters.AdapterError, match="does not state alpha"):
        adapters.load(path, layout)
    with pytest.warns(UserWarning, match=r"lora_B multiplied by 1 \(alpha 27"):
        loaded = adapters.load(path, layout, missing_alpha=ALPHA)
    np.testing.assert_array_equal(loaded.vector, vector)
    assert loaded.alpha == ALPHA

    unet = new_unet()
    unet.load_lora_adapter(path, weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    factor = layout.rank / ALPHA
    with pytest.warns(UserWarning, match=f"lora_B multiplied by {factor:.6g}"):
        folded = adapters.load(path, layout, alpha=ALPHA, missing_alpha="fold")
    assert folded.alpha == ALPHA
    np.testing.assert_allclose(merged_output(folded.vector, layout, ALPHA), run(unet), atol=1e-5)
    # The effect on the weights is 27 / rank times weaker.
    b = slice(layout.offsets[1], layout.offsets[1] + 8)
    np.testing.assert_allclose(vector[b] / folded.vector[b], ALPHA / layout.rank, rtol=1e-6)


def load_peft(path, name):
    return peft.PeftModel.from_pretrained(new_unet(), path, adapter_name=name)


def load_pipeline(path, name):
    unet = new_unet()
    state, alphas, fields = StableDiffusionPipeline.lora_state_dict(
        path.parent, weight_name=path.name, use_safetensors=True, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(
        state, alphas, unet, adapter_name=name, metadata=fields
    )
    return unet


def load_model(path, name):
    unet = new_unet()
    # Without weight_name diffusers takes the file for a pickle's and drops the header with alpha.
    unet.load_lora_adapter(path.parent, weight_name=path.name, prefix=None, adapter_name=name)
    return unet


@pytest.mark.parametrize(
    ("name", "fold"), [("default", False), ("identity1", False), ("anna", True)]
)
@pytest.mark.parametrize(
    ("format", "load"),
    [
        ("peft", load_peft),
        ("diffusers", load_pipeline),
        ("model", load_model),
        ("kohya", load_pipeline),
    ],
)
def test_exports_change_the_network_as_ours(saved, tmp_path, format, load, fold, name):
    """Under any adapter name, with alpha stated or folded."""
    _, layout, vector, ours = saved
    suffix = "" if format == "peft" else "anna.safetensors"
    path = tmp_path / "out" / suffix
    file = adapters.save(path, vector, layout, alpha=ALPHA, format=format, fold=fold)
    assert file.is_file()
    theirs = run(load(path, name))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    if not fold:
        back = adapters.load(path, layout)
        np.testing.assert_array_equal(back.vector, vector)
        assert back.alpha == ALPHA


def test_export_of_the_original_needs_its_name(saved, tmp_path):
    """As the original's own export: exact as ``identity1``, and nothing under another name."""
    _, layout, vector, wanted = saved
    adapters.save(tmp_path, vector, layout, alpha=ALPHA, format="w2w")
    theirs = run(load_peft(tmp_path / "unet", "identity1"))
    np.testing.assert_allclose(theirs, wanted, atol=1e-5)
    back = adapters.load(tmp_path, layout)
    np.testing.assert_array_equal(back.vector, vector)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        other = run(load_peft(tmp_path / "unet", "anna"))
    np.testing.assert_array_equal(other, plain_output())


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {"attn1.to_q": 2, r"up_blocks\..*attn2.to_v": 8}},
        {"alpha_pattern": {"^down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v": 5}},
    ],
    ids=["rslora", "rank_pattern", "alpha_pattern"],
)
def test_strengths_other_than_the_layouts(tmp_path, changes):
    """Rank-stabilised scale and patterns of ranks and alphas are folded exactly."""
    model = trained(4, **changes)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    layout = adapters.layout_of(tmp_path, rank=8 if "rank_pattern" in changes else 4)
    reduce = "svd" if "rank_pattern" in changes else None
    with pytest.warns(UserWarning, match="lora_B multiplied by|reduced to rank 8"):
        loaded = adapters.load(tmp_path, layout, alpha=10, reduce=reduce)
    np.testing.assert_allclose(merged_output(loaded.vector, layout, 10), run(model), atol=1e-5)


def test_pickled_adapters_go_through_the_restricted_reader(saved, tmp_path):
    folder, layout, vector, _ = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    np.testing.assert_array_equal(adapters.load(tmp_path, layout).vector, vector)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "adapter_model.bin")
    with pytest.raises(adapters.AdapterError, match="adapter_model.bin: .*torch.nn.*Linear"):
        adapters.load(tmp_path, layout)
