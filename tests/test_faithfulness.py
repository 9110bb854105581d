"""Scores of maps: what they must be for known maps, equal to other libraries', clear refusals, nothing changed."""
import copy
import warnings

import numpy as np
import pytest
import torch
from helpers import differing, random, refuses, tiny_net

from ltpa.core import keyed_rng
from ltpa.inputs import inside
from ltpa.maps import as_maps
from ltpa.metrics import (
    _boxes, energy_in_mask, iou, max_box_acc_v2, otsu, pointing_game, pxap, stretch, to_pixels)
from ltpa.faithfulness import (
    BASELINES, CONTROLS, SWAPS, _area, _levels, auc, bootstrap, infidelity, interventions, learned_maps,
    localization, parts_from_top, perturbation_curves, post_hoc_maps, predicted, randomization, randomized,
    evaluate_explainers, sensitivity, spearman, ssim)

SIDE = 16


def noise(*shape, key='noise'): return torch.rand(shape, generator=keyed_rng(key, shape))


def objects(n=12, side=SIDE):
    "One rectangle in each mask, the last at the edge."
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    for k in range(n): masks[k, k % 7 + 2:k % 7 + 6 + k % 3, side - 5 - k % 4:side - k % 4] = True
    return masks


@pytest.fixture(scope='module')
def net():
    "Logits that differ between images, and maps that are not nearly uniform."
    net = tiny_net('vgg_att2_concat_pc', classes=4)
    for p in net.attention.parameters(): torch.nn.init.normal_(p, std=3., generator=keyed_rng('u'))
    net.train()
    with torch.no_grad():
        for k in range(4): net(noise(8, 3, 32, 32, key=k))
    return net.eval()


# What known maps must score

def scores(m, masks):
    return dict(pointing=pointing_game(m, masks).mean().item(), energy=energy_in_mask(m, masks).mean().item(),
                iou=iou(m > otsu(m)[:, None, None], masks).mean().item(), pxap=pxap(m, masks),
                box=max_box_acc_v2(m, masks))


def test_perfect_inverted_empty_and_random_maps():
    masks = objects(200)
    share = masks.float().mean().item()
    perfect, inverted = scores(masks.float(), masks), scores((~masks).float(), masks)
    empty, chance = scores(masks * 0., masks), scores(noise(200, SIDE, SIDE), masks)
    assert all(v == pytest.approx(1) for v in perfect.values())
    assert inverted['pointing'] == inverted['energy'] == inverted['iou'] == 0
    assert inverted['pxap'] == pytest.approx(share) and inverted['box'] < .1
    assert empty == dict(pointing=pytest.approx(share), energy=pytest.approx(share), iou=0, box=0,
                         pxap=pytest.approx(share))
    for k in 'pointing', 'energy', 'pxap': assert chance[k] == pytest.approx(share, abs=.06), k
    for low, high in (empty, perfect), (inverted, perfect), (chance, perfect):
        assert all(low[k] < high[k] for k in perfect)


@pytest.mark.parametrize('rescale', [lambda m: m**3, lambda m: m.sqrt(), lambda m: 5 * m - 2, torch.exp],
                         ids=['cube', 'root', 'affine', 'exp'])
def test_monotone_rescaling_changes_no_score_of_order(net, rescale):
    m, masks, x = noise(12, 32, 32).double(), objects(side=32), noise(12, 3, 32, 32)
    m = (m * 200).round() / 200                                        # far enough apart to survive in float32
    m[:, 0, 0], m[:, 0, 1] = 0, 1                                      # the same ends: PxAP pools the images
    def of_order(m):
        curves = perturbation_curves(net, x, m, baseline='mean', steps=4, precision='fp32')
        return pointing_game(m, masks), torch.tensor(pxap(m, masks)), *curves, spearman(m, noise(12, 32, 32))
    for a, b in zip(of_order(m), of_order(rescale(m))): torch.testing.assert_close(a, b)


def test_pxap_keeps_its_value_under_a_change_of_scale_only_where_maps_share_their_ends():
    masks = objects(40)
    m = noise(40, SIDE, SIDE) + masks
    m[:, 0, 0], m[:, 0, 1] = 0, 2
    assert pxap(m**3, masks) == pytest.approx(pxap(m, masks), abs=1e-4)
    m[::2, 0, 1] = 5                                                   # the same order in each image, other ends
    assert abs(pxap((m + .1).log(), masks) - pxap(m, masks)) > .02


def test_huge_values_are_stretched():
    m = torch.tensor([-3e38, 0, 3e38]).expand(2, 1, 3)
    assert stretch(m).tolist() == [[[0, .5, 1]]] * 2 and stretch(m).dtype == torch.float32


def test_scale_changes_no_score_of_place():
    m, masks = noise(12, SIDE, SIDE), objects()
    for a, b in zip(scores(m, masks).values(), scores(m * 1000, masks).values()): assert a == pytest.approx(b)


def test_a_single_cell_is_enlarged_alike_for_all():
    one = torch.zeros(1, 4, 4)
    one[0, 1, 2] = 1
    big = to_pixels(one, (SIDE, SIDE))[0]
    assert big.argmax() in (SIDE * r + c for r in (5, 6) for c in (9, 10))
    torch.testing.assert_close(big.sum(), torch.tensor(16.))


@pytest.mark.parametrize('width, share', [(10, 1), (7, 1), (6, 2/3), (5, 2/3), (4, 1/3), (3, 1/3), (2, 0)])
def test_a_box_counts_at_each_iou_that_it_reaches(width, share):
    "Of an object 10 wide and 10 high a map marks so many columns: their IoU is a tenth of the width."
    masks, m = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    masks[:, 3:13, 2:12], m[:, 3:13, 2:2 + width] = True, True
    assert max_box_acc_v2(m.float(), masks) == pytest.approx(share)


def test_a_map_of_zeros_marks_no_box_though_the_object_is_everywhere():
    assert max_box_acc_v2(torch.zeros(2, 4, 4), torch.ones(2, SIDE, SIDE, dtype=torch.bool)) == 0


def test_a_cell_that_is_half_covered_is_of_the_object():
    masks, m = torch.zeros(2, SIDE, SIDE, dtype=torch.bool), torch.zeros(2, 4, 4)
    masks[:, 4:8, 8:10], m[:, 1, 2] = True, 1
    assert localization(m, masks)['pxap_cells'] == 1
    masks[:, 4, 9] = False
    assert 'pxap_cells' not in localization(m, masks), 'no cell is half covered'


# Controls and baselines

def test_center_is_a_gaussian_a_quarter_of_the_side_wide():
    m = CONTROLS['centre'](None, torch.ones(2, 3, 400, 200))
    assert m.shape == (2, 400, 200)
    for at in (300, 100), (200, 150): assert m[0][at].item() == pytest.approx(np.exp(-1 / 2), rel=.02)
    assert m[1, 200, 100].item() == pytest.approx(1, abs=1e-3)


def test_edges_are_scipys():
    from scipy.ndimage import sobel
    x = noise(1, 3, 12, 9)
    gray = x.mean(1)[0].double().numpy()
    want = np.hypot(*(sobel(gray, axis, mode='nearest') for axis in (0, 1)))
    np.testing.assert_allclose(CONTROLS['edges'](None, x)[0], want, atol=1e-5)


def test_blur_is_scipys_gaussian_an_eighth_of_the_side_wide():
    from scipy.ndimage import gaussian_filter
    x = noise(1, 3, 32, 48)
    want = gaussian_filter(x[0].double().numpy(), (0, 4, 6), mode='mirror', truncate=2)
    np.testing.assert_allclose(BASELINES['blur'](x)[0], want, atol=1e-4)


class CountsMeans(torch.nn.Module):
    "The probability of class 0 is the share of pixels that have the picture's mean, which was .5."
    def forward(self, x):
        p = ((x - .5).abs() < 1e-3).all(1).float().mean((1, 2)).clamp(1e-7, 1 - 1e-7)
        return torch.stack([p.log(), (1 - p).log()], 1)


@pytest.mark.parametrize('steps', [1, 4, 8])
def test_each_step_replaces_its_share_of_the_pixels_and_no_pixel_more(steps):
    x = torch.zeros(2, 3, SIDE, SIDE)
    x[..., ::2] = 1
    for m in noise(2, SIDE, SIDE), torch.ones(2, SIDE, SIDE):                  # ties take their turns too
        deletion, insertion = perturbation_curves(CountsMeans(), x, m, 0, 'mean', steps, precision='fp32')
        share = torch.linspace(0, 1, steps + 1).expand(2, -1)
        torch.testing.assert_close(deletion, share, rtol=0, atol=1e-4)
        torch.testing.assert_close(insertion, 1 - share, rtol=0, atol=1e-4)


def test_areas_of_a_plateau_and_of_a_slope():
    assert auc(torch.ones(2, 9)).tolist() == [1, 1] and auc(torch.linspace(1, 0, 5)[None]).tolist() == [.5]


def test_sensitivity_is_to_changes_of_at_most_two_hundredths():
    "Of a picture of ones that explains itself, uniform noise changes the root of two hundredths squared over three."
    changed = sensitivity(lambda net, x, target=None: x[:, 0], CountsMeans(), torch.ones(2, 3, 64, 64), 0)
    assert changed.tolist() == pytest.approx([.02 / 3**.5] * 2, rel=.1)


# Empty and full masks, constant maps

def test_empty_and_full_masks_have_the_documented_values():
    none, full = torch.zeros(2, SIDE, SIDE, dtype=torch.bool), torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    for m in noise(2, SIDE, SIDE), torch.ones(2, SIDE, SIDE), torch.zeros(2, 4, 4):
        assert pointing_game(m, none).tolist() == [0, 0] and pointing_game(m, full).tolist() == [1, 1]
        assert energy_in_mask(m, none).tolist() == [0, 0]
        torch.testing.assert_close(energy_in_mask(m, full), torch.ones(2))
        assert pxap(m, full) == pytest.approx(1)
    assert iou(none, none).tolist() == [1, 1] and iou(none, full).tolist() == [0, 0]
    for score in pxap, max_box_acc_v2:
        with refuses('expected'): score(noise(2, SIDE, SIDE), none)


def test_a_constant_map_marks_nothing():
    for value in -2., 0., 3.:
        m = torch.full((2, SIDE, SIDE), value)
        assert otsu(m).tolist() == [value, value] and not (m > otsu(m)[:, None, None]).any()
        assert stretch(m).abs().max() == 0
        assert pointing_game(m, objects(2)).tolist() == pytest.approx(objects(2).float().mean((1, 2)).tolist())
        assert spearman(m, noise(2, SIDE, SIDE)).tolist() == [0, 0]
        assert ssim(m, noise(2, SIDE, SIDE)).isfinite().all()


# Equal to other libraries

@pytest.mark.parametrize('seed', range(12))
def test_otsu_is_scikit_images(seed):
    from skimage.filters import threshold_otsu
    m = noise(4, 15, 17, key=seed)**(1 + seed % 4) - .5 * (seed % 2)
    if seed % 3 == 0: m = (m * 6).round()
    torch.testing.assert_close(otsu(m), torch.tensor([threshold_otsu(a.numpy()) for a in m]).float())


def area_by_counting(m, masks):
    "Average precision without scikit-learn: at each value, its share of the object times the precision so far."
    values, level = stretch(m).flatten().unique(return_inverse=True)
    counts = (torch.bincount(at, minlength=len(values)) for at in (level[masks.flatten()], level))
    return _area(*counts).item()


AP_MAPS = dict(
    noise=lambda r, masks: r, better=lambda r, masks: r + .4 * masks, ties=lambda r, masks: (r * 8).round(),
    signs=lambda r, masks: (r * 4).round() - 2, empty=lambda r, masks: 0 * r, constant=lambda r, masks: 0 * r + 3,
    perfect=lambda r, masks: masks.float(), inverted=lambda r, masks: 1 - masks.float(), faint=lambda r, masks: r * 1e-30,
    huge=lambda r, masks: (r - .5) * 1e30, some_empty=lambda r, masks: torch.where(torch.arange(len(r))[:, None, None] % 2 > 0, r, 0.))


@pytest.mark.parametrize('kind', AP_MAPS)
def test_pxap_is_average_precision_of_all_pixels(kind):
    for n, side in (1, 4), (20, SIDE):
        masks = objects(20)[:n, :side, :side] if side == SIDE else torch.arange(16).view(1, 4, 4) % 3 == 0
        m = AP_MAPS[kind](noise(n, side, side), masks)
        want = area_by_counting(m, masks)
        assert pxap(m, masks) == pytest.approx(want, abs=1e-12)
        assert pxap(m, masks | True) == pytest.approx(1, abs=1e-12)
        assert _area(*_levels(m, masks).double().sum(0).chunk(2)).item() == pytest.approx(want, abs=5e-3)


def test_ssim_and_spearman():
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity
    a, b = noise(5, 20, 24, key='a'), (noise(5, 20, 24, key='b') * 9).round()
    for x, y in (a, b), (a, a**2), (b, b.flip(1)):
        want = [structural_similarity(p.double().numpy(), q.double().numpy(), data_range=1.)
                for p, q in zip(stretch(x), stretch(y))]
        assert ssim(x, y).tolist() == pytest.approx(want, abs=1e-9)
        want = [spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(x, y)]
        assert spearman(x, y).tolist() == pytest.approx(want, abs=1e-9)


def test_pointing_and_energy_are_those_of_quantus(net):
    quantus = pytest.importorskip('quantus')
    masks, m, x = objects(), noise(12, SIDE, SIDE), noise(12, 3, SIDE, SIDE)
    arrays = dict(x_batch=x.numpy(), y_batch=np.zeros(12, int), a_batch=m[:, None].numpy(),
                  s_batch=masks[:, None].numpy())
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE**2, 2))
    quiet = dict(disable_warnings=True, normalise=False)
    for theirs, ours in (quantus.PointingGame, pointing_game), (quantus.RelevanceMassAccuracy, energy_in_mask):
        assert [float(v) for v in theirs(**quiet)(model, **arrays)] == pytest.approx(ours(m, masks).tolist(), abs=1e-6)


def test_boxes_are_those_of_opencv():
    cv2 = pytest.importorskip('cv2')
    on = noise(8, 20, 24) > .7
    image, boxes = _boxes(on.numpy())
    for k in range(8):
        outlines, _ = cv2.findContours(on[k].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        theirs = {(y, x, y + h, x + w) for x, y, w, h in map(cv2.boundingRect, outlines)}
        assert theirs <= set(map(tuple, boxes[image == k].tolist()))   # parts within holes are ours alone


@pytest.mark.parametrize('baseline', [None, 'mean'])
def test_curves_are_those_of_torchcam(net, baseline, monkeypatch):
    pytest.importorskip('torchcam')
    from torchcam.methods import GradCAM
    from torchcam.metrics import DeletionInsertionMetric
    from ltpa.saliency import Logits, grad_cam
    monkeypatch.setitem(BASELINES, 'mean', BASELINES['mean'] if baseline else torch.zeros_like)
    x, model = noise(3, 3, 32, 32, key='cam'), Logits(net)
    with GradCAM(model, 'net.trunk.stages.1') as cam:
        metric = DeletionInsertionMetric(cam, lambda y: y.softmax(-1), steps=8, baseline=BASELINES['mean'])
        for one in x: metric.update(one[None])
    maps = grad_cam(net, x, layer='trunk.stages.1', mode='nearest')
    maps = torch.nn.functional.adaptive_avg_pool2d(maps, (8, 8))
    maps = maps + 1e-9 * torch.arange(64.).flip(0).view(8, 8)
    curves = perturbation_curves(net, x, maps, baseline='mean', precision='fp32')
    assert tuple(auc(c).mean().item() for c in curves) == pytest.approx(tuple(metric.summary().values()), abs=.02)


def test_infidelity_and_sensitivity_mean_what_they_mean_to_captum(net):
    x = noise(4, 3, 32, 32)
    target = predicted(net, x)
    nothing = infidelity(net, x, torch.zeros(4, 32, 32), target)
    for m in noise(4, 32, 32), noise(4, 8, 8): assert (infidelity(net, x, m, target) <= nothing + 1e-6).all()
    m = noise(4, 32, 32)
    torch.testing.assert_close(infidelity(net, x, m, target), infidelity(net, x, 7 * m, target), rtol=1e-3, atol=1e-6)
    still, moving = (sensitivity(CONTROLS[k], net, x, target) for k in ('centre', 'random'))
    assert still.tolist() == [0] * 4 and (moving > .3).all()
    explain = post_hoc_maps(net)['gradient']
    torch.testing.assert_close(sensitivity(explain, net, x, target), sensitivity(explain, net, x, target))
    assert sensitivity(explain, net, x[:1], target[:1]).shape == (1,)


class Adds(torch.nn.Module):
    "Logits that are the sum of pixels with fixed weights: the right map is known."
    def __init__(self, weight):
        super().__init__()
        self.register_buffer('weight', weight)
    def forward(self, x):
        y = (x.sum(1) * self.weight).sum((1, 2))
        return torch.stack([y, -y], 1)


def test_the_right_map_of_a_linear_network_is_faithful():
    weight, x = random(SIDE, SIDE, seed=3), torch.ones(3, 3, SIDE, SIDE)
    x[:, :, ::2] = 0
    net, target = Adds(weight), torch.zeros(3, dtype=torch.long)
    right = weight * (x - x.mean((2, 3), keepdim=True)).sum(1)
    assert infidelity(net, x, right, target).abs().max() < 1e-3
    assert infidelity(net, x, noise(3, SIDE, SIDE), target).min() > 1
    areas = {name: [auc(c).mean().item() for c in perturbation_curves(net, x, m, target, 'mean', precision='fp32')]
             for name, m in dict(right=right, wrong=-right, random=noise(3, SIDE, SIDE)).items()}
    assert areas['right'][0] < areas['random'][0] < areas['wrong'][0]
    assert areas['right'][1] > areas['random'][1] > areas['wrong'][1]


# Randomisation

def test_randomized_is_a_copy_with_one_part_new(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    parts = parts_from_top(net)
    assert parts == ['head', 'attention', 'glob', 'trunk.stages.2', 'trunk.stages.1', 'trunk.stages.0'][-len(parts):]
    state = torch.get_rng_state()
    for part in parts:
        new = randomized(net, [part]).state_dict()
        assert {k.startswith(part + '.') for k in differing(before, new)} == {True}
    assert torch.equal(state, torch.get_rng_state()) and not differing(before, net.state_dict())
    everything = randomized(net, parts)
    same = [k for k, p in everything.named_parameters() if p.ndim > 1 and p.equal(before[k])]
    assert not same, f'{same} survive'


def test_layers_of_one_shape_get_different_random_numbers():
    layers = torch.nn.ModuleDict({k: torch.nn.Conv2d(3, 3, 3) for k in 'ab'})
    a, b = (randomized(layers, ['a', 'b'])[k].weight for k in 'ab')
    assert not a.equal(b)
    assert randomized(layers, ['b'])['b'].weight.equal(b)              # whatever else is made new
    assert not randomized(layers, ['b'], seed=1)['b'].weight.equal(b)


def test_randomization_tells_mean_and_spread_over_draws(net):
    x, explain = noise(2, 3, 32, 32), dict(a=learned_maps(net)['attention 1'])
    row = randomization(explain, net, x, parts=['attention'], seeds=3)[0]
    before = explain['a'](net, x)
    each = [spearman(before, explain['a'](randomized(net, ['attention'], s), x)).mean().item() for s in range(3)]
    assert (row['images'], row['seeds']) == (2, 3)
    assert row['spearman'] == pytest.approx(np.mean(each), abs=1e-4)
    assert row['spearman_sd'] == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    with refuses('seeds 0'): randomization(explain, net, x, seeds=0)


@pytest.mark.parametrize('name', ['vgg_trunk', 'vgg_gap', 'resnet164', 'resnet164_att2_concat_pc'])
def test_parts_hold_all_parameters(name):
    net = tiny_net(name)
    parts = parts_from_top(net)
    assert all(any(k.startswith(part + '.') for part in parts) for k, _ in net.named_parameters())


@pytest.mark.parametrize('order', ['top_down', 'independent'])
def test_randomization_is_that_of_quantus(order, monkeypatch):
    quantus = pytest.importorskip('quantus')
    from ltpa import training
    from ltpa.saliency import gradient
    torch.manual_seed(0)
    seeded = torch.manual_seed
    # Theirs gives all layers one seed, ours do not.
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: seeded(0))
    states = training.random_states
    monkeypatch.setattr(training, 'random_states', lambda d, seed=None: states(d, None if seed is None else 0))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(),
                              torch.nn.Flatten(), torch.nn.Linear(4 * 64, 3)).eval()
    x, y = noise(3, 3, 12, 12), torch.tensor([0, 1, 2])
    def explain(net, x, target=None): return gradient(net, x, target)
    def theirs(model, inputs, targets, **_):
        return gradient(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)).numpy()[:, None]
    metric = quantus.MPRT(similarity_func=quantus.similarity_func.correlation_spearman, layer_order=order, seed=-1,
                          abs=False, normalise=False, disable_warnings=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        want = metric(net, x.numpy(), y.numpy(), explain_func=theirs)
    parts = ['5', '2', '0']
    rows = randomization(dict(gradient=explain), net, x, y, cascading=order == 'top_down', parts=parts)
    assert [r['spearman'] for r in rows] == pytest.approx([np.mean(want[p]) for p in parts], abs=1e-4)


def test_edges_survive_everything_and_maps_only_what_lies_above(net):
    rows = randomization(learned_maps(net) | dict(edges=CONTROLS['edges']), net, noise(4, 3, 32, 32), cascading=False)
    at = {(r['map'], r['part']): r for r in rows}
    for part in parts_from_top(net): assert at['edges', part]['spearman'] == at['edges', part]['ssim'] == 1
    for part in 'head', 'glob': assert at['attention 1', part]['spearman'] == 1
    assert at['attention 1', 'attention']['spearman'] < .99


# Interventions and the whole table

def test_interventions_keep_the_sum_and_the_own_answers(net):
    x, masks = (noise(10, 3, 32, 32) * 255).byte(), objects(10, 32)
    masks[0] = False
    own = learned_maps(net)['attention 2'](net, x / 255)
    for name, swap in SWAPS.items():
        a = swap(own, level=1, masks=masks)
        assert a.shape == own.shape and (a >= 0).all(), name
        torch.testing.assert_close(a.sum((1, 2)), own.sum((1, 2)))
    rows = {r['weights']: r for r in interventions(net, x, torch.arange(10) % 4, masks, batch_size=10)}
    assert list(rows) == list(SWAPS) and rows['own']['same_answer'] == 1
    said = predicted(net, x / 255)
    assert rows['own']['accuracy'] == pytest.approx((said == torch.arange(10) % 4).float().mean().item())


def test_adapted_heads_have_the_statistics_of_what_they_get(net):
    x, masks, labels = (noise(40, 3, 32, 32) * 255).byte(), objects(40, 32), torch.arange(40) % 4
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rows = {r['weights']: r for r in interventions(net, x, labels, masks, batch_size=7)}
    assert all(v.equal(net.state_dict()[k]) for k, v in before.items())
    head = copy.deepcopy(net.head).eval()
    for m in head.modules():
        if isinstance(m, torch.nn.BatchNorm1d): m.train()
    with torch.no_grad():
        l, g = net.forward_features(x / 255)
        own = net.forward_attention(l, g).maps
        for name, maps in dict(own=own, uniform=[torch.full_like(a, 1 / a[0].numel()) for a in own]).items():
            d = net.pool(l, maps).descriptors
            assert rows[name]['adapted'] == pytest.approx((head(d).argmax(1) == labels).float().mean().item())
            assert rows[name]['accuracy'] == pytest.approx((net.head(d).argmax(1) == labels).float().mean().item())
    assert rows['uniform']['adapted'] != rows['uniform']['accuracy']


def test_one_level_is_exchanged_alone(net):
    x, masks, labels = (noise(12, 3, 32, 32) * 255).byte(), objects(12, 32), torch.arange(12) % 4
    given = []
    class Watch(type(net)):
        def pool(self, l, maps): given.append(maps); return super().pool(l, maps)
    kind, net.__class__ = type(net), Watch
    try: rows = interventions(net, x, labels, None, level=2)
    finally: net.__class__ = kind
    assert [r['weights'] for r in rows] == [k for k in SWAPS if k != 'mask'], 'masks are not known'
    own, uniform = given[:2]
    assert uniform[0].equal(own[0]) and not uniform[1].equal(own[1]) and uniform[1].std() < 1e-6
    for level in 0, 3, 'all':
        with refuses(f'level {level!r}', '1 to 2'): interventions(net, x, labels, masks, level=level)


def test_interventions_do_not_depend_on_the_batch(net):
    x, masks, labels = (noise(7, 3, 32, 32) * 255).byte(), objects(7, 32), torch.arange(7) % 4
    given = {}
    class Watch(type(net)):
        def pool(self, l, maps): given[size].append(maps[0]); return super().pool(l, maps)
    kind, net.__class__ = type(net), Watch
    try:
        for size in 7, 3, 1:
            given[size] = []
            interventions(net, x, labels, masks, batch_size=size)
    finally: net.__class__ = kind
    maps = {size: [torch.cat(ms[k::len(SWAPS)]) for k in range(len(SWAPS))] for size, ms in given.items()}
    for size in 3, 1:
        for name, a, b in zip(SWAPS, maps[7], maps[size]):
            torch.testing.assert_close(a, b, msg=lambda m: f'{name}: {m}')
    own, _, shuffled, another = maps[1][:4]
    for other in shuffled, another: assert not any(a.equal(b) for a, b in zip(own, other))


def test_maps_of_progressive_attention_are_counted():
    pan = tiny_net('vgg_pan').eval()
    explainers, x = learned_maps(pan), noise(2, 3, 32, 32)
    assert list(explainers) == ['attention 1', 'attention 2', 'attention, all']
    for a, k in zip(pan(x).maps, explainers): torch.testing.assert_close(explainers[k](pan, x), a)
    with refuses('vgg_pan', 'pool(l, maps)'): interventions(pan, (x * 255).byte(), [0, 1], objects(2, 32))


def test_grad_cam_is_also_taken_at_the_earlier_stages(net):
    from ltpa.saliency import grad_cam
    x, made = noise(2, 3, 32, 32), post_hoc_maps(net)
    assert [k for k in made if k.startswith('grad_cam')] == ['grad_cam, stage 1', 'grad_cam, stage 2', 'grad_cam']
    for s in 1, 2:
        m = made[f'grad_cam, stage {s}'](net, x)
        want = grad_cam(net, x, layer=f'trunk.stages.{s - 1}', mode='nearest')
        torch.testing.assert_close(to_pixels(m, (32, 32)), to_pixels(
            torch.nn.functional.adaptive_avg_pool2d(want, m.shape[1:]), (32, 32)))
        assert m.shape[1] > made['grad_cam'](net, x).shape[1]


@pytest.mark.parametrize('name', CONTROLS)
def test_controls_lie_where_the_images_lie(name, monkeypatch):
    import ltpa.faithfulness
    monkeypatch.setattr(ltpa.faithfulness, 'fingerprint', lambda x: 0)   # this device has no bytes
    with inside(): assert CONTROLS[name](None, torch.ones(2, 3, 8, 8, device='meta')).device.type == 'meta'


@pytest.mark.slow
def test_rows_tell_on_how_many_images_they_rest_and_the_median_of_sensitivity(net):
    x, masks = (noise(5, 3, 32, 32) * 255).byte(), objects(5, 32)
    explain = dict(random=CONTROLS['random'])
    row = evaluate_explainers(explain, net, x, masks, faithful=4, few=3, steps=2)[0]
    assert (row['images'], row['faithful'], row['few']) == (5, 4, 3)
    v = sensitivity(explain['random'], net, x[:3] / 255, predicted(net, x[:3] / 255))
    assert row['sensitivity_median'] == pytest.approx(v.median().item(), abs=1e-3)
    assert row['sensitivity_median_low'] <= row['sensitivity_median'] <= row['sensitivity_median_high']
    assert v.min() - 1e-3 <= row['sensitivity_median_low']
    again = evaluate_explainers(explain, net, x, masks, few=9, steps=2, places=dict(random=dict(pxap=7)))[0]
    assert (again['pxap'], again['few']) == (7, 5)


@pytest.mark.slow
def test_the_table_is_finite_and_does_not_depend_on_the_batch(net):
    x, masks = (noise(6, 3, 32, 32) * 255).byte(), objects(6, 32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    explainers = {k: (learned_maps(net) | CONTROLS | post_hoc_maps(net))[k]
                  for k in ('attention 1', 'uniform', 'random', 'grad_cam')}
    rows, again = (evaluate_explainers(explainers, net, x, masks, few=4, steps=2, batch_size=b) for b in (6, 4))
    assert [r['map'] for r in rows] == [*explainers] and not differing(before, net.state_dict())
    for r, s in zip(rows, again):
        assert set(r) == set(s)
        for k, v in r.items():
            if isinstance(v, float): assert np.isfinite(v) and v == pytest.approx(s[k], abs=.05), (r['map'], k)
            if f'{k}_low' in r: assert r[f'{k}_low'] - .05 <= v <= r[f'{k}_high'] + .05, (r['map'], k)


def test_bootstrap_of_a_mean_is_as_wide_as_its_standard_error():
    v = noise(400)
    low, high = bootstrap(v)
    assert (high - low) / 2 == pytest.approx(1.96 * v.std().item() / 20, rel=.1) and low < v.mean() < high
    assert bootstrap(v) == (low, high) and bootstrap(torch.ones(5)) == (1, 1)
    assert localization(objects().float(), objects())['pxap_low'] == pytest.approx(1)


# Bad input

BAD = torch.ones(2, SIDE, SIDE)


@pytest.mark.parametrize('score', [pointing_game, energy_in_mask, pxap, max_box_acc_v2, localization],
                         ids=lambda f: f.__name__)
def test_bad_maps_and_masks_are_refused(score):
    masks = objects(2)
    hole = noise(2, SIDE, SIDE)
    hole[1, 3, 3] = float('nan')
    for m, words in ((hole, ['map 1 has NaN']), (hole.log(), ['NaN or infinite']), (noise(3, 4, 4), ['3 maps for 2']),
                     (noise(2, 32, 32), ['32x32', 'at least as many pixels']), (noise(2, 3, 4, 4), ['[B,h,w]']),
                     ((BAD,), ['type tuple'])):
        with refuses(*words): score(m, masks)
    for wrong in masks.float(), masks[0], masks.numpy():
        with refuses('expected bool [B,H,W]'): score(BAD, wrong)


def test_negative_weights_and_unknown_names_are_refused(net):
    with refuses('weight of -1', 'from 0'): energy_in_mask(-BAD, objects(2))
    with refuses('unknown baseline', 'blur'): perturbation_curves(net, noise(2, 3, 32, 32), BAD, baseline='blurr')
    with refuses('steps 0'): perturbation_curves(net, noise(2, 3, 32, 32), BAD, steps=0)
    with refuses("'trunk.stages.1'"): randomization(CONTROLS, net, noise(2, 3, 32, 32), parts=['trunk.stagse.1'])
    with refuses('windows of 7'): ssim(noise(2, 4, 4), noise(2, 4, 4))
    with refuses('expected the same'): iou(objects(2), objects(3))
    with refuses('no attention maps'): interventions(tiny_net('vgg_gap'), BAD, BAD, objects(2))
    with refuses('[B,h,w]'): as_maps(None)


def test_wrong_numbers_of_things_are_refused(net):
    m, x, masks = noise(2, SIDE, SIDE), noise(2, 3, 32, 32), objects(2, 32)
    for score in spearman, ssim:
        for other in noise(3, SIDE, SIDE), noise(2, 8, 8):
            with refuses(tuple(other.shape), 'expected the same'): score(m, other)
    for score in perturbation_curves, infidelity:
        with refuses('target [99, 0]', 'from 0 to 3'): score(net, x, m, torch.tensor([99, 0]))
        with refuses('target [1, 2, 3]', '2 images'): score(net, x, m, [1, 2, 3])
        for a, b in zip(score(net, x, m, 3), score(net, x, m, [3, 3])): assert a.equal(b)   # one class for all
    for window in 40, 2.5, 0, -1:
        with refuses(f'window {window}'): infidelity(net, x, m, window=window)
    pixels = (x * 255).byte()
    with refuses('target [1, 2, 3]'): evaluate_explainers(CONTROLS, net, pixels, masks, target=[1, 2, 3])
    with refuses('2 images, 1 labels, 2 masks'): interventions(net, pixels, [0], masks)
    with refuses('2 images, 2 labels, 1 masks'): interventions(net, pixels, [0, 1], masks[:1])
    with refuses('at least two'): interventions(net, pixels[:1], [0], masks[:1])


def test_logits_that_are_not_numbers_are_refused(net):
    import copy
    broken, x, m = copy.deepcopy(net), noise(2, 3, 32, 32), noise(2, SIDE, SIDE)
    for p in broken.head.parameters(): torch.nn.init.constant_(p, float('nan'))
    for run in (lambda: perturbation_curves(broken, x, m, 0), lambda: infidelity(broken, x, m, 0),
                lambda: interventions(broken, (x * 255).byte(), [0, 1], objects(2, 32))):
        with refuses('image 0', 'answers with NaN or infinite values'): run()


class Tuple(torch.nn.Module):
    def forward(self, x): return x.mean((2, 3)), x


def test_a_network_that_returns_a_tuple_is_refused():
    x = noise(2, 3, 32, 32)
    for run in (lambda: perturbation_curves(Tuple(), x, BAD), lambda: infidelity(Tuple(), x, BAD),
                lambda: evaluate_explainers(CONTROLS, Tuple(), (x * 255).byte(), objects(2, 32))):
        with refuses('returns a tuple of 2', 'expected logits'): run()
