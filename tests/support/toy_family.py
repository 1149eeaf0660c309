"""A whole model family in one file: a small transformer over packed latents that predicts flow, told by two text encoders
whose captions have lengths of their own. Its denoiser, its text encoders and its VAE lie in three files."""
from pathlib import Path

import torch
import torch.nn.functional as F
from finetune.trainers.artifacts.layer_names import FamilyNames, Layer
from finetune.trainers.artifacts.layer_names.blocks import BASE, EXTRA
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.families.component_loading import load_into
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.model_parts import Recognized
from finetune.trainers.families.protocol import Family, LatentFormat, LoraPreset, TextEncoders
from finetune.trainers.families.samplers import FlowSampler
from finetune.trainers.families.text.clip import clip_tokenizer
from finetune.trainers.spec import ComponentSpec
from safetensors.torch import save_file
from torch import nn

WIDTH, WORDS, LETTERS, BLOCKS = 32, 16, 24, 2
ENCODERS = {"words": 12, "letters": 8}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens, mask):
        query, key, value = self.qkv(F.layer_norm(tokens, (WIDTH,)))[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])[:, 0]
        return tokens + self.out(seen) + self.mlp(F.layer_norm(tokens, (WIDTH,)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_in, self.time_in, self.image_out = nn.Linear(16, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 16)
        self.words_in, self.letters_in = nn.Linear(12, WIDTH), nn.Linear(8, WIDTH)
        self.toy_blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, packed, timesteps, words, letters, mask):
        images = self.image_in(packed) + self.time_in(timesteps[:, None, None].to(packed) / 1000)
        tokens = torch.cat([images, self.words_in(words.to(packed)), self.letters_in(letters.to(packed))], dim=1)
        mask = torch.cat([mask.new_ones(images.shape[:2]), mask], dim=1)
        for block in self.toy_blocks:
            tokens = block(tokens, mask)
        return self.image_out(tokens[:, :packed.shape[1]])


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 4, stride=4), nn.ConvTranspose2d(4, 3, 4, stride=4)


def make_files(folder: Path) -> list[Path]:
    """A random model: the files of its denoiser, its text encoders and its VAE."""
    encoders = nn.ModuleDict({name: nn.Embedding(64, width) for name, width in ENCODERS.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (modules := {"denoiser": Transformer(), "text": encoders, "vae": Vae()}).items():
        save_file(dict(module.state_dict()), folder / f"toy_{name}.safetensors")
    return [folder / f"toy_{name}.safetensors" for name in modules]


class ToyNames(FamilyNames):
    family, title = "toy", "Toy Transformer"
    blocks = (BASE, *(f"TOY{number:02}" for number in range(BLOCKS)), EXTRA)

    def owns_model(self, names):
        return "toy_blocks.0.qkv.weight" in names

    def owns_lora(self, shapes, metadata):
        return any("toy_blocks" in name for name in shapes)

    def layers(self, shapes):
        for name in (name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2):
            yield Layer(f"lora_unet_{name.replace('.', '_')}", f"transformer.{name}", f"diffusion_model.{name}", (),
                        f"{name}.weight", own_block=self.block(name.replace(".", "_")))

    def block(self, name):
        return f"TOY{int(name.split('_')[2]):02}" if name.startswith("toy_blocks_") else EXTRA


class Toy(Family):
    name, title, layer_names, embedding_keys = "toy", "Toy Transformer", ToyNames(), {}
    capabilities, lora_targets = frozenset({"lora", "full"}), {"attention": r"qkv$|out$"}
    metadata = {"ss_base_model_version": "toy", "modelspec.architecture": "toy"}
    lora_preset = LoraPreset(1e-3, 4, 4, 100, 64, 0.0, 0.0, "no source")

    def recognize(self, source):
        if source.layout != "separate_files" or not self.layer_names.owns_model(read_header(source.path)[0]):
            return None
        [text, vae] = sorted(source.others, key=lambda path: "decoder.weight" in read_header(path)[0])
        parts = (ComponentSpec(name="denoiser", path=str(source.path)), ComponentSpec(name="vae", path=str(vae)), *(
            ComponentSpec(name=name, path=str(text), prefix=f"{name}.") for name in ENCODERS))
        return Recognized("flow", parts, (source.path, *source.others))

    def prediction_type_of(self, path, tensors, metadata):
        return "flow" if self.layer_names.owns_model(tensors) else ""

    def latent_format(self, base):
        return LatentFormat(4, 0.5, 0.1, downscale=4, multiple=8)

    def load_vae(self, base):
        return load_into(Vae(), base, "vae", torch.float32)

    def load_denoiser(self, base, dtype, *keepers):
        return load_into(Transformer(), base, "denoiser", dtype, *(keeper([]) for keeper in keepers))

    def load_tokenizers(self, base):
        return {"words": clip_tokenizer()}

    def encoder_names(self, base):
        return tuple(ENCODERS)

    def load_text(self, base, dtype, only=tuple(ENCODERS), place=None):
        return TextEncoders(self.load_tokenizers(base), {
            name: load_into(nn.Embedding(64, ENCODERS[name]), base, name, dtype) for name in only})

    def token_count(self, tokenizers, caption):
        return len(tokenizers["words"](caption).input_ids) - 2, WORDS - 2

    def sampler(self, base, zero_terminal_snr=False):
        return FlowSampler(self.timestep_shift(base))

    @torch.no_grad()
    def encode_images(self, vae, pixels, latent_format):
        return (vae.encoder(pixels) - latent_format.shift) * latent_format.scale

    @torch.no_grad()
    def decode_latents(self, vae, latents, latent_format):
        return vae.decoder(latents / latent_format.scale + latent_format.shift).clamp(-1, 1)

    def encode_with(self, text, encoder, captions):
        weight, words = text.encoders[encoder].weight, text.tokenizers["words"]
        ids = [words(each).input_ids[:WORDS] if encoder == "words" else list(map(ord, f"{each}."[:LETTERS]))
               for each in captions]
        return Conditioning.collated([Conditioning({encoder: weight[torch.tensor([each]) % 64]}) for each in ids])

    def predict(self, denoiser, latents, timesteps, conditioning):
        packed = F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
        mask = torch.cat([conditioning.mask("words"), conditioning.mask("letters")], dim=1)
        found = denoiser(packed, timesteps, conditioning["words"], conditioning["letters"], mask)
        side = latents.shape[-2] // 2, latents.shape[-1] // 2
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, side), 2)


TOY = Toy()
