"""SD3 as 3.5 Medium has it: norms of q and k, and a block that attends twice; plain as SD3 Medium, without either."""
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.families.text.t5 import t5_tokenizer
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from ..tiny import END, WIDTH, text_config
from .clip_and_t5 import T5_WIDTH, ClipAndT5, t5_config
from .flow_model import FlowModel, attention_layers, kl_vae


def _release(layers, positions, **more):
    return SD3Transformer2DModel, dict(
        sample_size=128, num_layers=layers, num_attention_heads=layers, attention_head_dim=64, joint_attention_dim=4096,
        caption_projection_dim=64 * layers, pooled_projection_dim=2048, pos_embed_max_size=positions, in_channels=16,
        out_channels=16, **more)


class Sd3(FlowModel):
    name, pipeline = "sd3", StableDiffusion3Pipeline
    files = "sd3.5_medium", "sd3_vae"
    releases = {
        "SD3 Medium": _release(24, 192),
        "SD3.5 Medium": _release(24, 384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        "SD3.5 Large": _release(38, 192, qk_norm="rms_norm"),
    }

    def transformer(self, plain=False):
        return SD3Transformer2DModel(
            sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=64, caption_projection_dim=128,
            joint_attention_dim=T5_WIDTH, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
            dual_attention_layers=() if plain else (0,), qk_norm=None if plain else "rms_norm")

    def vae(self):
        return kl_vae(1.5305, 0.0609)

    def text(self):
        t5 = T5EncoderModel(t5_config())
        return dict(
            tokenizer=CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token=END),
            text_encoder=CLIPTextModelWithProjection(text_config(layers=3)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(layers=3, activation="gelu")),
            tokenizer_2=CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token="!"),
            text_encoder_3=t5, tokenizer_3=t5_tokenizer())

    def plain_text(self, folder):
        return ClipAndT5(folder, two_clips=True, length=77)

    def velocity(self, denoiser, latents, sigmas, said):
        return denoiser(latents, said["hidden"], said["pooled"], 1000 * sigmas).sample

    def shift(self, height, width):
        return 3.0

    def adapted(self, denoiser):
        return attention_layers(denoiser, ("attn", "attn2"), (("to_q", "to_k", "to_v"), (
            "add_q_proj", "add_k_proj", "add_v_proj")), ("to_out.0", "to_add_out"))

    def drawn(self, pipeline, said, negative, noise, **how):
        return pipeline(prompt_embeds=said["hidden"], pooled_prompt_embeds=said["pooled"], latents=noise,
                        negative_prompt_embeds=negative["hidden"], negative_pooled_prompt_embeds=negative["pooled"],
                        **how).images[0]


SD3 = Sd3()
