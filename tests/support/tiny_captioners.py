"""Tiny real captioners of every kind, with random weights: real classes, configs, processors and tokenizers of
transformers, and taggers as ONNX files.

Weights are drawn wide, so that what a model says depends on the image that it sees.
"""
import csv
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers as hf
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = (
    "a an the red blue green yellow small large old young photo image painting drawing of with and in on dog cat horse "
    "bird house tree river hill boat car street sky sun moon star man woman child hat coat shoe cup table chair book lamp"
).split()
TAGS = [("general", "rating"), ("sensitive", "rating"), ("explicit", "rating"), *(
    (name, "character") for name in ("hatsune_miku", "saber_(fate)", "link")), *((name, "general") for name in (
        "1girl", "solo", "long_hair", "blue_eyes", "^_^", "red_hat", "dog", "cat", "night_sky", "holding_sword",
        "smile", "open_mouth", "tree", "outdoors", "|_|", "shirt_(clothing)"))]
NUMBERS = {"general": 0, "character": 4, "rating": 9}
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BART = ("<s>", "<pad>", "</s>", "<unk>")


def make_captioners(folder: Path) -> dict[str, Path]:
    """A folder for every kind, and for its variants: name → folder/<name>."""
    return {name: make(folder / name) for name, make in MAKERS.items()}


def make_images(folder: Path, count: int = 5) -> list[Path]:
    """Images of a few wide patches in random colors and of several shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, paths = np.random.default_rng(7), []
    for number in range(count):
        patches = generator.integers(0, 256, (2 + number % 2, 3, 3), dtype=np.uint8)
        paths.append(folder / f"drawing_{number}.png")
        Image.fromarray(patches).resize((48 + 16 * (number % 3), 64), Image.Resampling.NEAREST).save(paths[-1])
    return paths


def tokenizer(special: tuple[str, ...], around: str = "$A", more: tuple[str, ...] = (), **named):
    """Whole words as tokens, with the special tokens of a family, put `around` a text as its own tokenizer does."""
    vocabulary = {word: number for number, word in enumerate([*special, *(f"▁{word}" for word in WORDS), *more])}
    unknown = next(word for word in special if "unk" in word.lower())
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(word, vocabulary[word]) for word in special])
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown, **named)


def widen(model, seed: int, width: float = 2.5):
    """Random weights whose effect does not fade: layers pass on about `width` times what they get."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * width / fan**0.5)
            elif parameter.ndim:
                ones = (parameter == 1).float()  # of norms; other vectors may have been drawn without our seed
                parameter.copy_(ones + torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def save(folder: Path, model, processor) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def make_blip(folder: Path, seed: int = 1, positions: int = 64) -> Path:
    words = tokenizer(BERT, "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    model = hf.BlipForConditionalGeneration(hf.BlipConfig(
        text_config=dict(SMALL, vocab_size=len(words), encoder_hidden_size=32, max_position_embeddings=positions,
                         bos_token_id=2, eos_token_id=3, sep_token_id=3, pad_token_id=0),
        vision_config=dict(SMALL, image_size=32, patch_size=8), projection_dim=16))
    return save(folder, widen(model, seed), hf.BlipProcessor(hf.BlipImageProcessor(size={"height": 32, "width": 32}), words))


def make_git(folder: Path) -> Path:
    words = tokenizer(BERT, "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    config = hf.GitConfig(
        vision_config=dict(SMALL, image_size=32, patch_size=8), **SMALL, vocab_size=len(words), max_position_embeddings=64,
        bos_token_id=2, eos_token_id=3, pad_token_id=0)
    side = {"height": 32, "width": 32}
    return save(folder, widen(hf.GitForCausalLM(config), 1), hf.GitProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side), words))


def make_blip2(folder: Path, text: str = "opt") -> Path:
    if text == "opt":
        words = tokenizer(BART, "</s> $A", ("<image>",), pad_token="<pad>", bos_token="</s>", eos_token="</s>")
        language = dict(model_type="opt", vocab_size=len(words), hidden_size=32, ffn_dim=32, num_hidden_layers=2,
                        num_attention_heads=2, word_embed_proj_dim=32, max_position_embeddings=128, bos_token_id=2,
                        eos_token_id=2, pad_token_id=1)
    else:
        words = tokenizer(BART, "$A </s>", ("<image>",), pad_token="<pad>", eos_token="</s>")
        language = dict(model_type="t5", vocab_size=len(words), d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2,
                        bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=1)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.image_token = "<image>"
    config = hf.Blip2Config(
        vision_config=dict(SMALL, image_size=32, patch_size=8), num_query_tokens=4, text_config=language,
        qformer_config=dict(SMALL, encoder_hidden_size=32, vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"))
    processor = hf.Blip2Processor(hf.BlipImageProcessor(size={"height": 32, "width": 32}), words, num_query_tokens=4)
    return save(folder, widen(hf.Blip2ForConditionalGeneration(config), 3), processor)


def make_florence2(folder: Path) -> Path:
    places = tuple(f"<loc_{number}>" for number in range(40))
    words = tokenizer(BART, "<s> $A </s>", (*places, "<image>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                      extra_special_tokens={"image_token": "<image>"})
    config = hf.Florence2Config(
        vision_config=dict(depths=(1, 1, 1, 1), embed_dim=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_groups=(1, 1, 2, 2),
                           window_size=4, projection_dim=32),
        text_config=dict(vocab_size=len(words), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                         decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128,
                         bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2),
        image_token_id=words.convert_tokens_to_ids("<image>"), bos_token_id=0, pad_token_id=1, eos_token_id=2)
    images = hf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5  # 64 pixels / 32 squared, and their mean
    return save(folder, widen(hf.Florence2ForConditionalGeneration(config), 3, width=1.5), hf.Florence2Processor(
        images, words, post_processor_config={"pure_text": {}, "description_with_bboxes": {}}))


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def make_qwen2_vl(folder: Path) -> Path:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(("<pad>", "<unk>", "<end>"), more=marks, pad_token="<pad>", eos_token="<end>",
                      additional_special_tokens=list(marks))
    start, end, image, video = words.convert_tokens_to_ids(list(marks))
    config = hf.Qwen2VLConfig(
        text_config=dict(SMALL, num_key_value_heads=2, vocab_size=len(words), max_position_embeddings=512, bos_token_id=2,
                         eos_token_id=2, pad_token_id=0,
                         rope_parameters=dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)),
        vision_config=dict(depth=2, embed_dim=32, num_heads=2, hidden_size=32, mlp_ratio=1, patch_size=8),
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end)
    images = hf.Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor = hf.Qwen2VLProcessor(images, words, hf.Qwen2VLVideoProcessor(patch_size=8), chat_template=TEMPLATE.replace(
        "IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"))
    return save(folder, widen(hf.Qwen2VLForConditionalGeneration(config), 3), processor)


def make_llava(folder: Path) -> Path:
    words = tokenizer(("<pad>", "<unk>", "<s>", "</s>"), "<s> $A", ("<image>",), pad_token="<pad>", bos_token="<s>",
                      eos_token="</s>", additional_special_tokens=["<image>"])
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8),
        text_config=hf.LlamaConfig(**SMALL, vocab_size=len(words), max_position_embeddings=128, bos_token_id=2,
                                   eos_token_id=3, pad_token_id=0),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=16)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(images, words, patch_size=8, vision_feature_select_strategy="default",
                                  num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"))
    return save(folder, widen(hf.LlavaForConditionalGeneration(config), 1, width=2.0), processor)


def make_tagger(folder: Path, batch: int | str = "batch", probabilities: bool = True, tags=TAGS) -> Path:
    """Convolution, mean, linear layer, sigmoid on [batch, 32, 32, 3], with SmilingWolf's list of tags."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(network(len(tags), batch, 1 / 128, probabilities), folder / "model.onnx")
    with open(folder / "selected_tags.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([number, name, NUMBERS[category], 1000 - number] for number, (name, category) in enumerate(tags))
    return folder


def make_deepdanbooru(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(network(len(TAGS), "batch", 2.0, True), folder / "model.onnx")
    lines = [f"rating:{name}" if category == "rating" else name for name, category in TAGS]
    (folder / "tags.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tags-character.txt").write_text(
        "\n".join(name for name, category in TAGS if category == "character"), encoding="utf-8")
    return folder


def network(tags: int, batch: int | str, scale: float, probabilities: bool) -> onnx.ModelProto:
    generator = np.random.default_rng(5)
    constants = {
        "scale": np.array(scale, np.float32),
        "kernels": generator.normal(0, 0.4, (16, 3, 8, 8)).astype(np.float32),
        "weights": generator.normal(0, 0.3, (16 * 4, tags)).astype(np.float32),
        "bias": generator.normal(0, 0.5, tags).astype(np.float32),
    }
    last = helper.make_node("Sigmoid" if probabilities else "Identity", ["numbers"], ["tags"])
    nodes = [
        helper.make_node("Mul", ["images", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernels"], ["features"], strides=[8, 8]),
        helper.make_node("Tanh", ["features"], ["bent"]),
        helper.make_node("AveragePool", ["bent"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["numbers"]),
        last,
    ]
    graph = helper.make_graph(
        nodes, "tagger", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 32, 32, 3])],
        [helper.make_tensor_value_info("tags", TensorProto.FLOAT, [batch, tags])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MAKERS = {
    "blip": make_blip, "blip2": make_blip2, "blip2_t5": lambda folder: make_blip2(folder, "t5"), "git": make_git,
    "florence2": make_florence2, "qwen2_vl": make_qwen2_vl, "llava": make_llava, "tagger": make_tagger,
    "tagger_one": lambda folder: make_tagger(folder, batch=1), "deepdanbooru": make_deepdanbooru,
}
KINDS = {"blip2_t5": "blip2", "qwen2_vl": "vision_language", "llava": "vision_language", "tagger_one": "tagger",
         "deepdanbooru": "tagger"}
"""name of a maker → kind of captioner, where they differ"""
