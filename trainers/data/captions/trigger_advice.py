"""What people should know about their trigger word before they wait for the result."""
from ...spec import DatasetSpec
from ...vocabulary import RARE, Tokenizer, is_common, token_ids, tokens_of_rare
from ...words import clause, holds, spaceless, words_of

MANY_TOKENS = 3
LITTLE_WORDS = frozenset("a an and at by for from in is of on or the to with".split())


def trigger_notes(dataset: DatasetSpec, class_images: DatasetSpec | None, tokenizer: Tokenizer) -> list[str]:
    """Notes on a dataset's trigger word and on how its captions and the class images' fit together. `tokenizer` is a
    CLIPTokenizer."""
    notes = word_notes(dataset.trigger, tokenizer) if dataset.trigger else []
    if dataset.trigger:
        captions = [image.caption for image in dataset.images]
        without = sum(not holds(caption, dataset.trigger) for caption in captions)
        if without:
            notes.append(clause(without, "caption", f"lack the trigger {dataset.trigger!r}; it learns nothing from such "
                                "images", len(captions)))
    return notes + (class_notes(dataset, class_images) if class_images else [])


def word_notes(trigger: str, tokenizer: Tokenizer) -> list[str]:
    count = len(token_ids(trigger, tokenizer))
    if count > MANY_TOKENS:
        return [f"the trigger {trigger!r} is split into {count} tokens, which are learned together with more effort; a "
                f"short rare word such as {RARE!r} has {tokens_of_rare(tokenizer)}"]
    if is_common(trigger, tokenizer):
        return [f"the trigger {trigger!r} is a common word: the training has to overwrite what the base knows of it, and "
                f"prompts that mean the ordinary thing will change too; a rare word such as {RARE!r} avoids that"]
    return []


def class_notes(dataset: DatasetSpec, class_images: DatasetSpec) -> list[str]:
    """Class images hold what their captions name: that should be the subject's class, and not the subject."""
    notes, captions = [], [image.caption for image in class_images.images]
    named = sum(holds(caption, dataset.trigger) for caption in captions) if dataset.trigger else 0
    if named:
        notes.append(f"{named} of {len(captions)} captions of class images hold the trigger {dataset.trigger!r}, so that "
                     "it learns the class instead of the subject; call them by the class alone")
    subject = {word for image in dataset.images for word in words(image.caption)} - words(dataset.trigger)
    if subject and not any(subject & words(caption) for caption in captions):
        notes.append("no caption of a class image shares a word with the subject's captions; class images hold the "
                     "class where both name it, for example 'ohwx dog' and 'a dog'")
    return notes


def words(caption: str) -> set[str]:
    """The words of a caption, or its signs where nothing tells where words of its script end."""
    found = set(words_of(caption)) - LITTLE_WORDS
    return {part for word in found for part in (word if spaceless(word) else [word])}
