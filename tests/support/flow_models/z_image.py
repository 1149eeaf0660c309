"""Z-Image. Base and Turbo have the same layers; plain is the same model."""
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from .flow_model import FlowModel, PlainText, attention_layers, kl_vae

TEXT_WIDTH = 16


class StateBeforeTheLast(PlainText):
    """Of Qwen3, for the tokens of each caption in a chat and no others."""

    learning = {}

    def __init__(self, folder):
        self.tokenizer = qwen_tokenizer()
        self.model = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()

    def __call__(self, captions):
        chats = [f"<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n" for caption in captions]
        tokens = [self.tokenizer(chat, return_tensors="pt").input_ids for chat in chats]
        return {"hidden": [self.model(each, output_hidden_states=True).hidden_states[-2][0] for each in tokens]}


class ZImage(FlowModel):
    name, pipeline = "z_image", ZImagePipeline
    files = "z_image_bf16", "ae"
    releases = {"Z-Image": (ZImageTransformer2DModel, {})}
    """The class's defaults."""

    def transformer(self, plain=False):
        """Its filling tokens are zeros in a fresh model."""
        model = ZImageTransformer2DModel(
            dim=48, n_heads=3, n_kv_heads=3, n_layers=2, n_refiner_layers=1, cap_feat_dim=TEXT_WIDTH, axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64])
        for token in (model.x_pad_token, model.cap_pad_token):
            torch.nn.init.normal_(token)
        return model

    def vae(self):
        return kl_vae(0.3611, 0.1159)

    def text(self):
        config = Qwen3Config(vocab_size=151_936, hidden_size=TEXT_WIDTH, intermediate_size=48, num_hidden_layers=3,
                             num_attention_heads=2, num_key_value_heads=1, head_dim=16, rope_theta=1e6,
                             tie_word_embeddings=True)
        return dict(tokenizer=qwen_tokenizer(), text_encoder=Qwen3ForCausalLM(config))

    def plain_text(self, folder):
        return StateBeforeTheLast(folder)

    def velocity(self, denoiser, latents, sigmas, said):
        captions = said["hidden"]
        if isinstance(said, Conditioning):
            captions = [words[:length] for words, length in zip(captions, said.lengths("hidden"), strict=True)]
        found = denoiser(list(latents.unsqueeze(2)), 1 - sigmas, list(captions)).sample
        return -torch.stack(found).squeeze(2)

    def shift(self, height, width):
        return 3.0

    def adapted(self, denoiser):
        """Of the main blocks."""
        own = attention_layers(denoiser.layers, ("attention",), (("to_q", "to_k", "to_v"),), ("to_out.0",))
        return [[f"layers.{each}" for each in group] for group in own]

    def drawn(self, pipeline, said, negative, noise, **how):
        """The pipeline goes from the prediction on, all others from that of the negative prompt."""
        return pipeline(prompt_embeds=list(said["hidden"]), negative_prompt_embeds=list(negative["hidden"]), latents=noise,
                        **how | {"guidance_scale": how["guidance_scale"] - 1}).images[0]


Z_IMAGE = ZImage()
