"""GIT: one transformer over the image's patches and the words so far."""
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import GitForCausalLM

from .speaking import Speaker, load_speaker


def load(spec, device, dtype) -> Speaker:
    return load_speaker(GitForCausalLM, ask, spec, device, dtype)


def ask(git: Speaker, images: Sequence[Image.Image]) -> list[str]:
    inputs, tokenizer = git.processor(images=list(images), return_tensors="pt"), git.processor.tokenizer
    prompt = git.settings.prompt.strip()
    if prompt:  # without the tokenizer's own end token, behind which nothing would follow
        tokens = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        inputs["input_ids"] = torch.tensor([tokens]).repeat(len(images), 1)
    return git.decode(git.generate(git.ready(inputs)))
