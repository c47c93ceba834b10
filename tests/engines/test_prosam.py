"""ProSAM's training step: what learns, what does not, and that it learns."""

from __future__ import annotations

import logging

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from monai_ext.engines import prosam
from monai_ext.engines.prosam import ProsamObjective, SigmaMonitor
from monai_ext.errors import UserError
from monai_ext.losses.sampled_masks import SampledMaskLoss
from monai_ext.networks import sam as sam_module
from monai_ext.networks.backbone import Embeddings
from monai_ext.networks.prompt_distribution import PromptDistributionNet
from monai_ext.networks.reference_encoder import EncoderReference
from monai_ext.networks.sam import build_compact, build_sam
from monai_ext.prompts.distribution import Sampler
from monai_ext.session.prompts import build_prompts


def small_vit(checkpoint: None = None) -> Sam:
    """Segment Anything with one block of 32 channels; all behind it is 256 wide, as in the official ones."""
    size = {"embed_dim": 256, "image_embedding_size": (4, 4), "input_image_size": (64, 64)}
    return Sam(
        ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=256),
        PromptEncoder(**size, mask_in_chans=16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    )


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    tiny = {"image_size": 64, "channels": (16, 16, 32, 32), "blocks": (1, 1, 1), "width": 32}
    network = build_compact(**tiny).eval().requires_grad_(False)
    for mlp in network.mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 30  # masks that the prompts can change
    return network


@pytest.fixture
def make_net(sam):
    def make(sampler: str = "t", **options):
        torch.manual_seed(1)
        return PromptDistributionNet(
            EncoderReference(sam, 32), channels=32, prompts=6, hidden=32, sampler=Sampler(sampler), **options
        )

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """A bright disc on noise, elsewhere in the query."""
    torch.manual_seed(2)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    made: dict[str, torch.Tensor] = {}
    for role, centres in (("support", [(20, 20), (40, 30)]), ("query", [(36, 40), (22, 28)])):
        masks = torch.stack([(y - a) ** 2 + (x - b) ** 2 < 120 for a, b in centres])
        images = (120.0 * masks + torch.randint(0, 60, (2, 64, 64)))[:, None].expand(-1, 3, -1, -1)
        made |= {f"{role}_image": images, f"{role}_mask": masks.float()}
        made[f"{role}_valid"] = torch.ones(2, 64, 64, dtype=torch.bool)
        made[f"{role}_size"] = torch.full((2, 2), 64)
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_the_mean_over_the_draws(sam, make_net, batch):
    net = make_net().eval()
    objective = ProsamObjective(sam, net, samples=3)
    terms = objective(net, batch, generator())
    source = generator()
    torch.randint(2**62, (), generator=source)  # the annotations' seed
    masks = net.masks(batch["support_mask"], 64)
    features = [net.features(batch[f"{role}_image"], 64) for role in ("query", "support")]
    halves = [type(f)(f.middle.half().float(), f.deep.half().float()) for f in features]
    tokens = net.sampler.draw(net(halves[0], halves[1], masks), 3, source)
    embeddings = sam.encode(batch["query_image"])
    losses = []
    for k in range(3):
        logits, _ = sam.decode_tokens(embeddings, tokens[k])
        upscaled = sam.to_image(logits, (64, 64))[:, 0]
        losses.append(SampledMaskLoss()(upscaled[None], batch["query_mask"]))
    assert float(terms["loss"].detach()) == pytest.approx(float((sum(losses) / 3).detach()), rel=2e-3)
    assert float(terms["sigma"]) > 0


def test_only_the_prompts_learn(sam, make_net, batch, tmp_path):
    net = make_net()
    objective = ProsamObjective(sam, net, samples=2, cache_dir=tmp_path)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    optimizer = torch.optim.AdamW(net.trained_parameters(), lr=1e-2)
    objective(net, batch, generator())["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.trained_parameters())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())
    assert not any(p.grad is not None for p in sam.parameters())


@pytest.mark.slow
def test_it_learns(sam, make_net, batch, tmp_path):
    net = make_net(dropout=0.0).train()
    objective = ProsamObjective(sam, net, samples=2, cache_dir=tmp_path)
    optimizer = torch.optim.AdamW(net.trained_parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = objective(net, batch, generator(step))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


def test_same_generator_same_loss_and_cached_features_are_the_same(sam, make_net, batch, tmp_path):
    net = make_net().eval()
    losses = [
        float(
            ProsamObjective(sam, net, samples=2, annotations=["points", "box"], cache_dir=folder)(net, batch, g)["loss"]
        )
        for folder, g in ((None, generator(1)), (tmp_path, generator(1)), (tmp_path, generator(1)))
    ]
    assert losses[0] == losses[1] == losses[2]


def test_predictions_draw_nothing_and_know_no_query_mask(sam, make_net, batch):
    net = make_net().eval()
    objective = ProsamObjective(sam, net)
    state = torch.get_rng_state()
    shown = {key: value for key, value in batch.items() if key not in ("query_mask", "query_valid")}
    logits = objective.predict(net, shown)
    assert logits.shape == (2, 64, 64)
    assert torch.equal(logits, objective.predict(net, shown))
    assert torch.equal(torch.get_rng_state(), state)


def test_predictions_of_episodes_have_different_kinds_of_annotation(sam, make_net, batch, monkeypatch):
    drawn = []
    draw = prosam.annotate
    monkeypatch.setattr(prosam, "annotate", lambda *a: drawn.append((a[1], a[3])) or draw(*a))
    net = make_net().eval()
    objective = ProsamObjective(sam, net, annotations=["mask", "box", "points"])
    for shift in range(6):
        moved = {**batch, "query_image": batch["query_image"] + shift}
        objective.predict(net, moved)
        again = drawn[-2:]
        objective.predict(net, moved)
        assert drawn[-2:] == again
    assert {kind for kind, _ in drawn} == {"mask", "box", "points"}
    assert {count for _, count in drawn} == {20}


@pytest.mark.parametrize(("sampler", "parameters"), [("none", 1_592_064 - 1280 * 256), ("t", 1_723_648 - 1280 * 256)])
def test_prompts_of_256_numbers_are_learned_beside_a_vision_transformer(batch, monkeypatch, sampler, parameters):
    """Official SAMs and MedSAM are such; as the reference encoder SAM's has 256 channels where ResNet-50's has 1536."""
    monkeypatch.setitem(sam_module.sam_model_registry, "vit_b", small_vit)
    torch.manual_seed(0)
    vit = build_sam("vit_b").eval()
    net = build_prompts(vit, "sam", sampler=sampler)
    assert sum(p.numel() for p in net.trained_parameters()) == parameters
    objective = ProsamObjective(vit, net, samples=2)
    objective(net, batch, generator())["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.trained_parameters())
    assert objective.predict(net.eval(), batch).shape == (2, 64, 64)


def test_vrp_sam_decodes_once(sam, make_net, batch, monkeypatch):
    decoded = []
    decode = sam.decode_tokens
    monkeypatch.setattr(sam, "decode_tokens", lambda e, t: decoded.append(tuple(t.shape)) or decode(e, t))
    for sampler in ("none", "t"):
        net = make_net(sampler)
        ProsamObjective(sam, net, samples=5)(net, batch, generator())
    assert decoded == [(2, 6, 32)] + 5 * [(2, 6, 32)], "on a CPU one set of prompts after the other"


def test_decoding_one_by_one_has_the_loss_and_gradient_of_all_at_once(sam, make_net, batch):
    found = []
    for whole in (False, True):
        net = make_net(dropout=0.0)
        objective = ProsamObjective(sam, net, samples=3)
        if whole:
            objective.decode = lambda embeddings, tokens: at_once(sam, embeddings, tokens)
        objective(net, batch, generator(4))["loss"].backward()
        found.append([p.grad for p in net.trained_parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def at_once(sam, embeddings, tokens):
    repeated = Embeddings(embeddings.features.repeat(len(tokens), 1, 1, 1), embeddings.size)
    low, _ = sam.decode_tokens(repeated, tokens.flatten(0, 1))
    return sam.to_image(low, embeddings.size).reshape(*tokens.shape[:2], *embeddings.size)


def test_an_empty_annotation_is_never_passed_on(sam, make_net, batch):
    net = make_net()
    empty = {**batch, "support_mask": torch.zeros(2, 64, 64)}
    with pytest.raises(UserError, match="annotation of a reference is empty"):
        ProsamObjective(sam, net)(net, empty, generator())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"samples": 0}, "K is 0"), ({"annotations": ["text"]}, "annotation 'text'"), ({"annotations": []}, "is empty")],
)
def test_impossible_options_are_refused(sam, make_net, options, words):
    with pytest.raises(UserError, match=words):
        ProsamObjective(sam, make_net(), **options)


def test_a_collapse_of_sigma_is_told_once(caplog):
    monitor = SigmaMonitor(window=5)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            monitor.note(0.5, 1.0)
        assert not caplog.records
        for _ in range(20):
            monitor.note(1e-4, 1.0)
    assert [record.message.split(":")[0] for record in caplog.records] == ["sigma collapsed"]
