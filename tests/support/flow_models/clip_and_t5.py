"""Text encoders of SD3 and FLUX.1: tiny ones, and what a plain loop reads of them."""
from pathlib import Path

import torch.nn.functional as F
from torch import cat
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from ..tiny import WIDTH
from .flow_model import PlainText

T5_WIDTH = 2 * WIDTH


def t5_config(width=T5_WIDTH, layers=2) -> T5Config:
    return T5Config(vocab_size=32128, d_model=width, d_kv=16, d_ff=2 * width, num_layers=layers, num_heads=4,
                    feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0)


class ClipAndT5(PlainText):
    """As ComfyUI reads them: T5 padded to a length, without a mask."""

    def __init__(self, folder: Path, two_clips: bool, length: int):
        last = "_3" if two_clips else "_2"
        self.two_clips, self.length = two_clips, length
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / "tokenizer")]
        self.learning = {"te1": CLIPTextModel.from_pretrained(folder / "text_encoder")}
        if two_clips:
            self.tokenizers.append(CLIPTokenizer.from_pretrained(folder / "tokenizer_2"))
            self.learning["te2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        self.t5_tokenizer = T5TokenizerFast.from_pretrained(folder / f"tokenizer{last}")
        self.t5 = T5EncoderModel.from_pretrained(folder / f"text_encoder{last}").requires_grad_(False).eval()

    def __call__(self, captions):
        ids = [each(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
               for each in self.tokenizers]
        one, *others = (clip(each, output_hidden_states=True)
                        for clip, each in zip(self.learning.values(), ids, strict=True))
        tokens = self.t5_tokenizer(captions, padding="max_length", max_length=self.length, return_tensors="pt").input_ids
        states = self.t5(tokens).last_hidden_state
        if not self.two_clips:
            return {"hidden": states, "pooled": one.pooler_output}
        both = cat([one.hidden_states[-2], others[0].hidden_states[-2]], dim=-1)
        both = F.pad(both, (0, states.shape[-1] - both.shape[-1]))
        return {"hidden": cat([both, states], dim=1), "pooled": cat([one.pooler_output, others[0].text_embeds], dim=-1)}
