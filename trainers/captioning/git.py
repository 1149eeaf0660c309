"""GIT: one transformer over the image's patches and the words so far."""
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import GitForCausalLM

from ..spec.captioning import CaptionerFolderSpec, GitSpec
from .speaking import Speaker, load_speaker


def load(settings: GitSpec, folder: CaptionerFolderSpec, device: torch.device, dtype: torch.dtype) -> Speaker[GitSpec]:
    return load_speaker(GitForCausalLM, ask, settings, folder, device, dtype)


def ask(git: Speaker[GitSpec], images: Sequence[Image.Image]) -> list[str]:
    inputs, tokenizer = git.processor(images=list(images), return_tensors="pt"), git.processor.tokenizer
    prompt = git.settings.prompt.strip()
    if prompt:  # without the tokenizer's own end token, behind which nothing would follow
        tokens = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        inputs["input_ids"] = torch.tensor([tokens]).repeat(len(images), 1)
    return git.decode(git.generate(git.ready(inputs)))
