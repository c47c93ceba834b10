"""Tests of monai_ext.networks.sam against segment_anything itself, on tiny and official-size models."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from monai_ext.errors import UserError
from monai_ext.networks import sam as sam_module
from monai_ext.networks.sam import (
    PromptableSam,
    add_drop_path,
    build_compact,
    build_sam,
    fetch_checkpoint,
    load_weights,
)
from monai_ext.prompts.prompt import Prompt

SIZE, GRID = 96, 6
TINY_COMPACT = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}


def tiny_sam(seed: int = 0) -> Sam:
    """Segment Anything with a ViT of two blocks (one windowed, one global) for images of 96 pixels."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=SIZE,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=32,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(
        embed_dim=32, image_embedding_size=(GRID, GRID), input_image_size=(SIZE, SIZE), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32)
    model = Sam(encoder, prompts, decoder).eval()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def theirs() -> Sam:
    return tiny_sam()


@pytest.fixture
def ours() -> PromptableSam:
    same = tiny_sam()
    return PromptableSam(same.image_encoder, same.prompt_encoder, same.mask_decoder).eval()


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def points(*rows: tuple[float, float, int]) -> Prompt:
    return Prompt(torch.tensor([r[:2] for r in rows]).float().view(-1, 2), torch.tensor([r[2] for r in rows]))


def random_images(count: int, height: int = 72, width: int = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)).float()


PROMPTS = [
    points((10, 20, 1)),
    points((80, 5, 1), (3, 60, 0), (40.5, 30.25, 1)),
    points((50, 50, 1), (7, 7, 0)),
    points((90, 70, 1)),
]


# ---- equal to segment_anything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("size", [(72, SIZE), (SIZE, 50), (SIZE, SIZE)])
def test_masks_are_those_of_sam_predictor(theirs, ours, size, multimask) -> None:
    image = random_images(1, *size)
    predictor = SamPredictor(theirs)
    predictor.set_torch_image(image, size)
    embeddings = ours.encode(image)
    torch.testing.assert_close(embeddings.features, predictor.features, atol=1e-5, rtol=1e-5)
    for prompt in PROMPTS:
        full, quality, low = predictor.predict_torch(
            prompt.points[None], prompt.labels[None], multimask_output=multimask, return_logits=True
        )
        logits, iou = ours.decode(embeddings, [prompt], multimask=multimask)
        torch.testing.assert_close(logits, low, atol=1e-4, rtol=0)
        torch.testing.assert_close(iou, quality, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.to_image(logits, embeddings.size), full, atol=1e-4, rtol=0)


def test_boxes_and_mask_inputs_are_those_of_sam_predictor(theirs, ours) -> None:
    image, mask = random_images(1), torch.randn(1, 1, 4 * GRID, 4 * GRID)
    box = torch.tensor([5.0, 10.0, 60.0, 50.0])
    predictor = SamPredictor(theirs)
    predictor.set_torch_image(image, (72, SIZE))
    embeddings = ours.encode(image)
    pair = points((20, 20, 1), (80, 60, 0))
    nothing = Prompt(torch.zeros(0, 2), torch.zeros(0))
    for prompt, given in [
        (Prompt(nothing.points, nothing.labels, box), (None, None, box[None])),
        (Prompt(pair.points, pair.labels, box), (pair.points[None], pair.labels[None], box[None])),
        (pair, (pair.points[None], pair.labels[None], None)),
    ]:
        plain = ours.decode(embeddings, [prompt])[0]
        for previous in (None, mask):
            _, _, low = predictor.predict_torch(*given, mask_input=previous, multimask_output=False)
            logits, _ = ours.decode(embeddings, [prompt], mask_input=previous)
            torch.testing.assert_close(logits, low, atol=1e-4, rtol=0)
        assert (logits - plain).abs().max() > 1e-3, "the mask input changes nothing"


def test_to_image_is_their_postprocessing_up_to_the_original_size(theirs, ours) -> None:
    logits = torch.randn(2, 3, 4 * GRID, 4 * GRID)
    expected = theirs.postprocess_masks(logits, input_size=(72, 50), original_size=(72, 50))
    torch.testing.assert_close(ours.to_image(logits, (72, 50)), expected, atol=1e-6, rtol=0)


def test_image_is_normalised_before_it_is_padded(theirs, ours) -> None:
    image = random_images(1, 40, SIZE)
    torch.testing.assert_close(ours.preprocess(image), theirs.preprocess(image))
    assert bool((ours.preprocess(image)[..., 40:, :] == 0).all())


def test_grey_is_three_equal_channels(ours) -> None:
    grey = random_images(2)[:, :1]
    torch.testing.assert_close(ours.encode(grey).features, ours.encode(grey.repeat(1, 3, 1, 1)).features)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (1, 1, SIZE + 1, 8)])
def test_other_images_are_refused(ours, shape) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 1 or 3, H, W\] with H and W at most 96"):
        ours.encode(torch.zeros(shape))


# ---- several at once -------------------------------------------------------------------------------------------------


def test_several_images_at_once_equal_one_by_one(ours) -> None:
    images, mask = random_images(4), torch.randn(4, 1, 4 * GRID, 4 * GRID)
    embeddings = ours.encode(images)
    for previous in (None, mask):
        together, quality = ours.decode(embeddings, PROMPTS, mask_input=previous)
        for k, prompt in enumerate(PROMPTS):
            alone, score = ours.decode(
                ours.encode(images[k : k + 1]), [prompt], None if previous is None else previous[k : k + 1]
            )
            torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(quality[k : k + 1], score, atol=1e-5, rtol=1e-5)
    assert (together[0] - ours.decode(embeddings[1], PROMPTS[:1], mask[:1])[0][0]).abs().max() > 1e-4


def test_prompts_of_different_lengths_equal_one_by_one_and_not_padding(ours) -> None:
    embeddings = ours.encode(random_images(1))
    box = torch.tensor([5.0, 10.0, 60.0, 50.0])
    prompts = [*PROMPTS, points(), Prompt(PROMPTS[0].points, PROMPTS[0].labels, box)]
    together, _ = ours.decode(embeddings, prompts)
    for logits, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(logits, ours.decode(embeddings, [prompt])[0][0], atol=1e-5, rtol=1e-5)
    longest = max(len(p.points) for p in PROMPTS)
    padded = torch.stack([torch.cat([p.points, torch.zeros(longest - len(p.points), 2)]) for p in PROMPTS])
    labels = torch.stack([torch.cat([p.labels, -torch.ones(longest - len(p.labels)).long()]) for p in PROMPTS])
    naive, _ = ours.decode_batch(embeddings.features.expand(4, -1, -1, -1), padded, labels)
    difference = (naive - together[:4]).abs().amax(dim=(1, 2, 3))
    assert difference[1] < 1e-5, "the longest prompt needs no padding"
    assert bool((difference[[0, 2, 3]] > 1e-4).all()), "padding with -1 would do no harm"


def test_embeddings_and_prompts_must_fit(ours) -> None:
    with pytest.raises(ValueError, match="3 embeddings for 2 prompts"):
        ours.decode(ours.encode(random_images(3)), PROMPTS[:2])


@pytest.mark.parametrize("with_mask", [False, True])
def test_ready_tokens_decode_as_the_points_that_they_were_made_of(ours, with_mask) -> None:
    prompts = [points((20, 30, 1), (60, 50, 0)), points((70, 10, 1), (5, 60, 1))]
    embeddings = ours.encode(random_images(2))
    mask_input = torch.randn(2, 1, 4 * GRID, 4 * GRID) if with_mask else None
    tokens, _ = ours.prompt_encoder(
        points=(torch.stack([p.points for p in prompts]), torch.stack([p.labels for p in prompts])),
        boxes=None,
        masks=None,
    )
    for one, other in zip(
        ours.decode_tokens(embeddings, tokens, mask_input), ours.decode(embeddings, prompts, mask_input), strict=True
    ):
        torch.testing.assert_close(one, other)
    alone, _ = ours.decode_tokens(embeddings[0], tokens, mask_input, multimask=True)
    assert alone.shape == (2, 3, 4 * GRID, 4 * GRID)
    with pytest.raises(ValueError, match="2 embeddings for 1 sets of tokens"):
        ours.decode_tokens(embeddings, tokens[:1])


def test_no_prompt_is_exactly_one_not_a_point_token_and_the_no_mask_embedding(ours, monkeypatch) -> None:
    seen = {}
    decoder = ours.mask_decoder.forward

    def spy(**given):
        seen.update(sparse=given["sparse_prompt_embeddings"], dense=given["dense_prompt_embeddings"])
        return decoder(**given)

    monkeypatch.setattr(ours.mask_decoder, "forward", spy)
    embeddings = ours.encode(random_images(2))
    logits, _ = ours.decode(embeddings, [points(), points()])
    token = ours.prompt_encoder.not_a_point_embed.weight
    torch.testing.assert_close(seen["sparse"], token.expand(2, 1, -1))
    torch.testing.assert_close(
        seen["dense"], ours.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(2, -1, GRID, GRID)
    )
    torch.testing.assert_close(ours(random_images(2)), ours.to_image(logits, embeddings.size))


def test_geometry_of_the_grid(ours) -> None:
    assert (ours.image_size, ours.grid, ours.stride) == (96, 6, 16)
    compact = build_compact(**TINY_COMPACT)
    assert (compact.image_size, compact.grid, compact.stride) == (64, 8, 8)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_official_state_dict_loads_strictly(tmp_path, monkeypatch) -> None:
    two_of_twelve_blocks = partial(
        _build_sam, encoder_embed_dim=768, encoder_depth=2, encoder_num_heads=12, encoder_global_attn_indexes=[1]
    )
    monkeypatch.setitem(sam_model_registry, "vit_b", two_of_twelve_blocks)
    official = sam_model_registry["vit_b"](checkpoint=None)
    state = {name: value.half() for name, value in official.state_dict().items()}
    torch.save(state, tmp_path / "sam_vit_b.pth")
    del official
    loaded = build_sam("vit_b", tmp_path / "sam_vit_b.pth")
    assert loaded.state_dict().keys() == state.keys()
    assert (loaded.image_size, loaded.grid) == (1024, 64)
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    for name in ("image_encoder.blocks.1.attn.qkv.weight", "mask_decoder.mask_tokens.weight"):
        assert torch.equal(loaded.state_dict()[name], state[name].float())
    with pytest.raises(UserError, match=r"does not hold compact weights \(\d+ parameters differ"):
        build_sam("compact", tmp_path / "sam_vit_b.pth")
    (tmp_path / "sam_vit_b.pth").unlink()


def test_half_precision_weights_load_into_single(tmp_path) -> None:
    trained = build_compact(**TINY_COMPACT)
    torch.save({k: v.half() for k, v in trained.state_dict().items()}, tmp_path / "half.pt")
    loaded = build_sam("compact", tmp_path / "half.pt", **TINY_COMPACT)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, trained.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [("vit_x", r"'vit_x' is unknown: choose one of compact, compact_lite, vit_b, vit_l, vit_h")],
)
def test_unknown_variant(variant: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_sam(variant)


class Stowaway:
    """Runs code when unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Stowaway, "ran", True)


def state_of(model: nn.Module) -> dict:
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda m: m, "is not a plain state dict of tensors .* was refused"),
        (lambda m: {"model": state_of(m), "args": Stowaway()}, "was refused"),
        (lambda m: {"model": state_of(m), "epoch": 3}, r"is not a plain state dict: save model.state_dict\(\) alone"),
        (lambda m: [1, 2], r"save model.state_dict\(\) alone"),
        (lambda m: {}, "does not hold compact weights"),
        (lambda m: {**state_of(m), "more": torch.zeros(1)}, "1 parameters differ, the first is more"),
        (lambda m: {**state_of(m), 0: torch.zeros(1)}, "1 parameters differ, the first is 0"),
        (
            lambda m: {k: v for k, v in m.state_dict().items() if k != "mask_decoder.iou_token.weight"},
            "1 parameters differ, the first is mask_decoder.iou_token.weight",
        ),
        (
            lambda m: {**state_of(m), "mask_decoder.iou_token.weight": torch.zeros(1, 16)},
            "1 parameters differ, the first is mask_decoder.iou_token.weight",
        ),
    ],
)
def test_files_that_are_no_weights_of_the_variant(tmp_path, content, sentence: str) -> None:
    model = build_compact(**TINY_COMPACT)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(content(model), path)
    with pytest.raises(UserError, match=sentence) as error:
        load_weights(model, path, "compact")
    assert str(path) in str(error.value)
    assert Stowaway.ran is False
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_missing_and_unreadable_checkpoint(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist: give the path of a compact state dict"):
        build_sam("compact", tmp_path / "nowhere.pt", **TINY_COMPACT)
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pt is not a plain state dict"):
        build_sam("compact", tmp_path / "text.pt", **TINY_COMPACT)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Stowaway(), protocol=2))
    with pytest.raises(UserError, match="was refused"):
        build_sam("compact", tmp_path / "pickle.pt", **TINY_COMPACT)
    assert Stowaway.ran is False


# ---- official checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A stand-in for Meta's server: vit_b's checkpoint is a small file with its right sha256."""
    file = tmp_path / "server" / "sam_vit_b.pth"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(sam_module, "CHECKPOINTS", {"vit_b": (file.as_uri(), digest)})
    return file


def test_checkpoint_is_fetched_once(served, tmp_path) -> None:
    path = fetch_checkpoint("vit_b", tmp_path / "kept" / "here")
    assert path == tmp_path / "kept" / "here" / "sam_vit_b.pth"
    assert path.read_bytes() == b"weights"
    served.unlink()
    assert fetch_checkpoint("vit_b", tmp_path / "kept" / "here") == path
    assert [p.name for p in path.parent.iterdir()] == ["sam_vit_b.pth"]


def test_checkpoint_lies_in_the_hub_folder_by_default(served, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert fetch_checkpoint("vit_b") == tmp_path / "hub" / "checkpoints" / "sam_vit_b.pth"


@pytest.mark.parametrize("where", ["fetched", "kept"])
def test_altered_checkpoint_is_deleted(served, tmp_path, where: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (served if where == "fetched" else folder / "sam_vit_b.pth").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"has sha256 .* altered and has been deleted; run again"):
        fetch_checkpoint("vit_b", folder)
    assert list(folder.iterdir()) == []
    served.write_bytes(b"weights")
    assert fetch_checkpoint("vit_b", folder).read_bytes() == b"weights"


def test_offline_says_where_the_checkpoint_belongs(served, tmp_path) -> None:
    served.unlink()
    with pytest.raises(UserError, match=r"could not be fetched from file:.* put it at .*sam_vit_b\.pth, or give") as e:
        fetch_checkpoint("vit_b", tmp_path / "folder")
    assert str(tmp_path / "folder" / "sam_vit_b.pth") in str(e.value)
    assert list((tmp_path / "folder").iterdir()) == []


def test_compact_has_no_official_checkpoint(tmp_path) -> None:
    with pytest.raises(UserError, match="no official checkpoint of 'compact'"):
        fetch_checkpoint("compact", tmp_path)


# ---- stochastic depth ------------------------------------------------------------------------------------------------


def test_drop_path_leaves_inference_alone_and_drops_in_training(ours) -> None:
    images = random_images(3)
    plain = ours.encode(images).features
    keys = ours.state_dict().keys()
    add_drop_path(ours, 0.5)
    assert ours.state_dict().keys() == keys
    assert torch.equal(ours.encode(images).features, plain)
    ours.train()
    torch.manual_seed(0)
    drawn = [ours.encode(images).features for _ in range(12)]
    first, second = ours.image_encoder.blocks
    x = first(ours.image_encoder.patch_embed(ours.preprocess(images)) + ours.image_encoder.pos_embed)
    dropped = ours.image_encoder.neck(x.permute(0, 3, 1, 2))
    second._forward_hooks.clear()
    doubled = ours.image_encoder.neck((x + 2 * (second(x) - x)).permute(0, 3, 1, 2))  # kept: scaled by 1 / (1 - 0.5)
    skips = 0
    for features in drawn:
        for image in range(3):
            skipped = torch.allclose(features[image], dropped[image], atol=1e-4)
            assert skipped or torch.allclose(features[image], doubled[image], atol=1e-4)
            skips += skipped
    assert 0 < skips < 36


def test_no_drop_path_hooks_nothing(ours) -> None:
    add_drop_path(ours, 0.0)
    assert not any(block._forward_hooks for block in ours.image_encoder.blocks)
    compact = build_compact(**TINY_COMPACT)
    assert add_drop_path(compact, 0.0) is compact


def test_drop_path_of_a_convolutional_encoder_is_refused() -> None:
    with pytest.raises(UserError, match=r"drop_path 0\.1 needs a ViT: set --drop_path 0"):
        add_drop_path(build_compact(**TINY_COMPACT), 0.1)


def test_integer_and_floating_labels_mean_the_same(ours) -> None:
    embeddings = ours.encode(random_images(1))
    whole = Prompt.from_points(torch.tensor([[10.0, 20.0]]), torch.tensor([[50.0, 30.0]]))
    floating = Prompt(whole.points, whole.labels.float())
    one, other = ours.decode(embeddings, [whole, floating])[0]
    assert torch.equal(one, other)
