"""What denoisers read of language models: the words around a caption, and which of the model's states.

A state has the number that transformers gives it in `hidden_states`: 0 is the words alone, k what layer k says. Sources:
ComfyUI's `comfy.text_encoders` and diffusers' pipelines, where both agree unless something else is said.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Tap:
    """Captions are read alone, so that only padding that a family adds is ever there. A language model sees nothing that
    comes later, and no padding."""

    states: tuple[int, ...]
    """Those that the denoiser reads. If all are negative, they count from the end: -1 is what the last layer says."""
    before: str = ""
    after: str = ""
    """What stands around a caption."""
    dropped: str = ""
    """The beginning of `before` whose states the denoiser does not read."""
    normed: bool = False
    """The last state is read behind the model's final norm."""
    stacked: bool = False
    """States on an axis of their own, [batch, tokens, states, width], instead of side by side."""
    longest: int = 512
    """Tokens that the denoiser was trained with, those around the caption included; more are read, and known less well."""
    empty: str = ""
    """What is read in place of an empty caption."""
    shortest: int = 1
    multiple: int = 1
    """Sequences are padded to so many tokens at least, and to a multiple of so many. The denoiser sees the padding."""
    pads_with_zeros: bool = False
    """Zeros before the states, in place of padding tokens behind the text of which the model says something."""
    pad_position: int | None = None
    """The place in the text that all padding tokens have; None: each its own."""


_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
_DESCRIBE = ("<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
             "relationships of the objects and background:<|im_end|>\n")

Z_IMAGE = Tap(states=(-2,), before=_USER, after=_ASSISTANT)
"""Qwen3 4B that may still think."""
FLUX2_KLEIN = Tap(states=(9, 18, 27), before=_USER, after=f"{_ASSISTANT}<think>\n\n</think>\n\n", shortest=512)
"""Qwen3 4B or 8B that has thought nothing."""
FLUX2_DEV = Tap(
    states=(10, 20, 30), shortest=512, pads_with_zeros=True,
    before="[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses focusing on "
           "object relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT][INST]",
    after="[/INST]")
"""Mistral Small 3. ComfyUI puts zeros where diffusers has states of padding tokens; here it is done as ComfyUI does it."""
FLUX3 = Tap(states=(4, 8, 12, 16, 20, 24, 28, 32), before=_USER, after=_ASSISTANT, longest=8192, multiple=80, pad_position=1)
"""Qwen3-VL 4B. Source: diffusers' modular pipeline alone."""
QWEN_IMAGE = Tap(states=(-1,), normed=True, before=_DESCRIBE + _USER, dropped=_DESCRIBE + _USER, after=_ASSISTANT,
                 longest=1024 + 34)
"""Qwen2.5-VL 7B; 34 tokens are dropped."""
_COMPREHEND = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
QWEN_IMAGE_21 = Tap(states=(-1,), before=_COMPREHEND + _USER, dropped=_COMPREHEND, after=_ASSISTANT,
                    longest=262_144, empty=" ")
"""Qwen3-VL 8B. Source: diffusers' pipeline alone, which cuts no text: the length is that of the language model."""
KREA2 = Tap(states=tuple(range(2, 36, 3)), stacked=True, before=_DESCRIBE + _USER, dropped=_DESCRIBE + _USER,
            after=_ASSISTANT, longest=512 + 34)
"""Qwen3-VL 4B; ComfyUI has the twelve states side by side on their way to the denoiser."""
ANIMA = Tap(states=(-1,), normed=True)
"""Qwen3 0.6B told the caption alone; an empty caption is one padding token."""
