"""The training engine: torch, diffusers, transformers, peft, accelerate. It never imports ComfyUI.

Where to look:
    spec.py         a run as frozen data, validated whole
    training.py     the story of a run: load, cache, attach, loop, save
    preparation.py  before the loop: every picture and caption encoded once, by encoding.py, from and into caches
    loop.py         the training loop
    objectives.py   noising, targets and loss weights, with their equations
    optimizers.py   by name; schedules.py their rates; ema.py the running mean of the weights
    frozen.py       weights in 8 bits; compilation.py whether torch can compile
    errors.py       failures as sentences; what a foreign error says in a line
    page_text.py    text as the page shows it on a node; sheets.py and charts.py its pictures
    requirements.py packages that are required, read from requirements.txt
    words.py        what a whole word is, in captions and prompts; names and counts in sentences
    vocabulary.py   words as a tokenizer takes them: their tokens, common or rare
    optional.py     packages that are not required, and what is said without them
    families/       SD 1.x, SD 2.x, SDXL: loading, encoding, one denoising call; presets.py what is recommended for a base,
                    sizes.py checkpoints of other sizes than the released ones
    methods/        what becomes trainable and what is saved
    data/           pictures, captions, buckets, caches, batches
    artifacts/      the files other programs load; foreign files come in by tensor_header.py and tensor_files.py, .pt and
                    .bin by torch_files.py; embedding_words.py finds the word in any trainer's embedding
    artifacts/layer_names/  THE authority on how programs call the layers of a model in LoRA files, and on their blocks
    artifacts/lora_file.py  LoRA files as layers, whatever their maker: lora_renaming.py gives them one maker's names,
                    changes.py the change of a layer, peft_config.py the scales that stand beside the tensors
    runs.py         run folders: identity, state, resume, lookup
    worker.py       the child process; run.py its parent; tasks.py what it can be asked for
    stopping.py     cancel: where it breaks work off and where it waits; progress.py how far a task has come
"""
