"""Ways to make training steps on the same checkpoint, each a process that waits for its turns.

    python -m benchmarks.contenders NAME JOB

JOB is JSON: {"checkpoint", "images", "folder", "latent", "rank", "steps"}. All use batches of one image.
"""
import json
import sys
from collections.abc import Callable
from pathlib import Path

from .measuring import Turns
from .pack import become_host, comfyui_folder

LATENT_CHANNELS, TOKENS, TEXT_WIDTH = 4, 77, 768
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
        name="ours", base=recognize(job["checkpoint"], "random"), dataset=scan_folder(job["images"], "noise"),
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
    """The loop of diffusers' `train_text_to_image_lora.py` with latents and text states computed beforehand."""
    import torch
    import torch.nn.functional as functional
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    unet = load_unet(job, dtype).to(accelerator.device)
    rank = job["rank"]
    unet.add_adapter(LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"],
    ))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    noise_scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    unet, optimizer, schedule = accelerator.prepare(unet, optimizer, get_scheduler("constant", optimizer))
    latents, hidden = random_inputs(job, accelerator.device, dtype)
    unet.train()
    for _ in range(job["steps"]):
        with accelerator.accumulate(unet):
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            predicted = unet(noisy, timesteps, hidden, return_dict=False)[0]
            loss = functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(1)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        turn()


def floor(job: dict, turn: Callable[[], None]):
    """One forward pass of the frozen UNet and one backward pass to its input: no adapters, no optimizer."""
    import torch
    import torch.nn.functional as functional

    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    unet = load_unet(job, dtype).to(device)
    latents, hidden = random_inputs(job, device, dtype)
    for _ in range(job["steps"]):
        start = latents.clone().requires_grad_()
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        functional.mse_loss(unet(start, timesteps, hidden).sample, latents).backward()
        turn()


def load_unet(job: dict, dtype):
    """The frozen UNet of the checkpoint, loaded by diffusers."""
    from diffusers import UNet2DConditionModel

    from trainers.families.component_configs import CONFIGS

    unet = UNet2DConditionModel.from_single_file(
        job["checkpoint"], config=str(CONFIGS / "sd1"), subfolder="unet", torch_dtype=dtype, local_files_only=True
    )
    return unet.requires_grad_(False)


def random_inputs(job: dict, device, dtype):
    """Latents and text states of one image."""
    import torch

    latents = torch.randn(1, LATENT_CHANNELS, job["latent"], job["latent"]).to(device, dtype)
    return latents, torch.randn(1, TOKENS, TEXT_WIDTH).to(device, dtype)


def native(job: dict, turn: Callable[[], None], dtype: str, checkpointing: bool):
    """ComfyUI's TrainLoraNode, loaded and called as its executor does. It adapts every weight of the model."""
    become_host(comfyui_folder())
    import comfy.sd
    import comfy.utils
    import torch
    from comfy_extras.nodes_train import TrainLoraNode

    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: turn())
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(job["checkpoint"], output_vae=False, output_clip=False)[0]
        latents, hidden = random_inputs(job, "cpu", torch.float32)
        images = [{"samples": latents}, {"samples": latents}]  # with a single one, version 0.3.75 fails
        TrainLoraNode.PREPARE_CLASS_CLONE(None).execute(
            model=[model], latents=images, positive=[[[hidden, {}]]], batch_size=[1],
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
