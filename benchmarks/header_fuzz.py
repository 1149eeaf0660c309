"""Do the readers of foreign files survive what nobody would write? Every failure must be a sentence of the pack's own.

    python -m benchmarks.header_fuzz [--tries 20000] [--seed 0] [--readers entries recognition …]

Small sound files (LoRAs of several kinds, an embedding, a checkpoint) are broken at random: odd values anywhere in the
header, other shapes and types of the same size, names exchanged, doubled or strange, bytes turned over, files cut or
lengthened, data of no numbers. Whatever a reader raises but UserError counts, and so does memory: the process may reserve
2 GB more than it has at its start. `stack`, `inspector` and `keywords` run ComfyUI's own code too.
"""
import argparse
import json
import math
import random
import resource
import struct
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

from .pack import become_host, comfyui_folder, load_pack

ROOM = 2_000_000_000
"""Bytes that the process may reserve beside what it has at the start."""
ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SIZES = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "U8": 1,
         "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
ODD = (None, True, False, 0, -1, 1, 2, 75, 2**31, 2**40, 2**53, 2**62, 2**64, 10**30, 0.5, math.nan, math.inf, "", "0",
       "F32", "F31", "BF16", "nan", "1e999", "\x00", "a" * 3000, "\ud800", "\u202e", [], [[]], [0], [None], [1] * 70,
       [2**33, 2**33], [-1, 1], {}, {"a": {}}, "{", "[]", '{"a": [null, 1e999]}', "[" * 5000, '{"lora_alpha": null}',
       '{"r": 0, "lora_alpha": 1e999, "rank_pattern": [], "alpha_pattern": {"(": 1}, "use_rslora": "x"}')
METADATA = ("ss_network_alpha", "ss_network_dim", "ss_base_model_version", "ss_tag_frequency", "ss_datasets",
            "ss_sd_model_name", "modelspec.trigger_phrase", "modelspec.prediction_type", "modelspec.architecture",
            "modelspec.hash_sha256", "sshs_model_hash", "lora_adapter_metadata", "adapter_config",
            "_quantization_metadata", "format", "odd\nname")
NAMES = ("", ".", ".weight", ".alpha", "lora_unet_.alpha", "emb_params", "clip_l", "clip_g", "v_pred", "ztsnr", "scaled_fp8",
         "__metadata__", "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", f"lora_unet_{ATTENTION}.dora_scale",
         f"lora_unet_{ATTENTION}.reshape_weight", f"lora_unet_{ATTENTION}.diff", f"lora_unet_{ATTENTION}.oft_blocks",
         f"lora_unet_{ATTENTION}.lora_mid.weight", f"lora_unet_{ATTENTION}.alpha", f"lora_unet_{ATTENTION}.scale_weight",
         "bundle_emb.a", "a\nb", "\x1b[2J", "a" * 600, "\ud800", "ü" * 300, "a.comfy_quant", "a.weight_scale_2")


# ---- sound files ---------------------------------------------------------------------------------------------------

def seeds() -> dict[str, list[tuple[dict, bytes]]]:
    """Kind → sound files, as (header, data)."""
    unet, key = "model.diffusion_model.", f"lora_unet_{ATTENTION}"
    plain = {f"{key}.lora_down.weight": (2, 64), f"{key}.lora_up.weight": (64, 2), f"{key}.alpha": ()}
    loras = [
        plain, {**plain, f"{key}.dora_scale": (64, 1)},
        {"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (2, 64, 1, 1), f"{key}.diff": (64, 64),
         "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": (2, 2, 3, 3),
         "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": (64, 2, 1, 1)},
        {f"{key}.hada_w1_a": (64, 2), f"{key}.hada_w1_b": (2, 64), f"{key}.hada_w2_a": (64, 2), f"{key}.hada_w2_b": (2, 64),
         f"{key}.alpha": ()},
        {f"{key}.lokr_w1": (8, 8), f"{key}.lokr_w2_a": (8, 2), f"{key}.lokr_w2_b": (2, 8), f"{key}.alpha": ()},
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 64),
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": (64, 2),
         "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (2, 64),
         "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": (64, 2)},
    ]
    checkpoints = [
        {unet + "input_blocks.0.0.weight": (8, 4, 3, 3), "cond_stage_model.transformer.text_model.a.weight": (8, 8),
         unet + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (8, 8), "first_stage_model.a.weight": (8,)},
        {unet + "input_blocks.0.0.weight": (8, 4, 3, 3), "cond_stage_model.model.ln_final.weight": (8,),
         unet + "output_blocks.11.1.transformer_blocks.0.norm1.bias": (8,), "first_stage_model.a.weight": (8,)},
        {unet + "input_blocks.0.0.weight": (8, 4, 3, 3), "conditioner.embedders.1.model.ln_final.weight": (8,),
         unet + "label_emb.0.0.weight": (8, 8), unet + "label_emb.0.0.scale_weight": (), "first_stage_model.a.weight": (8,)},
    ]
    embeddings = [{"emb_params": (2, 64)}, {"clip_l": (2, 64), "clip_g": (2, 80)}, {"<word>": (3, 64)}]
    return {"lora": [sound(each) for each in loras], "checkpoint": [sound(each) for each in checkpoints],
            "embedding": [sound(each) for each in embeddings]}


def sound(shapes: dict[str, tuple[int, ...]]) -> tuple[dict, bytes]:
    header: dict = {"__metadata__": {"ss_network_alpha": "2", "ss_base_model_version": "sd_v1", "format": "pt",
                                     "lora_adapter_metadata": '{"unet.lora_alpha": 2, "unet.alpha_pattern": {}}'}}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + 4 * math.prod(shape)]}
        end += 4 * math.prod(shape)
    return header, struct.pack(f"<{end // 4}f", *(0.01 * (place % 50) for place in range(end // 4)))


# ---- what breaks them ----------------------------------------------------------------------------------------------

def broken(header: dict, data: bytes, draw: random.Random) -> bytes:
    """The bytes of a file with one to three faults."""
    header = json.loads(json.dumps(header))
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(FAULTS)(header, draw)
    if draw.random() < 0.15:
        value = draw.choice((math.nan, math.inf, -math.inf, 3e38, 1e-45, 0.0))
        data = struct.pack(f"<{len(data) // 4}f", *[value] * (len(data) // 4))
    text = json.dumps(header, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    length = len(text)
    if draw.random() < 0.2:
        text, length = odd_bytes(text, draw)
    if draw.random() < 0.05:
        data = data[:draw.randrange(len(data) + 1)] if draw.random() < 0.7 else data + b"\0" * draw.randrange(1, 99)
    return struct.pack("<Q", length) + text + data


def odd_bytes(text: bytes, draw: random.Random) -> tuple[bytes, int]:
    place, kind = draw.randrange(len(text)), draw.randrange(5)
    if kind == 0:
        text = text[:place] + bytes([draw.randrange(256)]) + text[place + 1:]
    elif kind == 1:
        text = text[:place] + draw.choice((b"[", b"{", b"\xff", b'"', b",", b"[" * 3000, b"\\u0000")) + text[place:]
    elif kind == 2:
        text = text[:place] + text[place + draw.randrange(1, 20):]
    elif kind == 3:
        text = text[:-1] + b"," + text[1:]
    else:
        return text, draw.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return text, len(text)


def entries_of(header: dict) -> list[dict]:
    return [entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]


def odd_value(header: dict, draw: random.Random):
    parent = header
    while True:
        key = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        if not isinstance(parent[key], (dict, list)) or not parent[key] or draw.random() < 0.3:
            parent[key] = deepcopy(draw.choice(ODD))
            return
        parent = parent[key]


def other_shape(header: dict, draw: random.Random):
    """As many numbers in another form: the file stays sound, and no layer fits any more."""
    for entry in draw.sample(entries_of(header), min(1, len(entries_of(header)))):
        shape = entry.get("shape")
        if isinstance(shape, list) and all(type(each) is int and 0 <= each < 2**20 for each in shape):
            count = math.prod(shape)
            forms = [[count], [1, count], [count, 1], shape[::-1], [*shape, 1, 1], [1, *shape], [count, 1, 1, 1]]
            forms += [[count // 2, 2], [2, count // 2], [count // 4, 2, 2]] if count % 4 == 0 else []
            entry["shape"] = draw.choice(forms)


def other_type(header: dict, draw: random.Random):
    for entry in draw.sample(entries_of(header), min(1, len(entries_of(header)))):
        kind, shape = draw.choice(list(SIZES)), entry.get("shape")
        if isinstance(shape, list) and shape and type(shape[-1]) is int and str(entry.get("dtype")) in SIZES:
            last = shape[-1] * SIZES[str(entry["dtype"])]
            if last % SIZES[kind] == 0:
                entry["shape"] = [*shape[:-1], last // SIZES[kind]]
        entry["dtype"] = kind


def other_name(header: dict, draw: random.Random):
    old = draw.choice(list(header))
    name = draw.choice((*NAMES, old[:-1], old + "x", old.replace(".weight", ""), old.replace("_down", "_up")))
    if old != "__metadata__":
        header[name] = header.pop(old)


def odd_metadata(header: dict, draw: random.Random):
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"][draw.choice(METADATA)] = deepcopy(draw.choice(ODD))


def without(header: dict, draw: random.Random):
    parent = draw.choice([header, *entries_of(header)])
    if len(parent) > 1:
        del parent[draw.choice(list(parent))]


def exchanged(header: dict, draw: random.Random):
    one, other = draw.choice(list(header)), draw.choice(list(header))
    header[one], header[other] = header[other], header[one]


FAULTS = (odd_value, odd_value, other_shape, other_shape, other_type, other_name, odd_metadata, without, exchanged)


# ---- who reads them ------------------------------------------------------------------------------------------------

def engine_readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Reader → (kind of file, what is done with it)."""
    from finetune.trainers.artifacts.embedding import load_embedding
    from finetune.trainers.artifacts.lora_file import read_lora
    from finetune.trainers.artifacts.tensor_files import read_entries
    from finetune.trainers.families.recognition import prediction_type_of, recognize
    from finetune.trainers.families.unet_state_dict import weights_of
    from finetune.trainers.stacking.cards import card, hashes_of

    def recognition(path: Path):
        recognize(str(path), path.name)

    def weights(path: Path):
        prediction_type_of(path)
        found = weights_of(path)
        return [found.weight(name) for name in found]

    def tools(path: Path):
        return [layer.change() for layer in read_lora(path).layers.values()]

    return {
        "entries": ("lora", lambda path: [entry.tensor() for entry in read_entries(path).values()]),
        "recognition": ("checkpoint", recognition), "weights": ("checkpoint", weights),
        "lora tools": ("lora", tools), "card": ("lora", lambda path: (hashes_of(path), card(path, path.name))),
        "embedding": ("embedding", load_embedding),
    }


def host_readers(folder: Path) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """The same for what runs inside ComfyUI, with the demo base; LoRAs are looked for in `folder`."""
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder))
    from finetune.nodes import host
    from finetune.nodes.lora_stack.find_loras import describe_tensors
    from finetune.trainers.stacking import LoraEntry

    model, clip, _ = host.load_native(host.DEMO_BASE)

    def inspector(path: Path):
        found, weights = host.inspect_lora(model, clip, path.name)
        if not isinstance(found, str):
            found.lines()
        describe_tensors(host.read_lora(path.name), weights)

    return {
        "stack": ("lora", lambda path: host.apply_stack(model, clip, [LoraEntry(path.name)])),
        "inspector": ("lora", inspector), "keywords": ("lora", lambda path: host.quick_card(path.name)),
    }


def failures(kind: str, read: Callable[[Path], object], path: Path, tries: int, seed: int) -> Iterator[tuple[str, str]]:
    """("sound", "") or ("refused", sentence) for each broken file, ("failed", traceback) where a reader raised something
    else, or a sentence that cannot be shown."""
    from finetune.trainers.errors import UserError

    draw, files = random.Random(f"{seed} {kind}"), seeds()[kind]
    for _ in range(tries):
        path.write_bytes(broken(*draw.choice(files), draw))
        try:
            read(path)
            yield "sound", ""
        except UserError as problem:
            text = str(problem)
            yield ("refused" if text and len(text) < 2000 else "failed"), text
        except BaseException:
            yield "failed", traceback.format_exc()


def main():
    from .measuring import peak_resident
    from .report import finish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=[])
    parser.add_argument("--no-results", action="store_true", help="only print, for the tests")
    options = parser.parse_args()
    comfyui = comfyui_folder()
    if comfyui:
        become_host(comfyui)
    load_pack()
    with tempfile.TemporaryDirectory() as temporary:
        readers = {**engine_readers(), **(host_readers(Path(temporary)) if comfyui else {})}
        wanted = options.readers or list(readers)
        reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (reserved + ROOM, resource.RLIM_INFINITY))
        results, details = [], {"tries": options.tries, "seed": options.seed, "room": ROOM}
        for name in wanted:
            kind, read = readers[name]
            told = Counter()
            reasons: Counter[str] = Counter()
            for outcome, text in failures(kind, read, Path(temporary) / "broken.safetensors", options.tries, options.seed):
                told[outcome] += 1
                if outcome == "failed":
                    reasons["\n".join(text.strip().splitlines()[-3:])] += 1
            details[name] = {**told, "peak bytes": peak_resident(), "reasons": dict(reasons.most_common(20))}
            print(name, dict(told), *(f"\n  {count} × {reason}" for reason, count in reasons.most_common(8)), flush=True)
            results.append({"measure": f"{name}: errors that are not the pack's own", "value": told["failed"],
                            "unit": f"of {options.tries}", "goal": 0, "met": told["failed"] == 0})
    if options.no_results:
        print(json.dumps({"name": "header_fuzz", "results": results}))
    else:
        finish("header_fuzz", results, details)


if __name__ == "__main__":
    main()
