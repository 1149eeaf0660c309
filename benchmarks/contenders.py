"""Ways to make training steps on the same checkpoint, each a process that waits for its turns.

    python -m benchmarks.contenders NAME JOB

JOB is JSON: {"family", "depth", "checkpoint", "configs", "images", "folder", "latent", "rank", "steps"}. All use batches of
one image.
"""
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

from .measuring import Turns
from .pack import become_host, comfyui_folder
from .rival_models import MODELS

LEARNING_RATE = 1e-4


def ours(job: dict, turn: Callable[[], None], precision: str = "auto", checkpointing: bool = False):
    """A run as the worker process trains it: real images and captions, caches, events, the one loop."""
    from trainers import spec as specs
    from trainers.data.manifest import scan_folder
    from trainers.families.recognition import recognize
    from trainers.run_folder import open_run
    from trainers.training.run import train_run

    folder = Path(job["folder"])
    spec = specs.RunSpec(
        name="ours", base=recognize(job["checkpoint"], "random", configs=job["configs"]),
        dataset=scan_folder(job["images"], "noise"),
        method=specs.LoraSpec(rank=job["rank"], alpha=job["rank"]),
        optimizer=specs.OptimizerSpec(learning_rate=LEARNING_RATE),
        training=specs.TrainingSpec(steps=job["steps"], resolution=8 * job["latent"]),
        memory=specs.MemorySpec(precision=precision, gradient_checkpointing=checkpointing),
        checkpoints=specs.CheckpointSpec(every=0),
        folders=specs.FolderSpec(runs=str(folder / "runs"), caches=str(folder / "caches")),
    )

    def emit(event):
        if event.event == "step":
            turn()

    train_run(spec, open_run(spec), emit)


def plain(job: dict, turn: Callable[[], None]):
    """The loop of diffusers' own LoRA examples with latents and text states computed beforehand."""
    import torch
    import torch.nn.functional as functional
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    accelerator, rival = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no"), MODELS[job["family"]]
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    denoiser = rival.load(job, dtype).to(accelerator.device)
    rank = job["rank"]
    denoiser.add_adapter(LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(rival.targets)))
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    denoiser, optimizer, schedule = accelerator.prepare(denoiser, optimizer, get_scheduler("constant", optimizer))
    latents, text = rival.latents(job, accelerator.device, dtype), rival.text(accelerator.device, dtype)
    denoiser.train()
    for _ in range(job["steps"]):
        with accelerator.accumulate(denoiser):
            noisy, timesteps, target = rival.noised(latents)
            predicted = rival.predict(denoiser, noisy, timesteps, text)
            loss = functional.mse_loss(predicted.float(), target.float(), reduction="mean")
            accelerator.gather(loss.repeat(1)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        turn()


def floor(job: dict, turn: Callable[[], None]):
    """One forward pass of the frozen denoiser and one backward pass to its input: no adapters, no optimizer."""
    import torch
    import torch.nn.functional as functional

    on_gpu, rival = torch.cuda.is_available(), MODELS[job["family"]]
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    denoiser = rival.load(job, dtype).to(device)
    latents, text = rival.latents(job, device, dtype), rival.text(device, dtype)
    for _ in range(job["steps"]):
        start = latents.clone().requires_grad_()
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        functional.mse_loss(rival.predict(denoiser, start, timesteps, text), latents).backward()
        turn()


def native(job: dict, turn: Callable[[], None], dtype: str, checkpointing: bool):
    """ComfyUI's TrainLoraNode, loaded and called as its executor does. It adapts every weight of the model."""
    become_host(comfyui_folder())
    import comfy.sd
    import comfy.utils
    import torch
    from comfy_extras.nodes_train import TrainLoraNode

    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: turn())
    rival = MODELS[job["family"]]
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(job["checkpoint"], output_vae=False, output_clip=False)[0]
        latents, text = rival.latents(job, "cpu", torch.float32), rival.text("cpu", torch.float32)
        said = [[text["hidden"], {"pooled_output": text["pooled"]} if "pooled" in text else {}]]
        images = [{"samples": latents}, {"samples": latents}]  # with a single one, version 0.3.75 fails
        newer = dict(quantized_backward=[False], checkpoint_depth=[1], offloading=[False], bucket_mode=[False],
                     bypass_mode=[False])
        known = inspect.signature(TrainLoraNode.execute).parameters
        TrainLoraNode.PREPARE_CLASS_CLONE(None).execute(
            **{name: value for name, value in newer.items() if name in known},
            model=[model], latents=images, positive=[said], batch_size=[1],
            steps=[job["steps"]], grad_accumulation_steps=[1], learning_rate=[LEARNING_RATE], rank=[job["rank"]],
            optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=[dtype], lora_dtype=[dtype],
            algorithm=["LoRA"], gradient_checkpointing=[checkpointing], existing_lora=["[None]"],
        )


CONTENDERS = {
    "ours": ours,
    "ours bf16 checkpointed": lambda job, turn: ours(job, turn, "bf16", True),
    "diffusers and peft": plain,
    "floor": floor,
    "TrainLoraNode": lambda job, turn: native(job, turn, "bf16", True),
    "TrainLoraNode fp32": lambda job, turn: native(job, turn, "fp32", True),
    "TrainLoraNode fp32 not checkpointed": lambda job, turn: native(job, turn, "fp32", False),
}


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](json.loads(sys.argv[2]), Turns())
