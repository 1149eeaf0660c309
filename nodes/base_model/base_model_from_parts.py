"""A base whose denoiser, text encoders and VAE lie in files of their own."""
import logging

from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.families.parts_finding import Candidate, find_parts
from ...trainers.families.recognition import fingerprint, recognize
from .. import host, sockets
from ..widgets import Schema
from .base_model import describe, notes_of, of_variant, prediction_input, variant_input

AUTO, NONE = "auto (find what fits)", "none"


def _offered(folder: host.PartFolder) -> list[Candidate]:
    """Files that can be read; one that cannot keeps none of the others out."""
    found = []
    for name, path in host.part_files(folder).items():
        try:
            found.append(Candidate.of(name, path))
        except UserError as reason:
            logging.debug(f"FineTune passes over {name}: {reason}")
    return found


def _text_encoder(number: int):
    return io.Combo.Input(
        f"text_encoder_{number}" if number > 1 else "text_encoder",
        options=[AUTO, NONE, *host.part_choices("text_encoders")], default=AUTO,
        tooltip="A file of models/text_encoders or models/clip, in any order. auto takes one that the model still lacks; "
                "none leaves it out, which SD3 allows: without T5 it needs 10 GB less.")


class BaseModelFromParts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneBaseModelFromParts",
            display_name="Base Model from Parts",
            category="FineTune/base model",
            search_aliases=("flux dev", "sd3.5", "diffusion model", "unet loader", "dual clip loader", "gguf"),
            description="A model to train on whose denoiser, text encoders and VAE lie in files of their own, as those of "
                        "Flux and SD3 usually do. Choose the denoiser; the parts that belong to it are found in their "
                        "folders, and the node says which it took. No weights are loaded here.",
            inputs=[
                io.Combo.Input("denoiser", options=host.part_choices("diffusion_models"),
                               tooltip="A file of models/diffusion_models or models/unet. It says which family the model is "
                                       "of, and so which other parts it needs."),
                *(_text_encoder(number) for number in (1, 2, 3)),
                io.Combo.Input("vae", options=[AUTO, *host.part_choices("vae")], default=AUTO,
                               tooltip="A file of models/vae. auto takes the one with the usual name (ae.safetensors for "
                                       "Flux), or the only one that fits."),
                prediction_input(),
                variant_input(),
            ],
            outputs=[
                sockets.Base.Output(display_name="base", tooltip="For the Train nodes."),
                io.String.Output(display_name="description", tooltip="The family, the prediction type and the files."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        """What is found by itself depends on all files of a folder."""
        files = [host.part_path("diffusion_models", inputs["denoiser"]), *host.part_files("text_encoders").values(),
                 *host.part_files("vae").values()]
        return fingerprint(files, files[0].parent)

    @classmethod
    def execute(cls, denoiser, text_encoder, text_encoder_2, text_encoder_3, vae, prediction, variant="auto"):
        encoders = [text_encoder, text_encoder_2, text_encoder_3]
        own = Candidate.of(denoiser, host.part_path("diffusion_models", denoiser))
        chosen = [Candidate.of(name, host.part_path("text_encoders", name)) for name in encoders if name not in (AUTO, NONE)]
        offered = _offered("text_encoders") if AUTO in encoders else []
        if vae == AUTO:
            offered += _offered("vae")
        else:
            chosen.append(Candidate.of(vae, host.part_path("vae", vae)))
        parts = find_parts(own, chosen, offered, encoders.count(AUTO))
        files = [*chosen, *(part.file for part in parts if part.file)]
        others = list(dict.fromkeys(str(file.path) for file in files))
        base = of_variant(recognize(str(own.path), denoiser, prediction, others=others), variant)
        description = "\n".join([describe(base), *(part.words for part in parts)])
        host.NodeProgress(cls.hidden.unique_id).show(description + notes_of(base))
        return io.NodeOutput(base, description, ui={"text": [description + notes_of(base)]})
