"""How the tensors of LoRA files are named: PEFT, diffusers, kohya and the original weights2weights.

One tensor of the queries of one attention layer, in each spelling:

    peft       base_model.model.down_blocks.0.attn1.to_q.lora_A.weight
    w2w        base_model.model.down_blocks.0.attn1.to_q.lora_A.identity1.weight
    diffusers  unet.down_blocks.0.attn1.to_q.lora.down.weight     (or .lora_A.weight)
    model      down_blocks.0.attn1.to_q.lora_A.weight             (or .processor.to_q_lora.down.)
    kohya      lora_unet_down_blocks_0_attn1_to_q.lora_down.weight, and .alpha beside it

    kohya      lora_unet_input_blocks_1_1_attn1_to_q.lora_down.weight       (older block names)

``w2w`` keeps the name of the adapter in its keys, as the original's export does; ``model`` is what
diffusers' ``unet.save_lora_adapter`` writes; ``kohya`` is read by A1111 and ComfyUI. Files of kohya
name blocks as diffusers (SD 1.x, 2.x; also what is written here) or as the original code (SDXL; see
:mod:`~w2w.adapters.original_blocks`); both are read.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from w2w.adapters import original_blocks
from w2w.lora_layout import PEFT_PREFIX, Layout

FORMATS = ("peft", "w2w", "diffusers", "model", "kohya")
W2W_ADAPTER = "identity1"  # the adapter name that the original writes and asks for

_KOHYA, _UNET = "lora_unet_", "unet."
_TEXT_ENCODER = re.compile(r"(lora_te[12]?_|text_encoder(_\d)?\.)")
_TENSOR = re.compile(
    r"(?P<module>.+?)\.(?P<side>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)"
    r"(\.(?P<adapter>[^.]+))?\.weight"
)
_PROCESSOR = re.compile(
    r"(?P<block>.+?)\.(processor\.)?(?P<layer>to_[qkv]|to_out)_lora\.(?P<side>down|up)\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_DOWN = ("lora_A", "lora.down", "lora_down", "down")
_UNSUPPORTED = (
    (r"lora_magnitude_vector|dora_scale", "weight-decomposed LoRA (DoRA)"),
    (r"\.(hada|lokr|oft|boft|glora)_|\.oft_blocks", "a LyCORIS algorithm other than LoRA"),
    (r"lora_mid", "a LoRA of three factors (LoCon, Tucker)"),
    (r"lora_embedding_[AB]", "a LoRA of an embedding"),
    (r"lora_[AB]\b.*\.bias$|\.diff_b$", "a bias"),
    (r"\.diff$", "a full difference of weights"),
)
# Names of torch attributes in the UNets of diffusers that contain an underscore: kohya writes the
# dots of a module's name as underscores, too.
_COMPOUND = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "time_emb_proj"),
    *("to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "conv_in", "conv_out"),
    *("conv_shortcut", "time_embedding", "add_embedding", "linear_1", "linear_2"),
)


class AdapterError(ValueError):
    """An adapter file is refused; the message names the file, the key and both numbers."""


class Key(NamedTuple):
    """What the name of a tensor says.

    Attributes:
      format: one of ``FORMATS``, or ``"text encoder"``.
      module: torch name of the adapted module in diffusers; of a kohya file, with underscores for
        dots.
      part: ``"A"`` (down, ``[rank, in]``), ``"B"`` (up, ``[out, rank]``) or ``"alpha"``.
      adapter: name of the adapter inside a ``w2w`` key, otherwise empty.
    """

    format: str
    module: str
    part: str
    adapter: str = ""


def parse(key: str) -> Key:
    """Reads the name of a tensor.

    Raises:
      AdapterError: it is not part of a LoRA; the message says what it is, without file and key.
    """
    if _TEXT_ENCODER.match(key):
        return Key("text encoder", key, "")
    for pattern, what in _UNSUPPORTED:
        if re.search(pattern, key):
            raise AdapterError(f"{what} is not supported")
    family, rest = "model", key
    if key.startswith(_KOHYA):
        family, rest = "kohya", key.removeprefix(_KOHYA)
        stem, dot, end = rest.partition(".")
        if original_blocks.is_original(stem):
            module = original_blocks.to_diffusers(stem)
            if module is None:
                raise AdapterError(
                    f"{stem} is named as in the original Stable Diffusion code, but no module of "
                    "its networks has this name"
                )
            rest = f"{module}{dot}{end}"
    elif key.startswith(_UNET):
        family, rest = "diffusers", key.removeprefix(_UNET).removeprefix(PEFT_PREFIX)
    elif key.startswith(PEFT_PREFIX):
        family, rest = "peft", key.removeprefix(PEFT_PREFIX)

    if found := _PROCESSOR.fullmatch(rest):
        layer = "to_out.0" if found["layer"] == "to_out" else found["layer"]
        return Key(family, f"{found['block']}.{layer}", _part(found["side"]))
    if found := _TENSOR.fullmatch(rest):
        adapter = found["adapter"] or ""
        if adapter and family == "peft":
            family = "w2w"
        elif adapter:
            raise AdapterError(f"it carries an adapter name {adapter!r}, in a {family} key")
        return Key(family, found["module"], _part(found["side"]), adapter)
    if found := _ALPHA.fullmatch(rest):
        return Key(family, found["module"], "alpha")
    raise AdapterError("it is not a tensor of a LoRA")


def _part(side: str) -> str:
    return "A" if side in _DOWN else "B"


def spell(module: str, part: str, format: str) -> str:
    """Name of a tensor in a file of this format; inverse of :func:`parse`.

    Args:
      module: torch name of the module.
      part: ``"A"``, ``"B"``, or ``"alpha"`` (kohya only).
      format: one of ``FORMATS``.
    """
    down = part == "A"
    match format:
        case "peft":
            return f"{PEFT_PREFIX}{module}.lora_{part}.weight"
        case "w2w":
            return f"{PEFT_PREFIX}{module}.lora_{part}.{W2W_ADAPTER}.weight"
        case "diffusers":
            return f"{_UNET}{module}.lora.{'down' if down else 'up'}.weight"
        case "model":
            return f"{module}.lora_{part}.weight"
        case "kohya":
            stem = f"{_KOHYA}{module.replace('.', '_')}"
            return f"{stem}.alpha" if part == "alpha" else f"{stem}.lora_{_SIDES[part]}.weight"
    raise ValueError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")


_SIDES = {"A": "down", "B": "up"}


def dotted(names: Iterable[str], layout: Layout | None) -> dict[str, str]:
    """Torch names of modules whose dots a kohya file has written as underscores.

    Names of the layout's modules are known exactly; others are split at the attribute names of
    diffusers' UNets.

    Raises:
      AdapterError: two modules of the layout are spelled alike.
    """
    known: dict[str, str] = {}
    for module in () if layout is None else (m[0] for m in layout.modules):
        flat = module.replace(".", "_")
        if flat in known:
            raise AdapterError(f"modules {known[flat]} and {module} have one kohya name, {flat}")
        known[flat] = module
    return {name: known.get(name) or _split(name) for name in names}


def _split(name: str) -> str:
    name = name.replace("_", ".")
    for compound in _COMPOUND:
        spread = re.escape(compound.replace("_", "."))
        name = re.sub(rf"(?<![^.]){spread}(?![^.])", compound, name)
    return name
