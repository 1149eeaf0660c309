"""The objective node in a real ComfyUI: what cannot work is refused before anything starts, the rest reaches the run."""
import json
import shutil
from pathlib import Path

import pytest
from host_server import NodeFailed
from PIL import Image
from support.graphs import training

IMAGES = Path(__file__).resolve().parents[2] / "example_datasets" / "openmoji"


def with_objective(name: str, **controls) -> dict:
    prompt = training(name=name)
    prompt["objective"] = {"class_type": "FineTuneObjective", "inputs": {
        "min_snr_gamma": 5.0, "noise_offset": 0.0, "flow_shift": 0.0, **controls}}
    prompt["train"]["inputs"]["objective"] = ["objective", 0]
    return prompt


@pytest.mark.parametrize("controls, words", [
    ({"zero_terminal_snr": True, "min_snr_gamma": 0.0}, "Zero_terminal_snr needs a model that predicts v"),
    ({"masked_loss": True}, "Masked_loss is on, but no image of the dataset 'examples/openmoji' has a mask"),
    ({"debiased_estimation": True}, "two weightings of the same thing"),
    ({"minimum_timestep": 0.8, "maximum_timestep": 0.2}, "Minimum_timestep 0.8 must be below maximum_timestep 0.2"),
])
def test_what_cannot_work_is_refused(host, controls, words):
    with pytest.raises(NodeFailed) as problem:
        host.run(with_objective("refused objective", **controls))
    assert words in str(problem.value)
    assert not (host.output / "finetune" / "refused objective").exists()  # nothing was started


def test_masks_and_controls_reach_the_run(host):
    """Masks for all example images but one, and every control that fits the demo base. A changed mask is another run,
    though the folder's own files are as they were."""
    folder = host.input / "masked"
    shutil.copytree(IMAGES, folder)
    (folder / "masks").mkdir()
    for image in sorted(folder.glob("*.png"))[1:]:
        Image.open(image).convert("L").point(lambda gray: 255 * (gray < 250)).save(folder / "masks" / image.name)
    controls = dict(min_snr_gamma=0.0, noise_offset=0.05, multires_noise_iterations=6, input_perturbation=0.1,
                    latent_noise=0.02, loss="huber", debiased_estimation=True, minimum_timestep=0.1,
                    timestep_distribution="cosine", masked_loss=True, unmasked_weight=0.25)
    prompt = with_objective("masked", **controls)
    prompt["data"]["inputs"]["folder"] = "input/masked"
    outputs = host.run(prompt)
    assert "19 of 20 images have a mask file" in outputs["data"]["text"][0]
    assert "1 of 20 images has no mask, so that all of it counts" in outputs["train"]["text"][0]
    spec = json.loads((host.output / "finetune" / "masked" / "spec.json").read_text(encoding="utf-8"))
    fields = {"multires_noise_iterations": "multires_iterations", "latent_noise": "image_noise", "masked_loss": "masked",
              "debiased_estimation": "debiased", "timestep_distribution": "distribution"}
    assert spec["objective"].items() >= {fields.get(name, name): value for name, value in controls.items()}.items()
    mask = sorted((folder / "masks").iterdir())[0]
    Image.new("L", Image.open(mask).size, 128).save(mask)
    host.run(prompt)
    assert (host.output / "finetune" / "masked-2" / "report.json").exists()
