"""SD3 and FLUX.1: what they are told, and their files."""
from .mutation import Mutation

SD3, FLUX = "trainers/families/sd3.py", "trainers/families/flux.py"
FAMILY, WRITING = "trainers/families/transformer_family.py", "trainers/families/checkpoint_writing.py"
LATENTS, TEXT = "trainers/families/kl_latents.py", "trainers/families/text/t5.py"
LAYOUT, OBJECTIVES = "trainers/families/native_layout.py", "trainers/objectives/objective.py"
LOSSES = "unit/test_first_losses_flow.py::test_losses_equal_plain_diffusers"

MUTATIONS = [
    Mutation("SD3's shift is another", SD3, "SHIFT = 3.0", "SHIFT = 2.99", LOSSES),
    Mutation("CLIP-G's pooled state is not projected in SD3", SD3,
             'output.pooler_output if encoder == "te1" else output.text_embeds', "output.pooler_output", LOSSES),
    Mutation("rows of latents count as another axis", FLUX,
             "places[..., 1] = torch.arange(height", "places[..., 0] = torch.arange(height", LOSSES),
    Mutation("latents are not shifted", LATENTS,
             "(posterior.mode() - latent_format.shift)", "posterior.mode()", LOSSES),
    Mutation("T5 reads one token too few", TEXT,
             "length = text.text_length or max(shortest, *(len(row) for row in rows))",
             "length = text.text_length or max(shortest - 1, *(len(row) for row in rows))", LOSSES),
    Mutation("scale comes before shift in native layout", LAYOUT,
             "shift, scale = self.linear(", "scale, shift = self.linear(", LOSSES),
    Mutation("validation follows the family's shift", OBJECTIVES,
             "        return fractions\n", "        return 3 * fractions / (1 + 2 * fractions)\n",
             "unit/test_flow_controls.py::test_validation_equals_plain_diffusers"),
    Mutation("a file's own names of norms are lost", FAMILY,
             """f"{each.removesuffix('scale')}weight" if each.endswith(".scale") else each""", "each",
             "unit/test_flow_round_trips.py::test_an_all_in_one_file_in_bf16"),
    Mutation("what is not trained is stored as numbers", WRITING,
             "for name, entry in read_entries(path).items() if not name.startswith(trained)",
             "for name, entry in numbers.items() if not name.startswith(trained)",
             "unit/test_flow_round_trips.py::test_what_is_not_trained_stays_in_fp8_with_its_scales"),
]
