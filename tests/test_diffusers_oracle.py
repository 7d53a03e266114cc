"""Our diffusers folders against diffusers itself: the same tensors, and they open and run.

Nothing here is asked of the network: every setting comes from the folder that we wrote.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from narrow import checkpoint, read
from oracle import torch
from safetensors.torch import load_file

from ckptaudit import Action, Layout, Options, Precision, convert, scan, verify
from ckptaudit.layouts import FAMILIES, Component
from ckptaudit.layouts.diffusers import folder_files

# Both take more room than all else that tests need; `scripts/test` brings them in its last step.
diffusers: Any = pytest.importorskip("diffusers", reason="diffusers is not installed: no oracle")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
# Where the library is, its own conversion must be too: without it nothing would be compared.
own: Any = import_module("diffusers.loaders.single_file_utils")
older: Any = import_module("diffusers.pipelines.stable_diffusion.convert_from_ckpt")
latent: Any = import_module("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
normalizer: Any = import_module(
    "diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer"
)

if TYPE_CHECKING:
    from pathlib import Path

    from ckptaudit.layouts import Family

    Tensors = dict[str, torch.Tensor]

KEEP = Options(layout=Layout.DIFFUSERS, precision=Precision.KEEP)
ORIGINAL = Options(precision=Precision.KEEP)
OPENED = [
    *("sd1", "sd1-inpainting", "sd1-instruct-pix2pix"),
    *(
        "sd2",
        "sd2-inpainting",
        "sd2-depth",
        "sd2-sgm",
        "sd2-upscaler",
        "sd2-unclip-l",
        "sd2-unclip-h",
    ),
    *("sdxl", "sdxl-inpainting", "sdxl-edit", "sdxl-refiner", "ssd-1b", "segmind-vega"),
    "ldm-text2img",
]
AUTOENCODERS = ("vae", "vqvae")
FETCHED = ("image_encoder", "depth_estimator")
REFINED = 1280 + 5 * 256


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def settings(folder: Path, component: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / component / "config.json").read_text())
    return known


def own_conversion(tensors: Tensors, folder: Path, component: str, prefix: str) -> Tensors:
    """What diffusers' own functions make of *tensors*, told the settings that we wrote."""
    config = settings(folder, component)
    if component == "unet":
        made: Tensors = own.convert_ldm_unet_checkpoint(dict(tensors), config)
    elif component in AUTOENCODERS:
        made = own.convert_ldm_vae_checkpoint(dict(tensors), config)
    elif component == "bert":
        model = older.convert_ldm_bert_checkpoint(
            Held(tensors, prefix.removesuffix(".transformer.")), latent.LDMBertConfig(**config)
        )
        made = model.state_dict()
    elif prefix.endswith("transformer."):
        made = own.convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=prefix)
    else:
        text_config = transformers.CLIPTextConfig(**config)
        model = transformers.CLIPTextModelWithProjection(text_config)
        made = own.convert_open_clip_checkpoint(model, dict(tensors), prefix=prefix)
    return made


class Held:
    """Tensors as the modules that held them: diffusers' oldest functions take those."""

    def __init__(self, tensors: Tensors, at: str) -> None:
        self._tensors, self._at = tensors, at

    def __getattr__(self, name: str) -> Any:
        at = f"{self._at}.{name}"
        held = self._tensors.get(at)
        return Held(self._tensors, at) if held is None else torch.nn.Parameter(held)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(number.start, number.stop)]
        return getattr(self, str(number))


def text_prefix(family: Family, component: str) -> str:
    homes = {family.home(part.component): part.prefix for part in family.models}
    return homes.get(f"{component}/", "")


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_our_tensors_are_those_of_diffusers_own_conversion(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    for folder in (tmp_path / "out").iterdir():
        # These diffusers fetches from elsewhere: see below.
        if (folder / "config.json").exists() and folder.name not in FETCHED:
            component = folder.name
            theirs = own_conversion(
                tensors, tmp_path / "out", component, text_prefix(thin_family, component)
            )
            ours = read(tmp_path / "out", component)
            # transformers computes position_ids itself now, and diffusers leaves them out.
            names = ours.keys() - {"text_model.embeddings.position_ids"}
            if thin_family.name == "sd2-sgm":
                # What SD 2 has no use for diffusers knows by its names in SD 2 only.
                unused = ".layers.23.", "text_projection."
                theirs = {n: t for n, t in theirs.items() if not any(u in n for u in unused)}
            assert names == theirs.keys() - {"text_model.embeddings.position_ids"}
            assert [n for n in names if not torch.equal(ours[n], theirs[n].contiguous())] == []


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_diffusers_opens_our_folder_with_every_weight_in_its_place(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought(index))

    assert type(pipeline).__name__ == index["_class_name"]
    weights = sorted((tmp_path / "out").glob("*/*.safetensors"))
    assert {"unet"} < {file.parent.name for file in weights}
    for file in weights:
        component = file.parent.name
        loaded = getattr(pipeline, component).state_dict()
        assert same(flat(loaded), flat(read(tmp_path / "out", component))), component


def flat(tensors: Tensors) -> Tensors:
    """*tensors* of a model of transformers under the names that its versions agree on.

    There may be a wrapper around it, and positions are counted by the model itself now.
    """
    named = {
        key.removeprefix("text_model.").removeprefix("vision_model."): tensor
        for key, tensor in tensors.items()
    }
    return {key: tensor for key, tensor in named.items() if not key.endswith("position_ids")}


CONTROLNETS = ["controlnet-sd1", "controlnet-sd2", "controlnet-sdxl"]


@pytest.mark.parametrize(
    ("thin_family", "kind"),
    [
        *((f"unet-{name}", diffusers.UNet2DConditionModel) for name in OPENED if name != "sd2-sgm"),
        ("unet-ldm-class", diffusers.UNet2DConditionModel),
        *((name, diffusers.ControlNetModel) for name in CONTROLNETS),
        ("vae", diffusers.AutoencoderKL),
        ("vae-f4", diffusers.AutoencoderKL),
        ("vae-vq-f4", diffusers.VQModel),
        ("clip-l", transformers.CLIPTextModel),
        ("openclip-h", transformers.CLIPTextModel),
        ("openclip-bigg", transformers.CLIPTextModelWithProjection),
    ],
    indirect=["thin_family"],
)
def test_a_part_alone_opens_with_every_weight_in_its_place(
    thin_family: Family, kind: Any, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    loaded = kind.from_pretrained(tmp_path / "out").state_dict()

    assert same(flat(loaded), flat(read(tmp_path, "out")))


# Of one for SDXL diffusers' own conversion leaves out what takes the pooled text.
@pytest.mark.parametrize("thin_family", CONTROLNETS[:2], indirect=True)
def test_the_tensors_of_a_controlnet_are_those_of_diffusers_own_conversion(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)

    theirs = own.convert_controlnet_checkpoint(dict(tensors), settings(tmp_path, "out"))

    assert same(read(tmp_path, "out"), theirs)


def brought(index: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline needs and a checkpoint has nothing of: the user brings it."""
    named = ("CLIPTokenizer", "BertTokenizer", "CLIPImageProcessor", "DPTImageProcessor")
    things: dict[str, Any] = {
        name: None for name, of in index.items() if isinstance(of, list) and of[1] in named
    }
    if "image_normalizer" in index:
        things["image_normalizer"] = normalizer.StableUnCLIPImageNormalizer()
    return things


@pytest.mark.parametrize(
    "how",
    [{}, {"max_shard_size": "300KB"}, {"variant": "fp16"}],
    ids=["whole", "in-pieces", "a-variant"],
)
@pytest.mark.parametrize("thin_family", ["sd1", "sd2"], indirect=True)
def test_a_folder_that_diffusers_pickled_goes_back_to_the_same_file(
    thin_family: Family, tmp_path: Path, how: dict[str, str]
) -> None:
    """Legacy folders are `.bin` throughout; transformers writes none any more."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    convert(tmp_path / "out", tmp_path / "b.safetensors", ORIGINAL)
    for component, kind in (
        ("unet", diffusers.UNet2DConditionModel),
        ("vae", diffusers.AutoencoderKL),
    ):
        model = kind.from_pretrained(tmp_path / "out" / component)
        shutil.rmtree(tmp_path / "out" / component)
        model.save_pretrained(tmp_path / "out" / component, safe_serialization=False, **how)
    encoder = tmp_path / "out/text_encoder/model.safetensors"
    torch.save(load_file(encoder), encoder.with_name("pytorch_model.bin"))
    encoder.unlink()
    assert len(list((tmp_path / "out").rglob("*.bin"))) > 2 + ("max_shard_size" in how)
    assert not list((tmp_path / "out").rglob("*.safetensors"))

    back = convert(tmp_path / "out", tmp_path / "c.safetensors", ORIGINAL)

    assert not back.dropped
    assert same(load_file(tmp_path / "c.safetensors"), load_file(tmp_path / "b.safetensors"))
    assert verify(tmp_path / "out", tmp_path / "c.safetensors").equal
    assert scan(tmp_path / "out").verdict.value == "clean"


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("thin_family", ["sd1", "sdxl"], indirect=True)
def test_a_folder_without_a_part_opens_with_that_of_another(
    thin_family: Family, tmp_path: Path, part: str
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "whole", KEEP)
    without = replace(KEEP, unet=Action.DROP) if part == "unet" else replace(KEEP, vae=Action.DROP)
    convert(tmp_path / "a.ckpt", tmp_path / "out", without)
    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    brought = {name: None for name, of in index.items() if "CLIPTokenizer" in str(of)}

    with pytest.raises(ValueError, match=part):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought)
    brought[part] = kind.from_pretrained(tmp_path / "whole", subfolder=part)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", **brought)

    assert same(getattr(pipeline, part).state_dict(), read(tmp_path / "whole", part))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("thin_family", OPENED, indirect=True)
def test_our_single_file_opens_in_diffusers_and_gives_the_same_numbers_as_our_folder(
    thin_family: Family, tmp_path: Path
) -> None:
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    single = tmp_path / "a.safetensors"
    convert(tmp_path / "a.ckpt", single, ORIGINAL)

    autoencoder = thin_family.home(Component.VAE).rstrip("/")
    for kind, component in (
        (diffusers.UNet2DConditionModel, "unet"),
        (diffusers.AutoencoderKL, autoencoder),
    ):
        folder = tmp_path / "out" / component
        from_folder = kind.from_pretrained(folder)
        from_file = kind.from_single_file(
            str(single), config=str(tmp_path / "out"), subfolder=component
        )
        assert same(from_folder.state_dict(), from_file.state_dict())
        with torch.no_grad():
            one = forward(from_folder, component)
            other = forward(from_file, component)
        assert torch.isfinite(one).all()
        # Which kernel multiplies depends on where in memory a weight lies.
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("thin_family", "encoders"),
    [
        *((name, ["text_encoder"]) for name in ("sd1", "sd1-inpainting", "sd2")),
        ("sdxl", ["text_encoder", "text_encoder_2"]),
    ],
    ids=["sd1", "sd1-inpainting", "sd2", "sdxl"],
    indirect=["thin_family"],
)
def test_the_text_encoders_of_our_single_file_open_with_every_weight_in_its_place(
    thin_family: Family, tmp_path: Path, encoders: list[str]
) -> None:
    """By what `from_single_file` of a pipeline calls for them; it would ask for a tokenizer."""
    checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    single = tmp_path / "a.safetensors"
    convert(tmp_path / "a.ckpt", single, ORIGINAL)
    index = json.loads((tmp_path / "out/model_index.json").read_text())

    tensors = load_file(single)
    for component in encoders:
        if component == "text_encoder_2":
            # It tells the two apart by their widths, which are the same where layers are thin.
            tensors = {k: t for k, t in tensors.items() if "embedders.0." not in k}
        model = own.create_diffusers_clip_model_from_ldm(
            getattr(transformers, index[component][1]),
            dict(tensors),
            subfolder=component,
            config=str(tmp_path / "out"),
            local_files_only=True,
        )

        assert same(flat(model.state_dict()), flat(read(tmp_path / "out", component)))


def forward(model: Any, component: str) -> torch.Tensor:
    """One pass of *model* over the same random numbers each time."""
    torch.manual_seed(1)
    if component in AUTOENCODERS:
        return torch.as_tensor(model(torch.randn(1, 3, 32, 32)).sample)
    config = model.config
    added = {}
    labels = None
    if config.num_class_embeds:
        labels = torch.tensor([3])
    elif config.class_embed_type == "projection":
        labels = torch.randn(1, config.projection_class_embeddings_input_dim)
    if config.addition_embed_type == "text_time":
        # The refiner is told one number less.
        times = 5 if config.projection_class_embeddings_input_dim == REFINED else 6
        pooled = config.projection_class_embeddings_input_dim - times * 256
        added = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, times)}
    return torch.as_tensor(
        model(
            torch.randn(1, config.in_channels, 16, 16),
            torch.tensor([7]),
            torch.randn(1, 77, config.cross_attention_dim),
            class_labels=labels,
            added_cond_kwargs=added,
        ).sample
    )


@pytest.mark.parametrize("thin_family", ["sd2-unclip-l"], indirect=True)
def test_what_makes_embeddings_alike_opens_where_a_file_has_it(
    thin_family: Family, tmp_path: Path
) -> None:
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    tensors |= {f"noise_augmentor.data_{name}": torch.rand(1, 768) for name in ("mean", "std")}
    torch.save(tensors, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    folder = tmp_path / "out/image_normalizer"

    loaded = normalizer.StableUnCLIPImageNormalizer.from_pretrained(folder).state_dict()

    assert same(loaded, {name: tensors[f"noise_augmentor.data_{name}"] for name in loaded})


@pytest.mark.parametrize("thin_family", ["sd2-unclip-l", "sd2-unclip-h"], indirect=True)
def test_an_image_encoder_gives_the_numbers_of_the_original_code(
    thin_family: Family, tmp_path: Path
) -> None:
    """Diffusers fetches it from elsewhere, so that its conversion has nothing to compare with."""
    tensors = checkpoint(thin_family, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out", KEEP)
    folder = tmp_path / "out/image_encoder"
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    visual = {k.removeprefix("embedder.model.visual."): t for k, t in tensors.items()}
    image = torch.randn(1, 3, 224, 224)

    with torch.no_grad():
        expected = clip_visual(visual, image, is_openai=thin_family.name.endswith("-l"))
        found = model(image).image_embeds

    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def clip_visual(held: Tensors, image: torch.Tensor, *, is_openai: bool) -> torch.Tensor:
    """The image half of CLIP as OpenAI and OpenCLIP compute it, with 16 heads a layer."""
    functional = torch.nn.functional

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = held[f"{name}.weight"], held[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, held[f"{name}.weight"], held[f"{name}.bias"])

    kernel = held["conv1.weight"]
    patches = functional.conv2d(image, kernel, stride=kernel.shape[-1]).flatten(2).mT
    x = torch.cat([held["class_embedding"].expand(1, 1, -1), patches], 1)
    x = norm(x + held["positional_embedding"], "ln_pre")
    layers = {key.split(".")[2] for key in held if key.startswith("transformer.resblocks.")}
    for number in range(len(layers)):
        at = f"transformer.resblocks.{number}"
        y = norm(x, f"{at}.ln_1")
        mixed = functional.linear(y, held[f"{at}.attn.in_proj_weight"])
        mixed = (mixed + held[f"{at}.attn.in_proj_bias"]).unflatten(-1, (3, 16, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(y, f"{at}.attn.out_proj")
        y = linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        y = y * torch.sigmoid(1.702 * y) if is_openai else functional.gelu(y)
        x = x + linear(y, f"{at}.mlp.c_proj")
    return norm(x[:, 0], "ln_post") @ held["proj"]


def test_a_depth_estimator_is_all_of_the_hybrid_that_transformers_has() -> None:
    """At full size: the same tensors in the same shapes, and none beside them."""
    estimator = next(
        part for part in FAMILIES["sd2-depth"].models if part.component.value == "depth_estimator"
    )
    arrived = {}
    for entry in estimator.entries():
        for there in entry.diffusers:
            rows = () if there.rows is None else (there.rows[1] - there.rows[0],)
            arrived[there.key] = (*rows, *entry.shape[len(rows) :])
    files = FAMILIES["sd2-depth"], ["depth_estimator/model.safetensors"], "epsilon"
    config = folder_files(*files)["depth_estimator/config.json"]
    with torch.device("meta"):
        model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**config))

    assert arrived == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["alt-diffusion", "alt-diffusion-m18"])
def test_the_text_encoder_of_altdiffusion_is_that_of_transformers(name: str) -> None:
    """Below the layers that AltDiffusion has added, at full size."""
    at = "cond_stage_model.roberta."
    held = {e.key: e.shape for e in FAMILIES[name].inventory() if e.key.startswith(at)}
    config = transformers.XLMRobertaConfig(
        vocab_size=250002,
        max_position_embeddings=514,
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=24,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        model = transformers.XLMRobertaModel(config)

    theirs = {at + key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    # transformers counts positions itself now.
    held.pop(f"{at}embeddings.position_ids")
    assert held == theirs
