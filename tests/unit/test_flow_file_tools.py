"""File tools on flow models: extraction at full width and out of eight bits, folders under the names of one file."""
import pytest
import torch
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.unet_state_dict import weights_of
from finetune.trainers.spec import FolderSpec
from finetune.trainers.spec.file_tasks import ExtractionSpec, OnnxSpec
from finetune.trainers.tools.extraction import extract
from finetune.trainers.tools.onnx_export import export
from safetensors.torch import load_file, save_file
from support import tiny_flow

NOWHERE = FolderSpec(runs="", caches="")
MARK = "double_blocks.0.img_attn.norm.key_norm.scale"


def test_a_change_of_rank_8_comes_back_out_of_a_double_block_of_full_size(tmp_path):
    """As wide as FLUX.1's, once beside a base in bf16 and once beside one in eight bits with a scale."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"double_blocks.0.img_attn.qkv": (9216, 3072), "double_blocks.0.txt_attn.proj": (3072, 3072)}
    base, tuned, changes = {MARK: torch.ones(128)}, {MARK: torch.ones(128)}, {}
    for name, (rows, columns) in sizes.items():
        weight = 0.02 * torch.randn(rows, columns, generator=draw)
        if "txt" in name:
            stored = (weight / 1e-3).to(torch.float8_e4m3fn)
            base |= {f"{name}.weight": stored, f"{name}.scale_weight": torch.tensor(1e-3)}
            weight = stored.float() * 1e-3
        else:
            stored = base[f"{name}.weight"] = weight.bfloat16()
            weight = stored.float()
        changes[name] = 0.01 * torch.randn(rows, 8, generator=draw) @ torch.randn(8, columns, generator=draw)
        tuned[f"{name}.weight"] = weight + changes[name]
    base["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    report = extract(ExtractionSpec(
        name="lora", tuned=str(tmp_path / "tuned.safetensors"), base=str(tmp_path / "base.safetensors"), folders=NOWHERE,
        rule="energy", threshold=0.9999, rank=32, clamp=1.0, file_precision="fp32"), tmp_path / "lora.safetensors")
    assert (report.family, [row.rank for row in report.rows], {row.block for row in report.rows}) == (
        "flux", [8, 8], {"DOUBLE00"})
    file = read_lora(tmp_path / "lora.safetensors")
    assert file.metadata["ss_base_model_version"] == "flux1"
    for name, change in changes.items():
        found = file.layers[f"lora_unet_{name.replace('.', '_')}"].change()
        assert (found - change).norm() < 1e-3 * change.norm()


@pytest.fixture(scope="module", params=tiny_flow.FAMILIES)
def model(request, tmp_path_factory):
    """(a tiny diffusers folder, the same model in one file)"""
    place = tmp_path_factory.mktemp(request.param)
    folder = tiny_flow.make_folder(request.param, place / "folder")
    return folder, tiny_flow.make_single_file(request.param, folder, place / "one.safetensors")


def test_a_folder_is_read_under_the_names_of_one_file(model):
    folder, one = model
    found, meant = weights_of(folder), load_file(one)
    meant = {name: tensor for name, tensor in meant.items()
             if not name.startswith(("vae.", "first_stage_model.")) and not name.endswith("position_ids")}
    assert set(found) == meant.keys()
    assert all(torch.equal(found.weight(name), tensor.float()) for name, tensor in meant.items())


def test_onnx_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"'(folder|one)' is a .* model, and only UNets"):
        export(OnnxSpec(name="made", base=str(model[0]), folders=NOWHERE), tmp_path, silent, lambda: False)
