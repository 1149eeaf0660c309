"""Which files go with a denoiser: the usual name first, full precision before fewer bits, and no guess between VAEs."""
from pathlib import Path

import pytest
from finetune.trainers import families
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_recognition import FoundComponent
from finetune.trainers.families.parts_finding import Candidate, family_of, find_parts

KINDS = {"clip_l": (768, "diffusers"), "clip_g": (1280, "diffusers"), "t5": (4096, "diffusers"), "vae": (16, "original")}


def file(name: str, kind: str, storage="fp16", **facts) -> Candidate:
    width, layout = KINDS.get(kind, (0, "original"))
    found = FoundComponent(kind, "", storage, **{"layout": layout, "width": width, **facts})
    return Candidate(name, Path("models") / name, (found,))


FLUX, SD3, SDXL = (file(f"{family}.safetensors", "denoiser", family=family) for family in ("flux", "sd3", "sdxl"))
CLIP_L, CLIP_G = file("clip_l.safetensors", "clip_l"), file("clip_g.safetensors", "clip_g")
AE, T5 = file("ae.safetensors", "vae"), file("t5xxl_fp16.safetensors", "t5")
SCALED = file("t5xxl_fp8_e4m3fn_scaled.safetensors", "t5", "scaled fp8")
EVERYTHING = [AE, CLIP_G, CLIP_L, SCALED, T5]


def names(parts) -> dict:
    return {part.want.component: part.file and part.file.name for part in parts}


def test_what_belongs_to_flux_is_found():
    parts = find_parts(FLUX, [], EVERYTHING, 3)
    assert names(parts) == {"vae": AE.name, "text_encoder": CLIP_L.name, "text_encoder_2": T5.name}
    assert [part.words for part in parts] == [
        "VAE with 16 latent channels: ae.safetensors (fp16), found", "CLIP-L text encoder: clip_l.safetensors (fp16), found",
        "T5 text encoder: t5xxl_fp16.safetensors (fp16), found"]


def test_what_is_chosen_stays():
    other = file("flux/my_vae.safetensors", "vae")
    parts = find_parts(FLUX, [SCALED, other], EVERYTHING, 2)
    assert names(parts) == {"vae": other.name, "text_encoder": CLIP_L.name, "text_encoder_2": SCALED.name}
    assert [part.chosen for part in parts] == [True, False, True]
    assert parts[0].words.endswith("my_vae.safetensors (fp16)")


def test_parts_in_the_file_of_the_denoiser_come_before_those_in_folders():
    whole = Candidate("all.safetensors", Path("all.safetensors"), FLUX.held + CLIP_L.held + AE.held)
    assert names(find_parts(whole, [], EVERYTHING, 3)) == {
        "vae": whole.name, "text_encoder": whole.name, "text_encoder_2": T5.name}


ANY_T5 = [file(f"{name}.safetensors", "t5", storage) for name, storage in (
    ("a", "nvfp4"), ("b", "fp8"), ("c", "int8"), ("d", "scaled fp8"), ("e", "bf16"), ("f", "fp32"), ("g", "F4"))]


@pytest.mark.parametrize("first, second", ["ef", "fd", "dc", "cb", "ba", "ag"])
def test_other_names_are_taken_by_precision(first, second):
    pair = [each for each in ANY_T5 if each.stem in (first, second)]
    for offered in (pair, pair[::-1]):
        assert find_parts(FLUX, [AE, CLIP_L], offered, 1)[2].file.stem == first
    assert find_parts(FLUX, [AE, CLIP_L], [*pair, SCALED], 1)[2].file is SCALED, "the usual name comes first"


def test_names_are_compared_without_folders_endings_and_capitals():
    for name in ("FLUX/AE.sft", "flux\\ae.safetensors"):
        offered = [file("one.safetensors", "vae"), file(name, "vae"), file("two.safetensors", "vae")]
        assert find_parts(FLUX, [CLIP_L, T5], offered, 0)[0].file.name == name


def test_between_vaes_that_look_alike_nobody_guesses():
    offered = [CLIP_L, T5, file("one.safetensors", "vae"), file("two.safetensors", "vae")]
    with pytest.raises(UserError, match="Several files in models/vae .*FLUX.1: one.safetensors, two.safetensors.*ae.safe"):
        find_parts(FLUX, [], offered, 3)
    assert find_parts(FLUX, [], offered[:3], 3)[0].file.name == "one.safetensors"
    assert find_parts(FLUX, [], [*offered, AE], 3)[0].file is AE
    with pytest.raises(UserError, match="'sd3.safetensors' lacks its VAE with 16 latent channels.*models/vae"):
        find_parts(SD3, [], EVERYTHING, 3)  # of the same shape, and Flux's
    four = file("sdxl_vae.safetensors", "vae", width=4)
    assert names(find_parts(SDXL, [], [*EVERYTHING, four], 3)) == {
        "text_encoder": CLIP_L.name, "text_encoder_2": CLIP_G.name, "vae": four.name}
    with pytest.raises(UserError, match="lacks its VAE"):
        find_parts(FLUX, [CLIP_L, T5], [file("diffusers.safetensors", "vae", layout="diffusers")], 0)


def test_sd3_goes_without_some_text_encoders():
    vae = file("sd3_vae.safetensors", "vae")
    assert names(find_parts(SD3, [CLIP_L], [*EVERYTHING, vae], 0)) == {
        "vae": vae.name, "text_encoder": CLIP_L.name, "text_encoder_2": None, "text_encoder_3": None}
    assert names(find_parts(SD3, [T5], [*EVERYTHING, vae], 1)) == {
        "vae": vae.name, "text_encoder": CLIP_L.name, "text_encoder_2": None, "text_encoder_3": T5.name}
    assert find_parts(SD3, [vae], [CLIP_L], 3)[3].words == "T5 text encoder: none"


@pytest.mark.parametrize("denoiser, chosen, offered, words", [
    (FLUX, [AE], [CLIP_L], r"lacks its T5 text encoder.*models/text_encoders .*t5xxl_fp16.safetensors"),
    (FLUX, [AE, T5], [CLIP_L], "lacks its CLIP-L text encoder"),
    (FLUX, [AE, CLIP_L, T5, SCALED], [], "'t5xxl_fp8_e4m3fn_scaled.safetensors' holds .* and another chosen file does too"),
    (CLIP_L, [], [], r"'clip_l.safetensors' holds a CLIP-L text encoder \(fp16\), and no denoiser"),
    (Candidate("x", Path("x"), ()), [], [], "holds no part of a model that is known here, and no denoiser"),
])
def test_what_is_missing_or_wrong_is_named(denoiser, chosen, offered, words):
    with pytest.raises(UserError, match=words):
        find_parts(denoiser, chosen, offered, 0 if T5 in chosen else 3)


QWENS = [file(f"{name}.safetensors", "qwen3", width=width) for name, width in (
    ("a_qwen_3_06b", 1024), ("b_qwen3_4b", 2560), ("c_qwen_3_8b", 4096))]


@pytest.mark.parametrize("read, expected", [(1024, 0), (2560, 1), (4096, 2)])
def test_a_language_model_is_as_wide_as_its_denoiser_reads(read, expected):
    denoiser = file("z.safetensors", "denoiser", family="z_image", width=read)
    assert find_parts(denoiser, [AE], QWENS, 1)[1].file == QWENS[expected]
    with pytest.raises(UserError, match="lacks its Qwen3.* text encoder"):
        find_parts(denoiser, [AE], [each for each in QWENS if each != QWENS[expected]], 1)


@pytest.mark.parametrize("family", families.NAMES)
def test_every_family_says_what_lies_beside_its_denoiser(family):
    assert family_of(file("x", "denoiser", family=family)).name == family
    wanted = families.get(family).separate_parts
    assert len({want.component for want in wanted}) == len(wanted) and all(want.usual for want in wanted)
    assert sum(want.is_vae for want in wanted) == 1


@pytest.mark.parametrize("read, encoder", [
    (7680, "qwen_3_4b"), (12288, "qwen_3_8b_fp8mixed"), (15360, "mistral_3_small_flux2_fp8")])
def test_what_a_denoiser_reads_tells_which_text_encoder_is_its_own(read, encoder):
    """FLUX.2 klein 4B and 9B, and dev."""
    denoiser = file("mine.safetensors", "denoiser", family="flux2", width=read)
    encoders = [file(f"{name}.safetensors", kind, "scaled fp8", width=width) for name, kind, width in (
        ("qwen_3_8b_fp8mixed", "qwen3", 4096), ("mistral_3_small_flux2_fp8", "mistral", 5120), ("qwen_3_4b", "qwen3", 2560))]
    vae = file("flux2-vae.safetensors", "flux2_vae", width=32)
    assert names(find_parts(denoiser, [], [*encoders, vae], 1)) == {
        "vae": vae.name, "text_encoder": f"{encoder}.safetensors"}
    other = next(each for each in encoders if each.stem != encoder)
    with pytest.raises(UserError, match="lacks its (Qwen3 [48]B|Mistral Small 3) text encoder"):
        find_parts(denoiser, [], [other, vae], 1)


def test_other_files_are_named(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="'sub/model.ckpt' is a .ckpt file.*Take the .safetensors"):
        Candidate.of("sub/model.ckpt", tmp_path / "model.ckpt")
