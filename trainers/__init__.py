"""The training engine: torch, diffusers, transformers, peft, accelerate. It never imports ComfyUI.

The map: a line for every file, rooms from the top floor down. A room imports rooms below it and never one above; the tests
read the order from here (tests/unit/test_house_rules.py). The loop is training/loop.py, the story around it training/run.py.

    __main__.py                     the command line
    process/                        the worker process and its parent
        parent.py                   start a worker, follow its events, cancel it
        worker.py                   the child process: a spec goes in, events come out
        tasks.py                    the table of everything that a worker can be asked for
        progress.py                 how far a task has come, from 0 to 1
    training/                       a training run
        run.py                      the story: load, cache, attach, loop, save
        loop.py                     THE training loop
        run_state.py                what a checkpoint holds
        conditioned_model.py        denoiser and text encoders as the one module that trains
        preparation.py              images and captions into caches, before the loop
        batches.py                  which images make which batch, and reading them
        prefetch.py                 micro-batches read while the steps before them run
        assistant.py                a LoRA that is on while training, and in nothing else
        monitor.py                  previews, validation, the best file, on the way
        validation.py               the loss on held-out images, and early stopping
        memory_advice.py            whether a step fits, and what would make it fit
        compilation.py              whether torch can compile here
        tensorboard.py              events as TensorBoard files
    tools/                          files made out of files
        file_tasks.py               THE table of the tools
        extraction.py               a LoRA out of two models
        decomposition.py            the best low-rank factors of a matrix
        merging.py                  arithmetic on LoRA files, and other ranks
        conversion.py               other names, precisions and metadata
        baking.py                   LoRAs worked into a checkpoint; shards
        onnx_export.py              a denoiser as a proven ONNX file
    sampling/                       images made with a model
        previews.py                 images of a run as it is now
        class_images.py             regularization images, made by the base itself
    methods/                        what becomes trainable and what is saved
        protocol.py                 what every method offers
        lora.py                     LoRA and its relatives, by peft
        adapters/                   the kinds of adapters by peft, a file for each
            kind.py                 what peft must be told of each
            lora.py                 LoRA
            dora.py                 DoRA with magnitudes on the input axis
            loha.py                 LoHa
            lokr.py                 LoKr
        full.py                     the model's own weights; with class images DreamBooth
        textual_inversion.py        new words
        pivotal.py                  a new word and a LoRA together
        hypernetwork.py             networks in front of attention
    captioning/                     models that describe images; a file for each kind
        work.py                     describe images, keep what was said
        model_folders.py            which kind of model a folder holds, and whether it is whole
        devices.py                  device and precision, and what a full memory looks like
        speaking.py                 what captioners that write sentences share
        blip.py                     BLIP
        blip2.py                    BLIP-2
        git.py                      GIT
        florence2.py                Florence-2
        vision_language.py          any image-text-to-text model with a chat template
        tagger.py                   WD14 and DeepDanbooru taggers by onnxruntime
        tags.py                     lists of tags and how they are written
        texts.py                    captions out of file names and texts
        articles.py                 a cat, an airplane
    stacking/                       LoRA stacks without ComfyUI
        rows.py                     the rows of a stack as data
        block_weights.py            strengths per block
        prompts.py                  LoRAs named in prompts, and by trigger words
        cards.py                    what a file tells about itself
        inspection.py               the size of a LoRA's change in every block
    caches/                         tensors computed once and kept on disk
        encoding.py                 images as latents, captions as conditioning
        latent_masks.py             masks at the size of latents
        tensor_cache.py             one small file for each entry
        freed_memory.py             freed memory goes back to the system
    families/                       model families: a file for each, and what they share
        protocol.py                 what a family offers
        conditioning.py             what a denoiser is told beside the latents
        samplers.py                 ways from noise to latents
        latent_diffusion.py         what SD 1.x, SD 2.x and SDXL have in common
        stable_diffusion.py         SD 1.x and SD 2.x
        sdxl.py                     Stable Diffusion XL
        transformer_family.py       what families of flow transformers have in common
        variants.py                 the released models of a family, distilled or not
        sd3.py                      Stable Diffusion 3 and 3.5
        flux.py                     FLUX.1 dev and schnell
        flux2.py                    FLUX.2 klein and dev
        flux3.py                    FLUX 3 Image Klein
        chroma.py                   Chroma1
        krea2.py                    Krea 2 Raw and Turbo
        anima.py                    Anima
        z_image.py                  Z-Image and Z-Image Turbo
        qwen_image.py               Qwen-Image
        qwen_image_21.py            Qwen-Image-2.1
        text/                       text encoders, a file for each kind
            encoder_kind.py         what every kind offers
            text_parts.py           the text encoders of a family
            clip.py                 CLIP
            t5.py                   T5
            language_model.py       Qwen and Mistral, as far as they are read
            taps.py                 what denoisers read of them
            qwen_words.py           Qwen's vocabulary
            tekken.py               Mistral's
        native_layout.py            diffusers' transformers with the layers of the original file
        kl_latents.py               images as latents and back
        flux2_latents.py            the same with FLUX.2's autoencoder
        qwen_latents.py             the same with those of Qwen-Image
        vae_filling.py              autoencoders filled from files of either naming
        filling.py                  weights into a model, one tensor after the other
        recognition.py              what a model file is: every family is asked
        unet_recognition.py         whether it is a Stable Diffusion, and which
        component_recognition.py    which components a file holds, by its header
        language_model_recognition.py  which language model it is
        separate_files.py           parts of a model in files of their own
        parts_finding.py            which files go with a denoiser
        model_parts.py              which file or folder holds which component of a model
        component_loading.py        denoisers, VAEs and noise schedules
        component_configs.py        their configs, checked
        weight_files.py             which files of a folder are loaded
        sizes.py                    checkpoints of other sizes than the released ones
        unet_state_dict.py          weights under the names of the original single file
        checkpoint_writing.py       a model as the tensors of one file
        presets.py                  what is recommended for a base
        memory_presets.py           what fits into a GPU's memory
    memory/                         where weights and activations live, and in what form
        placement.py                decided once for a run
        block_swap.py               blocks that come when they are needed
        activation_offload.py       activations that wait in main memory
        frozen_layers.py            layers that leave autograd no weight
        quantization.py             weights in 8 bits
        plan.py                     what a step will need
        dry_run.py                  a computation on tensors without memory
        alive_bytes.py              tensors that are in memory, counted
    optimization/                   how weights move
        optimizers.py               optimizers by name
        prodigy.py                  Prodigy with rates for each group
        schedules.py                learning rates over the steps
        ema.py                      the exponential moving average of weights
        parameter_group.py          what a method hands to the optimizer
    objectives/                     what is predicted; pure functions
        objective.py                noising, target and loss
        noise.py                    noise and noise levels
        losses.py                   how an error counts
    drawing/                        all that is rendered with PIL
        loss_chart.py               the chart of losses
        contact_sheets.py           previews side by side
        dataset_report_pages.py     the report of a dataset
        extraction_report.py        what an extraction keeps
        fonts.py                    text in any script
    data/                           images and captions
        manifest.py                 from a folder to a light manifest
        sources.py                  what lies in a folder, by names
        projects.py                 folders as kohya's trainers want them
        combining.py                several datasets as one, and one as two
        image_store.py              images that came as tensors, as files
        split.py                    which images are held out
        images/                     on the way to latents
            image_files.py          files → upright RGB → a bucket's pixels
            colors.py               any depth, palette or profile → 8-bit sRGB
            buckets.py              aspect-ratio buckets
            augmentation.py         variants made once and cached
            masks.py                which parts of an image count
        captions/                   as text
            caption_files.py        text files and metadata.jsonl
            caption_pairing.py      which text belongs to which image
            caption_search.py       where an image's caption comes from
            caption_editing.py      captions changed for good
            text_replacement.py     find and replace
            sidecars.py             written beside the images, with undo
            templates.py            sentences around a caption
            variation.py            what varies in every step
            trigger_word.py         where the trigger word goes
            trigger_advice.py       what people should know about it
        report/                     a dataset judged before it is trained
            dataset_report.py       what is in it and what is wrong
            lint.py                 captions
            image_quality.py        pixels
            near_duplicates.py      images that look the same
            advice.py               how many images and steps others use
    artifacts/                      the files that other programs load
        tensor_header.py            the header of a safetensors file, checked
        tensor_files.py             tensors read and written one at a time
        weights.py                  the numbers of a file, whatever their precision
        fp8.py                      eight-bit floating point as float32
        quantized/                  quantized weights as numbers, a file for each layout
            layout.py               what layouts share
            notes.py                what a file says of its layers
            scaled.py               fp8 and int8 with a scale
            rotated.py              int8 with rotated inputs
            mxfp8.py                fp8 with a scale for every 32 inputs
            nvfp4.py                four bits with a scale for every 16 inputs
        rounding.py                 whether two tensors differ by rounding alone
        torch_files.py              .pt and .bin without running what is in them
        metadata.py                 what headers tell
        checkpoint.py               whole models
        ldm_layout.py               VAE and text encoders of the original layout
        wan_layout.py               autoencoders of Qwen-Image in theirs
        lora.py                     LoRA files as kohya writes them
        lora_file.py                LoRA files of any maker, as layers
        lora_renaming.py            files of different makers under one's names
        lora_rows.py                layers that makers cut otherwise, joined and cut
        lora_precision.py           factors as a file stores them
        changes.py                  the change that a layer stands for
        adapters/                   the kinds of adapters in files, a file for each
            format.py               what is asked of each
            lora.py                 LoRA and LoCon
            dora.py                 DoRA, and magnitudes of others
            loha.py                 LoHa
            lokr.py                 LoKr
            difference.py           full differences
        peft_config.py              scales that stand beside the tensors
        embedding.py                files of learned words
        embedding_words.py          which tensors of a file are the word
        embedding_library.py        a library of embeddings
        hypernetwork.py             hypernetwork files
        layer_names/                THE authority on names of layers
            table.py                every layer under all its names
            spelling.py             any spelling taken apart
            parts.py                parts of a layer's tensors
            unet.py                 UNet layers, diffusers' and the original's names
            key_map.py              names of transformers as rules, read both ways
            transformer.py          layers of a transformer family, by its rules
            text.py                 text encoders' layers
            blocks.py               blocks and kinds of layers
            family.py               the family of a file
            brought.py              names that a family brings with it
    run_folder.py                   a run's folder: identity, state, resume, lookup
    events.py                       what a worker tells while it works
    reports.py                      what is told of finished work
    accelerator.py                  device and precision of a task
    optional_packages.py            packages that may be missing, and what is said then
    spec/                           a task as data: frozen, validated whole
        part.py                     what all parts share
        base_model.py               the model to start from, and where its components lie
        dataset.py                  datasets
        methods.py                  what is trained
        settings.py                 how it is trained
        blocks.py                   blocks as people type them
        adapters.py                 the kinds of adapters
        captioning.py               captioning tasks
        class_images.py             class image tasks
        file_tasks.py               file tools
    stopping.py                     where a stop breaks work off, and where it waits
    required_packages.py            packages that must be there
    read_ahead.py                   work begun by threads before its turn
    page_text.py                    text as the page shows it on a node
    vocabulary.py                   words as a tokenizer takes them
    words.py                        what a whole word is; names and counts in sentences
    files.py                        files appear whole or not at all
    randomness.py                   randomness as a function of (seed, step, sample)
    errors.py                       failures as sentences
"""
