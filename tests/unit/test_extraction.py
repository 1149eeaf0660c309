"""Extraction gives back what was planted, keeps what it says it keeps, and refuses pairs that do not belong together."""
import pytest
import torch
from finetune.trainers.artifacts.adapters.lora import LoraWeight
from finetune.trainers.artifacts.layer_names import layers_of_checkpoint as layers
from finetune.trainers.artifacts.lora import save_lora
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.spec import FolderSpec
from finetune.trainers.spec.file_tasks import ExtractionSpec
from finetune.trainers.tools.decomposition import decompose, rank_by_energy, rank_by_knee, rank_by_ratio
from finetune.trainers.tools.extraction import extract, split
from finetune.trainers.tools.merging import change_of
from safetensors.torch import load_file, save_file
from support import tiny
from support.tiny_models import MadeWhenAsked, make_single_file


@pytest.fixture(scope="module")
def files(tiny_bases, tmp_path_factory):
    """family → tiny single file."""
    folder = tmp_path_factory.mktemp("single")
    return MadeWhenAsked(lambda family: make_single_file(family, tiny_bases[family].path, folder / f"{family}.safetensors"))


def asked(tuned, base, **fields) -> ExtractionSpec:
    return ExtractionSpec(name="lora", tuned=str(tuned), base=str(base), folders=FolderSpec(runs="", caches=""), **fields)


def plant(path, target, rank, size=0.01, noise=0.0):
    """A tuned model: the base with a known update of every layer. Returns key → update."""
    weights, generator, updates = load_file(path), torch.Generator().manual_seed(5), {}
    for layer in layers({name: tuple(tensor.shape) for name, tensor in weights.items()}):
        if layer.transposed:  # SDXL's projection is left out
            continue
        part = weights[layer.tensor].chunk(layer.parts)[layer.part]
        left = torch.randn((part.shape[0], rank), generator=generator)
        update = size * left @ torch.randn((rank, part[0].numel()), generator=generator)
        update += noise * torch.randn(update.shape, generator=generator)
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
    assert {row.rank for row in report.rows} == {3}
    found = {key: change_of(layer.low_rank()) for key, layer in read_lora(tmp_path / "lora.safetensors").layers.items()}
    assert found.keys() == updates.keys()
    for key, update in updates.items():
        assert (found[key] - update).norm() <= 1e-4 * update.norm(), key


def test_what_is_kept_is_what_the_file_keeps(files, tmp_path):
    report, updates = extracted(files, tmp_path, noise=0.02, rank=2)
    file = read_lora(tmp_path / "lora.safetensors")
    for row in report.rows:
        change, update = change_of(file.layers[row.key].low_rank()), updates[row.key]
        assert 1 - (change - update).square().sum() / update.square().sum() == pytest.approx(row.kept["fp32"], abs=1e-4)
        assert row.kept["bf16"] <= row.kept["fp16"] + 1e-6 <= row.kept["fp32"] + 2e-6
    assert 0 < report.kept["fp32"] < 1


def test_convolutions_may_have_another_rank(files, tmp_path):
    report, updates = extracted(files, tmp_path, noise=0.02, rank=5, convolution_rank=2)
    ranks = {row.key: row.rank for row in report.rows}
    assert ranks == {key: 2 if update.ndim == 4 and update.shape[-1] > 1 else 5 for key, update in updates.items()}
    assert set(ranks.values()) == {2, 5}


def test_clamping_cuts_both_factors_at_the_quantile_of_their_sizes():
    factors = decompose(torch.randn((40, 30), generator=torch.Generator().manual_seed(0)), 8)
    for clamped, plain in zip(split(factors, (40, 30), 0.9), split(factors, (40, 30), 1.0), strict=True):
        limit = plain.abs().flatten().sort().values[int(0.9 * plain.numel())]
        torch.testing.assert_close(clamped, plain.clamp(-limit, limit), rtol=0, atol=0)
        assert (clamped != plain).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_what_rounding_takes_is_told_in_the_precision_of_the_file(files, tmp_path):
    report, updates = extracted(files, tmp_path, rank=4, file_precision="bf16")
    file = read_lora(tmp_path / "lora.safetensors")
    lost = sum((change_of(file.layers[key].low_rank()) - update).double().square().sum() for key, update in updates.items())
    lost = lost / sum(update.double().square().sum() for update in updates.values())
    assert 1 - report.kept["bf16"] == pytest.approx(float(lost), rel=0.2) and lost > 1e-6


@pytest.mark.parametrize("shape", [(900, 1000), (1000, 2100), (2000, 800), (40, 30)])
def test_sketched_factors_are_nearly_the_best(shape):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn((shape[0], 12), generator=generator) @ torch.randn((12, shape[1]), generator=generator)
    matrix = 0.05 * low + 0.1 * torch.randn(shape, generator=generator)
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
    name = "model.diffusion_model.out.2.bias"
    plant(files["sd1"], tmp_path / "bias.safetensors", 1)
    save_file({**load_file(tmp_path / "bias.safetensors"), name: torch.full_like(weights[name], float("inf"))},
              tmp_path / "bias.safetensors")
    with pytest.raises(UserError, match="out.2.bias holds values that are not numbers in 'bias.safetensors'"):
        extract(asked(tmp_path / "bias.safetensors", files["sd1"]), lora)
    assert not lora.exists()


def test_cancel_leaves_no_file(files, tmp_path):
    plant(files["sd1"], tmp_path / "tuned.safetensors", 2)
    seen = []
    with pytest.raises(Cancelled):
        extract(asked(tmp_path / "tuned.safetensors", files["sd1"]),
                tmp_path / "lora.safetensors", lambda event: seen.append(event.done), lambda: len(seen) >= 5)
    assert len(seen) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_eight_bit_tuned_weights_are_scaled_before_they_are_compared(files, tmp_path):
    """A tuned file in fp8 with scales, as ComfyUI's scaled checkpoints: what was trained is there, the base's own weights
    are rounded and count as unchanged."""
    weights = load_file(files["sd1"])
    names = [f"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_{part}.weight" for part in "kq"]
    change, tuned = torch.randn(weights[names[0]].shape, generator=torch.Generator().manual_seed(3)), dict(weights)
    for name, more in zip(names, (0.1 * change, 0)):
        scale = (weights[name] + more).abs().amax(dim=1, keepdim=True) / 448
        tuned |= {name: ((weights[name] + more) / scale).to(torch.float8_e4m3fn),
                  name.replace(".weight", ".scale_weight"): scale}
    save_file(tuned, tmp_path / "tuned.safetensors")
    report = extract(asked(tmp_path / "tuned.safetensors", files["sd1"]), tmp_path / "lora.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_"
    assert [row.key for row in report.rows] == [key + "k"]
    assert report.change_norm == pytest.approx(0.1 * float(change.norm()), rel=0.05)
    assert any(f"1 layers, for example {key}q, differ by no more than rounding to scaled fp8" in note
               for note in report.notes)


FP16, BF16, E4M3, E5M2 = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
ROUNDED = {
    "bf16 in fp16": ((FP16,), (FP16, BF16, FP16), "bf16"), "bf16 in fp32": ((), (BF16,), "bf16"),
    "fp16 in fp32": ((), (FP16,), "fp16"), "e4m3 in fp16": ((FP16,), (FP16, E4M3, FP16), "fp8 (e4m3)"),
    "e5m2 in bf16": ((BF16,), (BF16, E5M2, BF16), "fp8 (e5m2)"),
    "both rounded from fp32": ((FP16,), (BF16, FP16), "bf16"), "both ways": ((FP16,), (FP16, BF16), "bf16"),
    "the base is the rounded one": ((BF16, FP16), (FP16,), "bf16"), "fp16, then bf16, in fp32": ((), (FP16, BF16), "bf16"),
}


@pytest.mark.parametrize("base_types, tuned_types, name", ROUNDED.values(), ids=ROUNDED)
def test_rounding_alone_is_no_change(base_types, tuned_types, name, files, tmp_path):
    """Text encoder and VAE went through another precision, one layer of the UNet was trained: that layer is extracted."""
    def through(tensor, types):
        for dtype in types:
            tensor = tensor.to(dtype)
        return tensor.to(types[-1] if types and types[-1].itemsize > 1 else torch.float32)
    weights, key = load_file(files["sd1"]), "attn1.to_q.weight"
    change = {name: 0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) if name.endswith(key) else 0
              for name, tensor in weights.items()}
    for file, types, strength in (("base", base_types, 0), ("tuned", tuned_types, 1)):
        save_file({name: through(tensor + strength * change[name], types) for name, tensor in weights.items()},
                  tmp_path / f"{file}.safetensors")
    report = extract(asked(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"), tmp_path / "lora.safetensors")
    assert all(row.key.endswith("attn1_to_q") for row in report.rows) and report.rows
    assert report.left_out_energy == 0
    if len({(types or (torch.float32,))[-1] for types in (base_types, tuned_types)}) == 1:
        assert any(f"differ by no more than rounding to {name}" in note for note in report.notes)


@pytest.mark.parametrize("trained", [
    lambda tensor, generator: tensor.bfloat16() + (1e-3 * torch.randn(tensor.shape, generator=generator)).bfloat16(),
    lambda tensor, generator: (  # single steps of every tenth value
        tensor.bfloat16().view(torch.int16) + (torch.rand(tensor.shape, generator=generator) < 0.1).short()
    ).view(torch.bfloat16),
])
def test_layers_trained_and_saved_in_bf16_are_extracted(trained, files, tmp_path):
    """Steps of full-bf16 training move most values by nothing and some by whole steps of bf16."""
    weights, generator = load_file(files["sd1"]), torch.Generator().manual_seed(2)
    base = {name: tensor.half() for name, tensor in weights.items()}
    tuned = {name: trained(tensor, generator).half() if tensor.ndim == 2 else tensor for name, tensor in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    report = extract(asked(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"), tmp_path / "lora.safetensors")
    linear = [layer for layer in layers({name: tuple(tensor.shape) for name, tensor in weights.items()})
              if weights[layer.tensor].ndim == 2]
    assert len(report.rows) == len(linear) and not any("rounding" in note for note in report.notes)


@pytest.mark.parametrize("tuned, base, said", [
    ({"v_pred"}, set(), "predicts v, and base.safetensors predicts noise"), ({"edm_vpred.sigma_max"}, set(), "predicts EDM"),
    (set(), {"v_pred"}, "predicts noise (epsilon), and base.safetensors predicts v"), ({"v_pred"}, {"v_pred"}, "")])
def test_models_that_predict_different_things_are_noted(tuned, base, said, files, tmp_path):
    plant(files["sdxl"], tmp_path / "planted.safetensors", 1)
    for name, source, marks in (("tuned", tmp_path / "planted.safetensors", tuned), ("base", files["sdxl"], base)):
        save_file({**load_file(source), **{mark: torch.zeros(1) for mark in marks}}, tmp_path / f"{name}.safetensors")
    report = extract(asked(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"), tmp_path / "lora.safetensors")
    notes = " ".join(report.notes)
    assert said in notes if said else "predicts" not in notes


@pytest.mark.parametrize("rank", [1, 8])
def test_a_matrix_of_a_lower_rank_than_asked_for_comes_back(rank):
    """The sketch's further columns are rounding, and must not speak of anything twice."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn((1536, rank), generator=draw) @ torch.randn((rank, 1536), generator=draw)
    factors = decompose(matrix, 32)
    made = (factors.left * factors.values) @ factors.right
    assert (made - matrix).norm() < 1e-4 * matrix.norm()
    assert factors.kept == pytest.approx(1, abs=1e-4)
