"""Does ComfyUI make the same latents and images with the autoencoders of newer families? Asked by flow_effects.py, in a
process in which ComfyUI's modules can be imported."""
import json
from pathlib import Path

import comfy.latent_formats
import comfy.ldm.wan.vae2_2
import comfy.sd
import torch
from finetune.trainers.families.component_configs import CONFIGS
from safetensors.torch import load_file
from support import tiny_vaes

FORMATS = {"flux2": comfy.latent_formats.Flux2, "qwen": comfy.latent_formats.Wan21}


def host_vae(kind: str, path: Path) -> comfy.sd.VAE:
    """ComfyUI's own, of the original file. Of FLUX.2's encoder it takes the width for granted: it is told another one."""
    widths = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": tiny_vaes.GROUPS,
              "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
              "batch_norm_latent": True}
    config = {"params": {"ddconfig": widths, "embed_dim": 32}} if kind == "flux2" else None
    return comfy.sd.VAE(sd=load_file(path), config=config, dtype=torch.float32)


def vae_effects(kind: str, folder: Path) -> dict[str, float]:
    """The largest errors of latents that encoders make, and of images out of noise, as the sampler sees them."""
    vae, place = tiny_vaes.make_vae(kind), folder / f"{kind} vae"
    form = FORMATS[kind]()
    if kind == "qwen":  # ComfyUI has the released model's statistics in its code
        released = json.loads((CONFIGS / "qwen_image/vae/config.json").read_text(encoding="utf-8"))
        vae.register_to_config(**{name: released[name] for name in ("latents_mean", "latents_std")})
    vae.save_pretrained(place / "vae")
    path = tiny_vaes.make_file(kind, folder / f"{kind}.safetensors", vae)
    family, base = tiny_vaes.latents_of(kind), tiny_vaes.base_of(kind, path, place)
    ours, theirs, own = family.load_vae(base), host_vae(kind, path), family.latent_format(base)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, 3, 64, 96), generator=draw)
    latents = family.encode_images(ours, 2 * pixels - 1, own)
    expected = form.process_in(theirs.encode(pixels.movedim(1, -1))).reshape(latents.shape)
    noise = torch.randn(latents.shape, generator=draw)
    images = theirs.decode(form.process_out(noise if kind == "flux2" else noise[:, :, None]))
    images = images.reshape(1, 64, 96, 3).movedim(-1, 1) * 2 - 1
    return {"latents": float((latents - expected).abs().max()), "spread": float(expected.std()),
            "images": float((family.decode_latents(ours, noise, own) - images).abs().max()),
            "contrast": float(images.std())}


def names_that_wan22_has() -> bool:
    """ComfyUI knows no autoencoder of Qwen-Image-2.1, but Wan 2.2's, whose layers have the same names."""
    with torch.device("meta"):
        host = comfy.ldm.wan.vae2_2.WanVAE(dim=4, dec_dim=6, z_dim=64, dim_mult=[1, 2, 4, 8, 8], num_res_blocks=2,
                                           temperal_downsample=[False, True, True, True])
    return host.state_dict().keys() == tiny_vaes.original_weights("qwen21", tiny_vaes.make_vae("qwen21")).keys()
