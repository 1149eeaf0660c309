"""SD3 and FLUX.1: what they are told, and their files."""
from .mutation import Mutation

SD3, FLUX = "trainers/families/sd3.py", "trainers/families/flux.py"
FAMILY, WRITING = "trainers/families/transformer_family.py", "trainers/families/checkpoint_writing.py"
LATENTS, TEXT = "trainers/families/kl_latents.py", "trainers/families/text/t5.py"
LAYOUT, OBJECTIVES = "trainers/families/native_layout.py", "trainers/objectives/objective.py"
FLUX2_LATENTS, QWEN_LATENTS = "trainers/families/flux2_latents.py", "trainers/families/qwen_latents.py"
VAES = "unit/test_latents.py"
PIPELINES = f"{VAES}::test_latents_and_images_are_those_of_diffusers_pipelines"
Z_IMAGE = "trainers/families/z_image.py"
FLUX2, FLUX3 = "trainers/families/flux2.py", "trainers/families/flux3.py"
NAMES = "trainers/artifacts/layer_names/transformer.py"
OWN = "unit/test_flow_families.py::test_a_prediction_is_that_of_diffusers_own_model"
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
    Mutation("words of FLUX.2 stand where columns of images do", FLUX2, "places[:, 3] =", "places[:, 2] =", OWN),
    Mutation("rows of images are twice as far apart in FLUX 3", FLUX3, "STEP = 0.5", "STEP = 1.0", OWN),
    Mutation("scale comes before shift in FLUX 3", FLUX3, "shift, scale = self.linear(", "scale, shift = self.linear(", OWN),
    Mutation("FLUX.2 is shifted otherwise in few steps", FLUX2, "(200 - steps) / 190", "(200 - steps) / 200",
             "unit/test_flow_settings.py::test_flux_2_and_3_train_with_flux_1s_shift_and_sample_with_their_own"),
    Mutation("what FLUX 3 has for images that are edited is lost", FLUX3,
             "for name, entry in kept.items())]", "for name, entry in ())]",
             "unit/test_flow_round_trips.py::test_a_folder_trained_with_its_text_becomes_one_file_that_is_a_base_by_its_name"),
    Mutation("shapes do not tell FLUX.2's LoRAs from FLUX.1's", NAMES,
             "if each._may_have(layers)] or claiming", "if each._may_have({})] or claiming",
             "unit/test_transformer_names.py::test_shapes_tell_families_with_the_same_names_and_widths"),
    Mutation("no alpha is written under ComfyUI's names", "trainers/artifacts/lora.py",
             "and float(found[alpha]) == len(found[down])", "",
             "unit/test_lora_file.py::test_under_comfyuis_names_factors_are_called_as_by_peft"),
    Mutation("Z-Image's time is not turned round", Z_IMAGE, "1 - timesteps[chosen] / 1000", "timesteps[chosen] / 1000", OWN),
    Mutation("Z-Image's velocity is not turned round", Z_IMAGE, "-torch.stack(found)", "torch.stack(found)", OWN),
    Mutation("padding of captions counts as words", Z_IMAGE, "[words[:length] for", "[words for", OWN),
    Mutation("keys of Z-Image are queries", Z_IMAGE, 'for each in "qkv")', 'for each in "kqv")',
             "unit/test_rescued_loras.py::test_every_spelling_becomes_the_hosts_own"),
    Mutation("Lumina 2 counts as Z-Image", Z_IMAGE, 'marker="noise_refiner.0.adaLN_modulation.0.weight"',
             'marker="cap_embedder.1.weight"', "unit/test_component_recognition.py::test_relatives_are_of_no_family"),
    Mutation("any version of diffusers will do", FAMILY, "if found is not None and self.needs_diffusers:", "if False:",
             "unit/test_flow_families.py::test_an_older_diffusers_is_named_before_anything_is_loaded"),
    Mutation("rows and columns of patches change places", FLUX2_LATENTS,
             "return (F.pixel_unshuffle(posterior.mode(), PATCH) - mean)",
             "return (F.pixel_unshuffle(posterior.mode().mT, PATCH).mT - mean)", PIPELINES),
    Mutation("FLUX.2's statistics are not applied", FLUX2_LATENTS, "latents * deviation + mean", "latents", PIPELINES),
    Mutation("images are transparent for Qwen-Image-2.1", QWEN_LATENTS,
             "torch.ones_like(pixels[:, :1])", "torch.zeros_like(pixels[:, :1])", PIPELINES),
    Mutation("the first frame of a kernel is kept", QWEN_LATENTS, "module.weight[:, :, -1:]", "module.weight[:, :, :1]",
             PIPELINES),
    Mutation("a VAE of videos keeps what goes into its layers", QWEN_LATENTS,
             "            self._feat_map = self._enc_feat_map = None\n", "",
             f"{VAES}::test_nothing_is_kept_for_frames_to_come"),
    Mutation("kernels of Qwen-Image-2.1 lose their axis of time", "trainers/artifacts/wan_layout.py",
             "(*shape[:2], 1, *shape[2:]) if timeless else shape", "shape",
             f"{VAES}::test_every_tensor_of_full_size_has_a_place_of_its_own_and_is_recognized"),
    Mutation("upsamplers are counted as blocks", "trainers/artifacts/wan_layout.py",
             "int(match[1]) * (resnets + 1)", "int(match[1]) * resnets",
             f"{VAES}::test_every_tensor_of_full_size_has_a_place_of_its_own_and_is_recognized"),
    Mutation("Wan 2.2's VAE counts as Qwen-Image-2.1's", "trainers/families/component_recognition.py",
             "if frames in ([], [1]) and channels == ([4], [4])", "if frames",
             f"{VAES}::test_relatives_are_other_autoencoders"),
    Mutation("another class of VAE is taken for the family's", LATENTS,
             "if found != self.vae_class and", "if False and",
             f"{VAES}::test_statistics_for_each_channel_and_the_right_class_are_required"),
    Mutation("FLUX.2's narrower decoder is not read", FLUX2_LATENTS,
             "first.shape[0] != widths[-1]", "False", f"{VAES}::test_variants_of_flux2s_file_are_read"),
]
