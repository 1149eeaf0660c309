"""Files that other programs load, tools that make them from files, and stacks of LoRAs."""
from .mutation import Mutation

EXTRACTION, DECOMPOSITION, MERGING = "trainers/extraction.py", "trainers/decomposition.py", "trainers/merging.py"
BAKING, METADATA, CHECKPOINT = "trainers/baking.py", "trainers/artifacts/metadata.py", "trainers/artifacts/checkpoint.py"
EMBEDDING, ROWS = "trainers/artifacts/embedding.py", "trainers/stacking/rows.py"
BLOCKS, UNET = "trainers/artifacts/layer_names/blocks.py", "trainers/artifacts/layer_names/unet.py"
NAMES, SPELLING = "trainers/artifacts/layer_names/table.py", "trainers/artifacts/layer_names/spelling.py"
RENAMING, PEFT = "trainers/artifacts/lora_renaming.py", "trainers/artifacts/peft_config.py"
CHANGES, LORA_FILE = "trainers/artifacts/changes.py", "trainers/artifacts/lora_file.py"
CONVERSION, FAMILY = "trainers/conversion.py", "trainers/artifacts/layer_names/family.py"
WEIGHTS, PROMPTS = "trainers/stacking/block_weights.py", "trainers/stacking/prompts.py"
BY_NAMES, BY_SCALES = "unit/test_layer_names.py", "unit/test_lora_scales.py"

MUTATIONS = [
    Mutation("base minus tuned", EXTRACTION,
             "change = changed.sub_(original) if copied else changed - original", "change = original - changed",
             "unit/test_extraction.py::test_a_planted_update_comes_back_and_the_energy_rule_finds_its_rank"),
    Mutation("convolutions have the rank of the rest", EXTRACTION,
             "(spec.convolution_rank or spec.rank) if is_convolution(shape) else spec.rank",
             "spec.rank", "unit/test_extraction.py::test_convolutions_may_have_another_rank"),
    Mutation("the values are in one factor", EXTRACTION,
             "root = factors.values.sqrt()", "root = factors.values",
             "unit/test_extraction.py::test_a_planted_update_comes_back_and_the_energy_rule_finds_its_rank"),
    Mutation("clamping is ignored", EXTRACTION,
             "    if clamp < 1:\n", "    if clamp < 0:\n",
             "unit/test_extraction.py::test_clamping_cuts_both_factors_at_the_quantile_of_their_sizes"),
    Mutation("what is kept is measured before rounding", EXTRACTION,
             "(each.to(dtype).to(torch.float32).flatten(1) for each in (down, up))",
             "(each.to(torch.float32).flatten(1) for each in (down, up))",
             "unit/test_extraction.py::test_what_rounding_takes_is_told_in_the_precision_of_the_file"),
    Mutation("the rule is ignored", EXTRACTION,
             "factors = factors.first(chosen_rank(spec, factors))\n", "factors = factors.first(len(factors.values))\n",
             "unit/test_extraction.py::test_a_planted_update_comes_back_and_the_energy_rule_finds_its_rank"),
    Mutation("the ratio is of the energy", DECOMPOSITION,
             "factors.values >= factors.values[0] / ratio",
             "factors.values**2 >= factors.values[0]**2 / ratio", "unit/test_extraction.py::test_rank_rules"),
    Mutation("energy without squares", DECOMPOSITION,
             "kept = torch.cumsum(factors.values.double() ** 2, dim=0)",
             "kept = torch.cumsum(factors.values.double(), dim=0)",
             "unit/test_extraction.py::test_a_planted_update_comes_back_and_the_energy_rule_finds_its_rank"),
    Mutation("the sketch has one block", DECOMPOSITION,
             "while len(inner) < DEPTH:",
             "while len(inner) < 2:", "unit/test_extraction.py::test_sketched_factors_are_nearly_the_best"),
    Mutation("wide and tall swap", DECOMPOSITION,
             "else Factors(right.T, values, left.T, energy)", "else Factors(left, values, right, energy)",
             "unit/test_extraction.py::test_sketched_factors_are_nearly_the_best"),
    Mutation("a merge forgets alpha", MERGING,
             "scale = strength * weight.alpha / len(weight.down)",
             "scale = strength", "unit/test_merging.py::test_joined_factors_are_the_sum"),
    Mutation("a subtraction adds", MERGING,
             "(root if scale >= 0 else -root) * weight.up",
             "root * weight.up", "unit/test_merging.py::test_joined_factors_are_the_sum"),
    Mutation("text encoders take the denoiser's strength", MERGING,
             "chosen = text_strengths if is_text(key) else strengths",
             "chosen = strengths", "unit/test_merging.py::test_joined_factors_are_the_sum"),
    Mutation("layers of one file only are left out", MERGING,
             "key for file in files for key in file.layers",
             "key for file in files for key in file.layers if all(key in each.layers for each in files)",
             "unit/test_merging.py::test_joined_factors_are_the_sum"),
    Mutation("other kinds are added without strength", MERGING,
             "change = sum(strength * layer.change() for layer, strength in parts)",
             "change = sum(layer.change() for layer, strength in parts)",
             "unit/test_merging.py::test_products_are_merged_by_what_they_change"),
    Mutation("the strength of a baked LoRA is ignored", BAKING,
             "rows += strength * layer.change(",
             "rows += layer.change(", "unit/test_file_tasks.py::test_baked_weights_are_base_and_loras"),
    Mutation("DoRA is baked onto what was baked before", BAKING,
             "original = weight.clone() if any",
             "original = weight if any", "unit/test_file_tasks.py::test_dora_is_baked_by_its_formula"),
    Mutation("text encoders are baked at the denoiser's strength", BAKING,
             "lora.text if is_text(key) else lora.model",
             "lora.model", "unit/test_file_tasks.py::test_baked_weights_are_base_and_loras"),
    Mutation("a shard may be too large", CHECKPOINT,
             "        room -= entry.bytes\n", "", "unit/test_checkpoint_file.py::test_shards"),
    Mutation("a checkpoint of infinities is written", CHECKPOINT,
             "if not torch.isfinite(converted).all():",
             "if False:", "unit/test_checkpoint_file.py::test_values_that_do_not_fit_the_precision_are_refused"),
    Mutation("rounding counts as change of a model", CHECKPOINT,
             'base.sub_(trained.to("cpu", dtype))', 'base.sub_(trained.to("cpu"))',
             "unit/test_checkpoint_file.py::test_a_change_smaller_than_the_precision_is_no_change"),
    Mutation("a merge of embeddings is a sum", EMBEDDING,
             "sum(weight / total * each.tensors[key]",
             "sum(weight * each.tensors[key]", "unit/test_embedding_file.py::test_a_merge_is_the_weighted_average"),
    Mutation("v is called epsilon", METADATA,
             '"v_prediction": "v", "flow"', '"v_prediction": "epsilon", "flow"',
             "unit/test_checkpoint_file.py::test_where_v_prediction_cannot_be_marked_a_note_says_so"),
    Mutation("SD 2.x with v is not marked", METADATA,
             '        base_version += "_v"\n', "        pass\n", "unit/test_lora_file.py::test_base_versions"),
    # ---- names of layers -------------------------------------------------------------------------------------------------
    # ---- stacks --------------------------------------------------------------------------------------------------------
]
