"""Qwen-Image-2.1; plain is the same model."""
import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .. import tiny_vaes
from ..tiny import WIDTH
from .flow_model import PlainText, attention_layers, each_alone
from .qwen_image import SCHEDULE, QwenImage

TURN = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{{ part.text }}"
        "{% endfor %}<|im_end|>\n{% endfor %}")
"""A chat template of text alone: the pipeline asks for it to count the tokens of its system message."""


class StatesBeforeTheNorm(PlainText):
    """As the pipeline reads them, of each caption alone."""

    learning = {}

    def __init__(self, folder):
        self.pipeline = QwenImage21Pipeline.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, captions):
        return {"hidden": [self.pipeline.encode_prompt(caption)[0][0] for caption in captions]}


class QwenImage21(QwenImage):
    name, pipeline = "qwen_image_21", QwenImage21Pipeline
    files = "qwen_image_2.1_bf16", "qwen_image_2.1_vae_bf16"
    releases = {"Qwen-Image-2.1": (QwenImage21Transformer2DModel, {})}
    """Its config is the class's defaults."""
    vae_class = AutoencoderKLQwenImage21
    text_marks = {"model.visual.deepstack_merger_list.0.norm.weight": torch.ones(1)}

    def transformer(self, plain=False):
        return QwenImage21Transformer2DModel(num_layers=2, attention_head_dim=128, num_attention_heads=1,
                                             context_in_dim=WIDTH)

    def vae(self):
        return tiny_vaes.make_vae("qwen21")

    def text(self):
        width = dict(hidden_size=WIDTH, intermediate_size=48)
        config = Qwen3VLConfig(text_config=dict(
            **width, vocab_size=151_936, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[4, 2, 2])), vision_config=dict(
            **width, depth=1, num_heads=2, out_hidden_size=WIDTH, num_position_embeddings=16, deepstack_visual_indexes=[0]))
        processor = Qwen3VLProcessor(Qwen2VLImageProcessor(), qwen_tokenizer(), Qwen3VLVideoProcessor(), chat_template=TURN)
        return dict(processor=processor, text_encoder=Qwen3VLForConditionalGeneration(config))

    def plain_text(self, folder):
        return StatesBeforeTheNorm(folder)

    def latents(self, vae, pixels):
        return super().latents(vae, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))

    def velocity(self, denoiser, latents, sigmas, said):
        (height, width), found = latents.shape[-2:], []
        for latent, sigma, words in zip(latents, sigmas, each_alone(said, "hidden"), strict=True):
            slots = torch.arange(words.shape[1] + height * width // 4)[None] >= words.shape[1]
            tokens = latent.flatten(1).T[None]
            moved = denoiser(tokens, words, sigma[None], [[(1, height, width)]], slots).sample[:, words.shape[1]:]
            found.append(moved[0].T.unflatten(1, (height, width)))
        return torch.stack(found)

    def shift(self, height, width):
        return super().shift(2 * height, 2 * width)

    def adapted(self, denoiser):
        found = attention_layers(denoiser.transformer_blocks, ("attn",), (), ("to_q", "to_k", "to_v", "to_out.0"))
        return [[f"transformer_blocks.{each}" for each in group] for group in found]

    def drawn(self, pipeline, said, negative, noise, guidance_scale, **how):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
        image = pipeline(prompt_embeds=said["hidden"], negative_prompt_embeds=negative["hidden"],
                         latents=noise.flatten(2).transpose(1, 2), true_cfg_scale=guidance_scale, **how).images[0]
        return image.convert("RGB")


QWEN_IMAGE_21 = QwenImage21()
