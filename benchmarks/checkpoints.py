"""Does ComfyUI load our checkpoints at full size, whole and as they were meant?

    python -m benchmarks.checkpoints [--families sd1 sdxl]

For Stable Diffusion 1.5 and SDXL with random weights in fp16: an untouched base is written and compared with itself; a
changed one is written, loaded by the host's CheckpointLoaderSimple, and one caption is encoded and one denoising call made
there and by the engine. Then, without weights, the names and shapes of a diffusers folder's checkpoint are compared with
the host's models, for all families. Needs about 12 GB of memory and 16 GB of disk for SDXL.
"""
import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .measuring import forget_peak_resident, peak_resident
from .pack import ROOT, become_host, comfyui_folder, load_pack
from .report import finish

CAPTION, TIMESTEP, SIDE = "a photo of a fox in the snow", 500, 128
STORED = {"sd1": "float32", "sdxl": "float16"}
"""What the engine holds the denoiser in here. Training takes float32, which for SDXL is 10 GB more than this proof needs."""
COMPLAINTS = ("missing", "unexpected", "left over", "leftover")
ALLOWED = ("logit_scale", "text_projection")
"""The host makes these two itself where a file lacks them; its loader does not warn of them either."""


# ---- stages, each in a process of its own, so that its memory is given back ------------------------------------------

def make_base(family: str, folder: Path):
    """A random checkpoint of full size in fp16. The weights' spread keeps activations finite in a deep network."""
    load_pack()
    import torch
    from finetune.trainers.artifacts.tensor_files import Entry, write_entries

    from tests.support.tiny import single_file_weights

    modules, generator = shapes_only(family), torch.Generator().manual_seed(0)
    pool = torch.randn(2**24, generator=generator).half()

    def entry(name: str, shape: torch.Size) -> Entry:
        def pieces():
            count = shape.numel()
            start = torch.randint(0, 2**23, (), generator=generator)
            values = pool[start:].repeat(-(-count // (2**24 - int(start))))[:count].reshape(shape)
            if len(shape) > 1:
                return [values * shape[1:].numel() ** -0.5]
            return [1 + values * 0.02 if name.endswith("weight") else values * 0.02]
        return Entry(name, torch.float16, tuple(shape), pieces)

    weights = single_file_weights(family, *modules)
    write_entries(folder / "base.safetensors", [entry(name, each.shape) for name, each in weights.items()], {})
    return {"tensors": len(weights)}


def shapes_only(family: str) -> list:
    """[UNet, VAE, text encoders …] at full size on the meta device."""
    import torch
    from diffusers import AutoencoderKL

    from .native_loading import shapes_only as unet_and_text

    load_pack()
    from finetune.trainers.families.component_configs import CONFIGS

    unet, text, _ = unet_and_text(family)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / family / "vae"))
    return [unet, vae, *text.values()]


def engine(family: str, folder: Path) -> dict:
    """Write the untouched base and a changed one; encode and denoise with the latter."""
    load_pack()
    import psutil
    import torch
    from finetune.trainers import families, methods
    from finetune.trainers.families.recognition import recognize
    from finetune.trainers.methods.protocol import Parts
    from finetune.trainers.spec import FullSpec
    from safetensors.torch import save_file

    base, kind = recognize(str(folder / "base.safetensors"), "base"), families.get(family)
    method = methods.make(FullSpec(file_precision="fp16"), 1e-6, kind)
    parts = Parts(kind, kind.load_denoiser(base, getattr(torch, STORED[family])), None, base)
    facts = {"family": base.family, "denoiser_held_in": STORED[family]}
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    forget_peak_resident()
    untouched = method.save(parts, folder, "untouched", {})
    facts |= {"bytes": untouched.bytes, "write_seconds": round(time.monotonic() - began, 1),
              "resident_before": before, "peak_while_writing": peak_resident(), "untouched_change": untouched.change_norm}
    facts["differences"] = differences(folder / "base.safetensors", folder / "untouched.safetensors")
    (folder / "untouched.safetensors").unlink()
    with torch.no_grad():
        for parameter in parts.denoiser.parameters():
            parameter.mul_(1.02)
    facts["relative_change"] = method.save(parts, folder, "tuned", {}).relative_change
    del parts
    outputs = compute(kind, recognize(str(folder / "tuned.safetensors"), "tuned"))
    unchanged = compute(kind, base, outputs)
    facts["change_of_the_prediction"] = float((outputs["noise"] - unchanged["noise"]).norm() / unchanged["noise"].norm())
    save_file(outputs, folder / "engine.safetensors")
    return facts


def differences(one: Path, other: Path) -> list[str]:
    """Names that only one file has, or whose tensors differ in any bit. The format's own library reads both."""
    import torch
    from safetensors import safe_open

    with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
        names = set(first.keys()), set(second.keys())
    found, shared = names[0] ^ names[1], sorted(names[0] & names[1])
    for start in range(0, len(shared), 64):  # opened anew for each portion: what was read stays mapped while open
        with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
            for name in shared[start:start + 64]:
                left, right = first.get_tensor(name), second.get_tensor(name)
                if left.dtype != right.dtype or not torch.equal(left, right):
                    found.add(name)
    return sorted(found)


def compute(kind, base, known=None) -> dict:
    """Conditioning of the caption and one prediction by the engine; weights are stored in fp16 and computed in fp32."""
    import torch
    from finetune.trainers.data.images.buckets import Crop
    from finetune.trainers.families.conditioning import Conditioning

    form = kind.latent_format(base)
    with torch.no_grad():
        if known:
            conditioning = Conditioning({name: known[name] for name in known if name not in ("noise", "latents")})
        else:
            conditioning = kind.encode_captions(kind.load_text(base, torch.float32), [CAPTION])
        denoiser = kind.load_denoiser(base, torch.float16)
        denoiser.enable_layerwise_casting(torch.float16, torch.float32, skip_modules_pattern=())
        for module in denoiser.modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                module.float()  # the casting leaves norms alone
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn((1, form.channels, SIDE // 8, SIDE // 8), generator=generator)
        asked = conditioning | kind.crop_conditioning([Crop.whole(SIDE, SIDE)])
        noise = kind.predict(denoiser, latents, torch.tensor([TIMESTEP]), asked)
    return {**conditioning.tensors, "noise": noise, "latents": latents}


def host(family: str, folder: Path) -> dict:
    """The same by ComfyUI: its own loader node, text encoding and denoising call, and what it logs on the way."""
    become_host(comfyui_folder())
    import comfy.cli_args
    import comfy.model_management
    import folder_paths
    import torch
    from safetensors.torch import load_file

    import nodes

    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    logging.getLogger().addHandler(Listener(logging.DEBUG))
    logging.getLogger().setLevel(logging.DEBUG)
    comfy.cli_args.args.fp16_unet = comfy.cli_args.args.fp16_text_enc = True  # stored so; a CPU computes in fp32
    folder_paths.add_model_folder_path("checkpoints", str(folder))
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint("tuned.safetensors")
    ours = load_file(folder / "engine.safetensors")
    with torch.inference_mode():
        hidden, pooled = clip.encode_from_tokens(clip.tokenize(CAPTION), return_pooled=True)
        comfy.model_management.load_models_gpu([model])
        inner = model.model
        sigma = inner.model_sampling.sigma(torch.tensor([TIMESTEP]))
        scaled = ours["latents"] * (sigma.square() + 1).sqrt()
        added = {}
        if family == "sdxl":
            sizes = dict(width=SIDE, height=SIDE, target_width=SIDE, target_height=SIDE)
            added["y"] = inner.encode_adm(pooled_output=pooled, device="cpu", **sizes)
        clean = inner.apply_model(scaled, sigma, c_crossattn=hidden, **added)
        noise = (scaled - clean) / sigma
        pixels = vae.decode(torch.zeros(1, 4, 8, 8))
    theirs = {"hidden": hidden, "noise": noise, **({"pooled": pooled} if family == "sdxl" else {})}
    complaints = [line[:2000] for line in said if any(word in line.lower() for word in COMPLAINTS)]
    difference = {name: float((each.float() - ours[name]).norm() / ours[name].norm()) for name, each in theirs.items()}
    return {
        "difference": difference,
        "complaints": [line for line in complaints if not only_allowed(line)], "debug_lines": complaints,
        "host_weights": str(inner.get_dtype()), "vae_decodes": bool(torch.isfinite(pixels).all()),
    }


def only_allowed(line: str) -> bool:
    """Whether a line about missing weights names none but those that the host makes itself."""
    names = [word for word in line.replace("[", " ").replace("]", " ").replace(",", " ").split() if "." in word]
    return bool(names) and all(any(each in name for each in ALLOWED) for name in names)


def names_of_folders(family: str, folder: Path) -> dict:
    """What the host would miss or not know in the checkpoint made from a diffusers folder: names and shapes alone."""
    become_host(comfyui_folder())
    modules = shapes_only(family)
    import torch
    from finetune.nodes import host as pack_host
    from finetune.trainers import families
    from finetune.trainers.artifacts.tensor_files import header_bytes
    from finetune.trainers.families.component_configs import CONFIGS
    from finetune.trainers.families.protocol import TextEncoders
    from finetune.trainers.spec import BaseModelSpec

    kind, text = families.get(family), modules[2:]
    encoders = dict(zip(["te"] if len(text) == 1 else ["te1", "te2"], text))

    class Shapes:
        """The family with parts that are only shapes."""

        def __getattr__(self, name):
            return getattr(kind, name)

        def load_vae(self, base):
            return modules[1]

        def load_text(self, base, dtype):
            return TextEncoders({}, encoders)

    base = BaseModelSpec(family=family, path=str(CONFIGS / family), name=family, layout="diffusers",
                         prediction_type="epsilon",
                         fingerprint="")
    entries = type(kind).checkpoint_entries(Shapes(), base, modules[0], {}, torch.float16)
    path = folder / "names.safetensors"

    def unmatched(entries) -> list[str]:
        with open(path, "wb") as file:  # a hole in the place of the data: only the header is read
            file.write(header_bytes(entries, {}, "0" * 64))
            file.truncate(file.tell() + sum(entry.bytes for entry in entries))
        return pack_host.unmatched_tensors([path], [], family, CONFIGS / family)

    some = entries[::len(entries) // 8]
    noticed = [entry.name for entry in some if unmatched([each for each in entries if each is not entry])]
    return {"tensors": len(entries), "unmatched": unmatched(entries), "noticed_when_left_out": noticed}


STAGES = {"base": make_base, "engine": engine, "host": host, "names": names_of_folders}


def stage(name: str, family: str, folder: Path) -> dict:
    """The facts of a stage, which is run unless it left them in the folder before."""
    done = folder / f"{name}.json"
    if not done.exists():
        print(f"{family}: {name} ...", flush=True)
        command = [sys.executable, "-m", f"{__package__}.checkpoints", "--stage", name, family]
        subprocess.run([*command, "--folder", str(folder)], cwd=ROOT, check=True)
    return json.loads(done.read_text(encoding="utf-8"))


# ---- verdicts ------------------------------------------------------------------------------------------------------

def judge(family: str, facts: dict) -> list[dict]:
    engine, host = facts["engine"], facts["host"]
    extra = engine["peak_while_writing"] - engine["resident_before"]
    return [
        row(f"{family}: tensors of {facts['base']['tensors']} that an untouched base does not give back bit for bit",
            len(engine["differences"]), "tensors", "0", not engine["differences"] and engine["untouched_change"] == 0),
        row(f"{family}: memory for writing {engine['bytes'] / 1e9:.2f} GB, beside the model", round(extra / 1e9, 3), "GB",
            "< a quarter of it", extra < engine["bytes"] / 4),
        row(f"{family}: lines of ComfyUI's log about missing, unexpected or left over keys", len(host["complaints"]),
            "lines", "0", not host["complaints"]),
        row(f"{family}: change of the prediction by the changed weights", round(engine["change_of_the_prediction"], 4),
            "relative", "> 0.01", engine["change_of_the_prediction"] > 0.01),
        *(row(f"{family}: {what} in ComfyUI against the engine", round(value, 6), "relative", "< 0.001", value < 1e-3)
          for what, value in host["difference"].items()),
    ]


def row(measure: str, value: float, unit: str, goal: str, met: bool) -> dict:
    return {"measure": measure, "value": value, "unit": unit, "goal": goal, "met": met}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(STORED), choices=list(STORED),
                        help="which to write and load at full size (default: all)")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where files are kept, so that an interrupted run goes on")
    options = parser.parse_args()
    if options.stage:
        name, family = options.stage
        facts = STAGES[name](family, options.folder)
        (options.folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
        return
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    results, details = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for family in ("sd1", "sd2", "sdxl"):
            folder = (options.folder or Path(temporary)) / family
            folder.mkdir(parents=True, exist_ok=True)
            details[family] = {"names": stage("names", family, folder)}
            if family in options.families:
                details[family] |= {name: stage(name, family, folder) for name in ("base", "engine", "host")}
                results += judge(family, details[family])
                for file in folder.glob("*.safetensors"):
                    file.unlink()
            facts = details[family]["names"]
            results.append(row(f"{family}: of {facts['tensors']} tensors from a folder, ComfyUI misses or does not "
                               "know", len(facts["unmatched"]), "tensors", "0", not facts["unmatched"]))
            noticed = len(facts["noticed_when_left_out"])
            results.append(row(f"{family}: of nine tensors, left out one at a time, noticed", noticed, "tensors", "9",
                               noticed == 9))
    finish("checkpoints", results, details)


if __name__ == "__main__":
    main()
