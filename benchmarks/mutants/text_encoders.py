"""What language models and T5 say of captions."""
from .mutation import Mutation

LANGUAGE, TAPS, T5 = (f"trainers/families/text/{name}.py" for name in ("language_model", "taps", "t5"))
KINDS = "trainers/families/language_model_recognition.py"
HOST = "host/test_language_models.py::test_captions_are_encoded_as_the_host_does"
READING, RECOGNIZING = "unit/test_language_models.py", "unit/test_component_recognition.py::test_components"

MUTATIONS = [
    Mutation("states are counted from the last that is loaded", LANGUAGE,
             "said[len(said) - 1 + state - last]", "said[state]", f"{READING}::test_states_count_from_the_end_of_the_file"),
    Mutation("the final norm stays where it is not read", LANGUAGE, "if not self.tap.normed:", "if False:",
             f"{READING}::test_layers_behind_the_last_state_may_be_missing"),
    Mutation("a config's angles of places are not read", LANGUAGE, 'places = (config.get("rope_parameters"),', "places = (",
             f"{READING}::test_of_models_that_see_only_what_reads_is_loaded"),
    Mutation("all layers are loaded", LANGUAGE, "last, there = self._layers(entries)",
             "last = there = self._layers(entries)[1]",
             f"{READING}::test_layers_behind_the_last_state_may_be_missing"),
    Mutation("Z-Image has thought nothing", TAPS, "Z_IMAGE = Tap(states=(-2,), before=_USER, after=_ASSISTANT)",
             'Z_IMAGE = Tap(states=(-2,), before=_USER, after=f"{_ASSISTANT}<think>")', HOST),
    Mutation("Qwen-Image's system turn reaches the denoiser", TAPS,
             "QWEN_IMAGE = Tap(states=(-1,), normed=True, before=_DESCRIBE + _USER, dropped=_DESCRIBE + _USER,",
             "QWEN_IMAGE = Tap(states=(-1,), normed=True, before=_DESCRIBE + _USER, dropped=_DESCRIBE,", HOST),
    Mutation("padding of FLUX 3 has places of its own", TAPS, "multiple=80, pad_position=1)", "multiple=80)",
             "unit/test_first_losses_flow.py::test_losses_equal_plain_diffusers"),
    Mutation("captions see padding in T5", T5, "attention_mask=seen)", "attention_mask=None)", HOST),
    Mutation("Gemma counts as Qwen3", KINDS, "(pre_feedforward_layernorm", "(pre_feedforward_norm", RECOGNIZING),
    Mutation("the width of packed weights is that of the model", KINDS,
             'f"{layers}layers.0.post_attention_layernorm.weight", f', 'f"{layers}layers.0.other.weight", f', RECOGNIZING),
]
