"""Extraction gives back what was planted, keeps what it says it keeps, and refuses pairs that do not belong together."""
import pytest
import tiny
import torch
from finetune.trainers.artifacts.lora import LoraWeight, save_lora
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.lora_names import layers
from finetune.trainers.decomposition import decompose, rank_by_energy, rank_by_knee, rank_by_ratio
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.extraction import extract
from finetune.trainers.merging import change_of
from finetune.trainers.spec import FolderSpec
from finetune.trainers.spec.file_tasks import ExtractionSpec
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def files(tiny_bases, tmp_path_factory):
    """family → tiny single file."""
    folder = tmp_path_factory.mktemp("single")
    return {family: tiny.make_single_file(family, base.path, folder / f"{family}.safetensors")
            for family, base in tiny_bases.items()}


def asked(tuned, base, **fields) -> ExtractionSpec:
    return ExtractionSpec(name="lora", tuned=str(tuned), base=str(base), folders=FolderSpec(runs="", caches=""), **fields)


def plant(path, target, rank, size=0.01, noise=0.0):
    """A tuned model: the base with a known update of every layer. Returns key → update."""
    weights, draw, updates = load_file(path), torch.Generator().manual_seed(5), {}
    for layer in layers({name: tuple(tensor.shape) for name, tensor in weights.items()}):
        part = weights[layer.tensor].chunk(layer.parts)[layer.part]
        left = torch.randn((part.shape[0], rank), generator=draw)
        update = size * left @ torch.randn((rank, part[0].numel()), generator=draw)
        update += noise * torch.randn(update.shape, generator=draw)
        updates[layer.key] = update.reshape(part.shape)
        part += updates[layer.key]
    save_file(weights, target)
    return updates


def extracted(files, tmp_path, family="sd1", planted=2, noise=0.0, **fields):
    updates = plant(files[family], tmp_path / "tuned.safetensors", planted, noise=noise)
    spec = asked(tmp_path / "tuned.safetensors", files[family], **{"file_precision": "fp32", **fields})
    return extract(spec, tmp_path / "lora.safetensors"), updates


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_planted_update_comes_back_and_the_energy_rule_finds_its_rank(family, files, tmp_path):
    report, updates = extracted(files, tmp_path, family, planted=3, rule="energy", threshold=0.9999)
    assert {row["rank"] for row in report["rows"]} == {3}
    found = {key: change_of(layer.low_rank()) for key, layer in read_lora(tmp_path / "lora.safetensors").layers.items()}
    assert found.keys() == updates.keys()
    for key, update in updates.items():
        assert (found[key] - update).norm() <= 1e-4 * update.norm(), key


def test_what_is_kept_is_what_the_file_keeps(files, tmp_path):
    report, updates = extracted(files, tmp_path, noise=0.02, rank=2)
    file = read_lora(tmp_path / "lora.safetensors")
    for row in report["rows"]:
        change, update = change_of(file.layers[row["key"]].low_rank()), updates[row["key"]]
        assert 1 - (change - update).square().sum() / update.square().sum() == pytest.approx(row["kept"]["fp32"], abs=1e-4)
        assert row["kept"]["bf16"] <= row["kept"]["fp16"] + 1e-6 <= row["kept"]["fp32"] + 2e-6
    assert 0 < report["kept"]["fp32"] < 1


@pytest.mark.parametrize("shape", [(900, 1000), (1000, 2100), (2000, 800), (40, 30)])
def test_sketched_factors_are_nearly_the_best(shape):
    draw = torch.Generator().manual_seed(0)
    low = torch.randn((shape[0], 12), generator=draw) @ torch.randn((12, shape[1]), generator=draw)
    matrix = 0.05 * low + 0.1 * torch.randn(shape, generator=draw)
    factors = decompose(matrix, 16)
    best = torch.linalg.svdvals(matrix.double())[:len(factors.values)]
    residual = (matrix - factors.left * factors.values @ factors.right).norm()
    optimum = (matrix.double().square().sum() - best.square().sum()).sqrt()
    assert residual <= 1.005 * optimum
    assert factors.kept == pytest.approx(float(1 - residual**2 / matrix.square().sum()), abs=1e-4)


def test_rank_rules():
    values = torch.tensor([10.0, 9, 8, 0.5, 0.4, 0.3, 0.2, 0.1])
    matrix = torch.diag(values)
    factors = decompose(matrix, 8)
    energy = values.square().cumsum(0) / values.square().sum()
    assert rank_by_energy(factors, float(energy[2]) - 1e-4) == 3 == rank_by_knee(factors)
    assert rank_by_energy(factors, float(energy[2]) + 1e-4) == 4
    assert rank_by_ratio(factors, 10 / 7.9) == 3 and rank_by_ratio(factors, 21) == 4


def test_identical_files_are_refused_and_leave_nothing(files, tmp_path):
    spec = asked(files["sd1"], files["sd1"])
    with pytest.raises(UserError, match="do not differ"):
        extract(spec, tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())


def test_pairs_that_do_not_belong_together(files, tmp_path):
    lora = tmp_path / "lora.safetensors"
    with pytest.raises(UserError, match="different model families"):
        extract(asked(files["sdxl"], files["sd1"]), lora)
    weight = LoraWeight("lora_unet_x", torch.ones(1, 2), torch.ones(2, 1), 1.0)
    save_lora(tmp_path / "other.safetensors", [weight], "fp32", {})
    with pytest.raises(UserError, match="is a LoRA, not a model"):
        extract(asked(tmp_path / "other.safetensors", files["sd1"]), lora)
    weights = load_file(files["sd1"])
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({**weights, name: torch.zeros(32, 99)}, tmp_path / "wider.safetensors")
    with pytest.raises(UserError, match="differ in the shape"):
        extract(asked(tmp_path / "wider.safetensors", files["sd1"]), lora)
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="values that are not numbers"):
        extract(asked(tmp_path / "broken.safetensors", files["sd1"]), lora)
    assert not lora.exists()


def test_cancel_leaves_no_file(files, tmp_path):
    plant(files["sd1"], tmp_path / "tuned.safetensors", 2)
    seen = []
    with pytest.raises(Cancelled):
        extract(asked(tmp_path / "tuned.safetensors", files["sd1"]),
                tmp_path / "lora.safetensors", lambda event, **fields: seen.append(fields["done"]), lambda: len(seen) >= 5)
    assert len(seen) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_eight_bit_tuned_weights_are_scaled_before_they_are_compared(files, tmp_path):
    """A tuned file in fp8 with scales, as ComfyUI's scaled checkpoints: the base's own weights give a small change only."""
    weights = load_file(files["sd1"])
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    scale = weights[name].abs().max() / 448
    tuned = {**weights, name: (weights[name] / scale).to(torch.float8_e4m3fn),
             name.replace(".weight", ".scale_weight"): scale}
    save_file(tuned, tmp_path / "tuned.safetensors")
    spec = asked(tmp_path / "tuned.safetensors", files["sd1"])
    report = extract(spec, tmp_path / "lora.safetensors")
    assert [row["key"] for row in report["rows"]] == ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"]
    assert report["change_norm"] ** 2 < 1e-2 * float(weights[name].square().sum())
