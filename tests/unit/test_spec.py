"""A run spec refuses what cannot work, in sentences, and its identity follows what matters."""
import pytest
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.run_folder import open_run


@pytest.mark.parametrize("part, fields, words", [
    (specs.LoraSpec, {"rank": 0}, "rank is 0: it should be greater than or equal to 1"),
    (specs.LoraSpec, {"targets": "pattern"}, "target_pattern is empty"),
    (specs.LoraSpec, {"targets": "pattern", "pattern": "attn("}, "not a regular expression"),
    (specs.LoraSpec, {"alpha": float("nan")}, "alpha"),
    (specs.OptimizerSpec, {"learning_rate": 5.0}, "learning rate 5 is too high for adamw"),
    (specs.OptimizerSpec, {"learning_rate": 50.0}, "learning_rate is 50.0"),
    (specs.OptimizerSpec, {"learning_rate": -1e-4}, "learning_rate"),
    (specs.OptimizerSpec, {"betas": (0.9, 1.0)}, "both betas must be"),
    (specs.TrainingSpec, {"steps": 0}, "steps is 0"),
    (specs.TrainingSpec, {"resolution": 60}, "resolution is 60"),
    (specs.TrainingSpec, {"seed": -1}, "seed is -1"),
    (specs.ObjectiveSpec, {"noise_offset": "much"}, "noise_offset is 'much'"),
])
def test_bad_values_are_named(part, fields, words):
    with pytest.raises(UserError) as problem:
        specs.checked(part, **fields)
    assert words in str(problem.value)


@pytest.mark.parametrize("multiple, resolution, nearest", [(8, 100, 96), (16, 520, 512), (16, 504, 512), (64, 90, 64)])
def test_a_resolution_that_does_not_fit_the_family_is_said(multiple, resolution, nearest, tiny_bases, make_spec):
    base = tiny_bases["sd1"].model_copy(update={"multiple": multiple})
    with pytest.raises(ValueError, match=f"multiples of {multiple} pixels, and resolution is {resolution}; the nearest that "
                                         f"fits is {nearest}"):
        make_spec(base, training=specs.TrainingSpec(resolution=resolution))
    assert make_spec(base, training=specs.TrainingSpec(resolution=nearest)).training.resolution == nearest


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError) as problem:
        specs.checked(specs.TrainingSpec, steps=0, batch_size=0)
    assert "steps" in str(problem.value) and "batch_size" in str(problem.value)


@pytest.mark.parametrize("name", [
    "../evil", "a/b", "a\\b", "", ".hidden", "-rf", "con", "NUL", "ends with dot.", "ends with space ", "a\nb", "x" * 81,
    "C:drive", "tab\tname", "~root", "con.txt", "nul.tar.gz", "Aux .png", "com¹", "lpt3.safetensors", "\u0301accent",
    "a\u202eb", "a\u200bb", "a\x00b", "a\u2028b", "猫" * 67, "🐱🐱", "\ud800", " begins", "x" * 10_000,
])
def test_hostile_names(name, tiny_bases, make_spec):
    with pytest.raises(UserError, match="name") as problem:
        specs.checked(make_spec, base=tiny_bases["sd1"], name=name)
    assert len(str(problem.value)) < 300 and str(problem.value).isprintable()


@pytest.mark.parametrize("name", [
    "my_lora", "Katze im Gras 2", "имя", "猫", "v1.0+beta-3", "नमस्ते", "กี่", "console", "con2", "nullify.v1", "猫" * 66])
def test_names_of_all_scripts_fit_on_a_disk_with_all_that_is_put_behind_them(name, tiny_bases, make_spec, tmp_path):
    spec = make_spec(tiny_bases["sd1"], name=name)
    assert spec.name == name
    for ending in ("_step1000000-9999.safetensors", "-00001-of-00010.safetensors.index.json", "-9999"):
        (tmp_path / f"{name}{ending}").touch()


def test_a_name_has_one_form(tiny_bases, make_spec):
    assert make_spec(tiny_bases["sd1"], name="cafe\u0301").name == "caf\u00e9"


def test_identity_follows_settings_and_data_but_not_places(tiny_bases, make_spec, squares, tmp_path):
    spec = make_spec(tiny_bases["sd1"])
    moved = spec.model_copy(update={
        "device": "auto", "folders": specs.FolderSpec(runs="elsewhere", caches="elsewhere"),
        "base": spec.base.model_copy(update={"path": "elsewhere"}),
        "dataset": squares.model_copy(update={"images": tuple(
            image.model_copy(update={"path": "elsewhere"}) for image in squares.images)}),
    })
    assert moved.identity == spec.identity
    others = [
        make_spec(tiny_bases["sd2"]), make_spec(tiny_bases["sd1"], name="other"),
        make_spec(tiny_bases["sd1"], optimizer=specs.OptimizerSpec(learning_rate=2e-3)),
        spec.model_copy(update={"dataset": squares.model_copy(update={"images": squares.images[:2]})}),
    ]
    assert len({spec.identity, *(other.identity for other in others)}) == 5


def test_spec_survives_json(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"])
    run = open_run(spec)
    assert run.read_spec() == spec and run.read_spec().identity == spec.identity


def test_warm_up_longer_than_the_run(tiny_bases, make_spec):
    with pytest.raises(Exception, match="warm-up takes 10 steps but the run has only 6"):
        make_spec(tiny_bases["sd1"], schedule=specs.ScheduleSpec(warmup_steps=10))
