"""Tokenizers that come with the pack give the ids that ComfyUI's give. The ids here are those of its T5XXLTokenizer and of
its folder qwen25_tokenizer."""
import pytest
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from finetune.trainers.families.text.t5 import t5_tokenizer

IDS = {
    "": [1],
    "a cat": [3, 9, 1712, 1],
    "  A photo of  two   dogs,\n\nrunning ": [71, 1202, 13, 192, 3887, 6, 1180, 1],
    "猫 кот 🐱 naïve café ½ “quotes”…": [
        3, 2, 3, 12377, 6725, 3, 2, 3, 29, 9, 2, 162, 11949, 209, 2, 357, 105, 8270, 15, 7, 153, 233, 1],
}


QWEN_IDS = {
    "": [],
    "a cat": [64, 8251],
    "  A photo of  two   dogs,\n\nrunning ": [220, 362, 6548, 315, 220, 1378, 256, 12590, 3554, 27173, 220],
    "猫 кот 🐱 naïve café ½ “quotes”… 2026": [
        100472, 7665, 13039, 11162, 238, 109, 94880, 586, 51950, 220, 26062, 1036, 53282, 854, 1940, 220, 17, 15, 17, 21],
    "<|im_start|>user\na cat<|im_end|>\n<think>\n\n</think>": [151644, 872, 198, 64, 8251, 151645, 198, 151667, 271, 151668],
}


@pytest.fixture(scope="module")
def t5():
    return t5_tokenizer()


@pytest.mark.parametrize("text", IDS)
def test_ids_of_t5(t5, text):
    assert t5(text).input_ids == IDS[text]


def test_ids_of_qwen():
    qwen = qwen_tokenizer()
    assert {text: qwen(text).input_ids for text in QWEN_IDS} == QWEN_IDS
    assert qwen.convert_tokens_to_ids("<|endoftext|>") == 151643


def test_long_texts_are_cut_only_where_a_length_is_said(t5):
    assert t5("a cat " * 300).input_ids == [3, 9, 1712] * 300 + [1]
    padded = t5(["a cat", "a cat " * 300], padding="max_length", max_length=8, truncation=True)
    assert padded.input_ids == [[3, 9, 1712, 1, 0, 0, 0, 0], [3, 9, 1712, 3, 9, 1712, 3, 1]]
    assert padded.attention_mask == [[1] * 4 + [0] * 4, [1] * 8]
