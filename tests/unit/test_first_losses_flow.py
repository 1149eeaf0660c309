"""The first losses of flow models equal those of a loop written with plain diffusers, transformers and peft."""
import pytest
from finetune.trainers import spec as specs
from support import tiny_flow
from support.plain_flow import PlainFlow
from support.running import losses_of

STEPS, BATCH, SEED, RATE, TEXT_RATE, RANK = 20, 2, 11, 1e-3, 3e-4, 2


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.mark.parametrize("family, text_rate", [
    *((family, 0.0) for family in tiny_flow.FAMILIES), *((family, TEXT_RATE) for family in tiny_flow.WITH_TEXT)])
@pytest.mark.parametrize("rank", [RANK, 0], ids=["lora", "full"])
def test_losses_equal_plain_diffusers(family, rank, text_rate, tiny_bases, squares, make_spec, tmp_path, caches):
    method = (specs.LoraSpec(rank=rank, alpha=rank, text_encoder_learning_rate=text_rate) if rank else
              specs.FullSpec(text_encoder_learning_rate=text_rate))
    losses, _ = losses_of(make_spec(
        tiny_bases[family], method=method, optimizer=specs.OptimizerSpec(learning_rate=RATE),
        training=specs.TrainingSpec(steps=STEPS, batch_size=BATCH, resolution=64, seed=SEED),
        folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(caches))))
    plain = PlainFlow(tiny_bases[family], squares, SEED, BATCH, RATE, rank, text_rate).losses(STEPS)
    assert losses == pytest.approx(plain, abs=1e-5)
    assert len(set(losses)) == STEPS
