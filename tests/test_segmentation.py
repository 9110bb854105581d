"""Segmentation: loaders on small archives of the published layout, damaged too; masks, noise, thresholds."""
import json

import measure_segmentation as tool
import numpy as np
import pytest
import torch
from helpers import pictures, random, refuses, tiny_net
from PIL import Image

from ltpa.models import save_weights
from ltpa.folders import MaskedImages, load_pairs
from ltpa.published import OBJECT_DISCOVERY, load_object_discovery
from ltpa.segmentation import (
    UNet, attention_maps, attention_parts, best_temperature, best_threshold, blend, class_maps, compare,
    cut, draw, grabcut, largest, mean_jaccard, opencv_saliency, soften, train_unet)


def save(path, array, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kw)


def truth(k, H=20, W=24):
    m = np.zeros((H, W), bool)
    m[4:12, 3 + k % 5:15] = True
    return m


def photo(k, H=20, W=24): return np.random.default_rng(k).integers(0, 255, (H, W, 3), np.uint8)


@pytest.fixture
def pairs(tmp_path):
    for k in range(4):
        save(tmp_path / f'images/h{k}.png', photo(k, 20 + k))
        save(tmp_path / f'masks/h{k}.png', truth(k, 20 + k))                      # one bit a pixel
    return tmp_path


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp('Data')
    for k in range(100):
        save(root / f'Airplane100/{k:04}.jpg', photo(k))
        save(root / f'Airplane100/GroundTruth/{k:04}.png', truth(k) & (k % 10 > 0))          # ten without object
    return root


@pytest.fixture(scope='module')
def whole_archive(archive, tmp_path_factory):
    root = tmp_path_factory.mktemp('whole')
    for subset in OBJECT_DISCOVERY: (root / subset).symlink_to(archive / 'Airplane100')
    return root


@pytest.fixture
def damaged(archive, tmp_path):
    "The archive, with links in place of files, to be damaged"
    for f in archive.rglob('*.*'):
        new = tmp_path / f.relative_to(archive)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.hardlink_to(f)
    return tmp_path / 'Airplane100'


def test_pairs_keep_their_sizes_and_belong_together(pairs):
    data = load_pairs(pairs)
    assert data.names == ['h0', 'h1', 'h2', 'h3'] and not data.noise.any()
    for k, (x, m) in enumerate(zip(data.images, data.masks)):
        assert x.numpy().transpose(1, 2, 0).tobytes() == photo(k, 20 + k).tobytes()
        assert (m.numpy() == truth(k, 20 + k)).all()
    x, m = data.fitted(32, 16)
    assert x.shape == (4, 3, 32, 32) and m.shape == (4, 16, 16) and x.dtype == torch.uint8 and m.dtype == torch.bool
    assert (m.float().mean((1, 2)) - torch.tensor([v.float().mean() for v in data.masks])).abs().max() < .05


@pytest.mark.parametrize('values', [(0, 255), (0, 1), (3, 250)], ids=str)
def test_masks_of_several_kinds(pairs, values):
    for k in range(4): save(pairs / f'masks/h{k}.png', np.where(truth(k, 20 + k), *values[::-1]).astype(np.uint8))
    assert (load_pairs(pairs).masks[2].numpy() == truth(2, 22)).all()


def test_an_object_is_above_half_of_the_largest_value(pairs):
    gray = np.full((21, 24), 100, np.uint8)                               # not 0, and less than half of 240
    gray[:, :6], gray[:, 6:9] = 240, 140
    save(pairs / 'masks/h1.png', gray)
    m = load_pairs(pairs).masks[1]
    assert m[:, :9].all() and not m[:, 9:].any()


@pytest.mark.parametrize('top', [1, 255, 65535])
@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_masks_of_16_bits(pairs, top, ending):
    (pairs / 'masks/h2.png').unlink()
    save(pairs / f'masks/h2.{ending}', truth(2, 22).astype(np.uint16) * top)
    assert (load_pairs(pairs).masks[2].numpy() == truth(2, 22)).all()


def test_masks_of_floats(pairs):
    (pairs / 'masks/h2.png').unlink()
    save(pairs / 'masks/h2.tif', truth(2, 22).astype(np.float32))
    assert (load_pairs(pairs).masks[2].numpy() == truth(2, 22)).all()


@pytest.mark.parametrize('kind', [np.uint8, np.uint16])
def test_class_numbers_are_no_mask(pairs, kind):
    save(pairs / 'masks/h1.png', truth(1, 21).astype(kind) * 7)
    with refuses('h1.png', 'values up to 7', '0 and 255'): load_pairs(pairs)


def test_a_mask_in_the_alpha_channel(pairs):
    m = truth(1, 21)
    rgba = np.zeros((*m.shape, 4), np.uint8)
    rgba[..., 3] = 255 * m
    save(pairs / 'masks/h1.png', rgba)
    with refuses('h1.png', 'transparent pixels', 'without alpha'): load_pairs(pairs)
    rgba[..., :3], rgba[..., 3] = 255 * m[..., None], 255                              # opaque: nothing is hidden
    save(pairs / 'masks/h1.png', rgba)
    assert (load_pairs(pairs).masks[1].numpy() == m).all()


@pytest.mark.parametrize('sizes', [(0,), (32, 0), (-3,), (8, 2.5)], ids=str)
def test_fitted_to_nothing(pairs, sizes):
    with refuses(f'size {sizes[-1]}', 'whole number of pixels, at least 1'): load_pairs(pairs).fitted(*sizes)


def test_a_mask_of_another_size(pairs):
    save(pairs / 'masks/h3.png', truth(3, 20))
    with refuses('h3', '24x23', '24x20', 'expected the same'): load_pairs(pairs)


def test_what_is_missing_from_pairs(pairs):
    (pairs / 'masks/h2.png').unlink()
    with refuses('h2.png', 'has no mask', "missing='noise'"): load_pairs(pairs)
    assert load_pairs(pairs, missing='noise').noise.tolist() == [False, False, True, False]
    with refuses('unknown meaning of a missing mask', 'noise'): load_pairs(pairs, missing='nois')
    (pairs / 'images/h1.png').unlink()
    with refuses('masks/h1.png', 'mask of no image'): load_pairs(pairs)
    for k in (0, 1, 3): (pairs / f'masks/h{k}.png').unlink()
    with refuses('masks', 'holds no images'): load_pairs(pairs)
    (pairs / 'masks').rmdir()
    with refuses('masks', 'no such folder'): load_pairs(pairs)


def test_two_files_of_one_name(pairs):
    save(pairs / 'images/h1.jpg', photo(1, 21))
    with refuses('h1.jpg', 'h1.png', 'remove one'): load_pairs(pairs)


@pytest.mark.parametrize('file', ['images/h1.png', 'masks/h1.png'])
@pytest.mark.parametrize('keep, words', [(.6, 'damaged'), (0, 'not an image')])
def test_corrupt_members(pairs, file, keep, words):
    path = pairs / file
    path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
    with refuses(file, words): load_pairs(pairs)


def test_object_discovery_as_published(archive):
    data = load_object_discovery(archive, 'Airplane100')
    assert len(data) == 100 and data.name == 'Airplane100'
    assert data.noise.nonzero().flatten().tolist() == list(range(0, 100, 10))
    assert (data.masks[7].numpy() == truth(7)).all()


def test_object_discovery_damaged(damaged):
    root = damaged.parent
    with refuses('Car100', 'no such folder'): load_object_discovery(root, 'Car100')
    with refuses('unknown subset', "'Airplane100'"): load_object_discovery(root, 'Airplane')
    (damaged / 'GroundTruth/0012.png').unlink()
    with refuses('0012.jpg', 'has no mask'): load_object_discovery(root, 'Airplane100')
    assert load_object_discovery(root, 'Airplane100', missing='noise').noise.sum() == 11
    (damaged / '0012.jpg').unlink()
    with refuses('99 images', 'expected 100'): load_object_discovery(root, 'Airplane100')


def test_counts_must_agree():
    x, m = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.bool)
    with refuses('2 images', '1 masks'): MaskedImages([x, x], [m], ['a', 'b'])


def test_noise_is_reported_both_ways():
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[:2, :2] = True
    drawn = masks.clone()
    drawn[2, 0] = True                                         # something where there is nothing; the last is right
    assert mean_jaccard(drawn, masks) == dict(jaccard=1., with_noise=.75, noise=2)
    with refuses('all empty'): mean_jaccard(drawn[2:], masks[2:])


def test_every_score_without_and_with_noise():
    masks = torch.zeros(6, 4, 4, dtype=torch.bool)
    masks[:4, :2] = True
    maps, aside = masks.float(), torch.arange(6) % 2 == 0                # set aside 0, 2, 4; to be scored 1, 3, 5
    maps[4:, 3] = torch.linspace(.1, 1, 4)
    row, = compare(dict(m=maps), masks, aside)
    for k in ('pxap', 'otsu', 'fixed'): assert row[k] == 1
    assert row['otsu_with_noise'] == row['fixed_with_noise'] == pytest.approx(2 / 3) and row['pxap_with_noise'] < 1
    masks[4:] = masks[:2]
    row, = compare(dict(m=maps), masks, aside)
    for k in ('pxap', 'otsu', 'fixed'): assert row[k] == row[k + '_with_noise'] < 1
    assert compare(dict(m=maps), masks, aside)[0]['threshold'] == row['threshold']
    masks[1::2] = False
    with refuses('no object in the 3 masks to be scored'): compare(dict(m=maps), masks, aside)
    with refuses('no object in the 3 masks set aside'): compare(dict(m=maps), masks, ~aside)


def test_thresholds_know_nothing_of_scored_pictures():
    maps = random(8, 6, 6)
    masks, aside = random(8, 6, 6, seed=1) > .5, torch.arange(8) < 4
    before = compare(dict(m=maps), masks, aside)[0]
    masks[~aside] = random(4, 6, 6, seed=2) > -.5
    after = compare(dict(m=maps), masks, aside)[0]
    assert before['threshold'] == after['threshold'] and before['fixed'] != after['fixed']


@pytest.mark.parametrize('above, threshold', [(-1, 0), (.305, .3), (.505, .5), (.985, .98)])
def test_a_fixed_threshold_may_lie_anywhere_from_0_to_98_hundredths(above, threshold):
    "Maps that rise in hundredths from .01 to 1, and masks of all that is above a value."
    maps = (torch.arange(1, 101) / 100).view(1, 10, 10).expand(3, -1, -1)
    assert best_threshold(maps, maps > above) == pytest.approx(threshold)


def test_what_equals_the_threshold_is_not_drawn():
    assert cut(torch.tensor([[[.25, .5, .75]]]), .5).tolist() == [[[False, False, True]]]


@pytest.mark.parametrize('rows', [9, 11])
def test_a_shrunk_pixel_is_of_the_object_if_more_than_half_of_it_was(rows):
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:rows] = True
    data = MaskedImages([torch.zeros(3, 20, 20, dtype=torch.uint8)], [mask], ['one'])
    assert data.fitted(8, 1)[1].item() == (rows > 10)


@pytest.mark.parametrize('how', ['product', 'mean'])
def test_blend_does_not_see_scale_or_offset(how):
    levels = [random(2, 8, 8), random(2, 4, 4, seed=1)]
    moved = [3 * levels[0] - 7, levels[1] / 100 + 5]
    a, b = (blend(x, (16, 24), how) for x in (levels, moved))
    assert a.shape == (2, 16, 24) and a.aminmax() == (0, 1)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not blend(torch.ones(1, 4, 4), 8, how).any()
    with refuses('unknown way to combine', 'product'): blend(levels, 16, 'sum')
    with refuses('NaN'): blend(levels[0] * float('nan'), 16, how)


def test_hot_softmax_is_the_scores():
    scores = [random(3, 8, 8), random(3, 4, 4, seed=1)]
    torch.testing.assert_close(blend(soften(scores, 1000.), 16), blend(scores, 16), rtol=0, atol=.01)


def test_a_constant_map_draws_nothing():
    assert not cut(torch.full((2, 5, 5), .3)).any()
    row, = compare(dict(flat=torch.ones(4, 4, 4)), torch.ones(4, 4, 4, dtype=torch.bool), torch.arange(4) < 2)
    assert row['otsu'] == 0


@pytest.mark.parametrize('name', ['vgg_att1_dp', 'vgg_att3_indep_pc', 'resnet164_att2_concat_pc'])
def test_every_attention_network(name):
    net, images = tiny_net(name), pictures(4, 32).images
    net.train()
    weights, scores = attention_parts(net, images, batch_size=3)
    assert net.training
    for a, c in zip(weights, scores): torch.testing.assert_close(a.flatten(1), c.flatten(1).softmax(1))
    maps = attention_maps(net, images, (32, 40), temperature=4)
    assert all(m.shape == (4, 32, 40) for m in maps.values()) and len(maps) == 2 * (len(weights) + 2) + 1
    masks = torch.rand(4, 32, 32) > .5
    assert best_temperature(scores, masks) >= 1
    assert all(m.shape == (4, 32, 32) for m in class_maps(net, images, torch.zeros(4).long(), 32).values())


def test_largest_agrees_with_scikit_image():
    from skimage.measure import label
    masks = torch.rand(5, 20, 20, generator=torch.Generator().manual_seed(0)) > .5
    for m, kept in zip(masks, largest(masks)):
        pieces = label(m.numpy(), connectivity=1)
        sizes = np.bincount(pieces.ravel())[1:]
        assert kept.sum() == sizes.max() and len(np.unique(pieces[kept.numpy()])) == 1


def test_without_opencv(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'cv2', None)
    x = pictures(2, 32).images
    for f in (opencv_saliency, lambda x: grabcut(x, x[:, 0] > 90)):
        with refuses('OpenCV is not installed', 'pip install opencv-contrib-python-headless'): f(x)


def test_opencv():
    pytest.importorskip('cv2.saliency')
    x = torch.full((1, 3, 32, 32), 40, dtype=torch.uint8)
    x[:, :2, 8:24, 8:24] = 220
    square = torch.zeros(1, 32, 32, dtype=torch.bool)
    square[:, 8:24, 8:24] = True
    rough = square.roll(3, 2)
    assert (grabcut(x, rough) & square).sum() > .95 * square.sum() and not (grabcut(x, rough) & ~square).any()
    assert grabcut(x, ~square | square).all() and not grabcut(x, square & ~square).any()
    for kind in ('SpectralResidual', 'FineGrained'): assert opencv_saliency(x, kind).shape == (1, 32, 32)
    with refuses('unknown kind of saliency', 'FineGrained'): opencv_saliency(x, 'Fine')


def test_unet_learns_and_repeats():
    x = pictures(16, 16).images
    masks = torch.zeros(16, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    x[:, :, 4:12, 4:12] = 250
    a, b = (train_unet(x, masks, steps=15) for _ in range(2))
    assert draw(a, x).equal(draw(b, x)) and draw(a, x)[masks].mean() > draw(a, x)[~masks].mean() + .3
    assert UNet()(torch.rand(2, 3, 8, 12)).shape == (2, 8, 12)


CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()


@pytest.fixture
def studies(tmp_path, monkeypatch):
    "The tool beside no networks but those that its training would make; asked: what it trained"
    asked = []

    def run(target, folder, size, seed, device, **case):
        data, model = target.split('/')
        asked.append((data, model, size, seed))
        net = tiny_net(model, 10, seed) if model == 'vgg_gap' else tiny_net(model, 10, seed, width=1 / 16)
        save_weights(net, folder / 'weights.safetensors', classes=CIFAR10)
        (folder / 'result.json').write_text('{}')

    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr('ltpa.studies.run_training', run)
    monkeypatch.setattr('ltpa.studies._same_training', lambda *a: None)           # these are smaller than planned
    monkeypatch.setattr(tool, 'train_unet', lambda images, masks, steps, seed: UNet(2))
    monkeypatch.setattr(tool, 'OF_PHOTOS', ('vgg_gap', 'vgg_pan'))
    return asked


def measured(out, *options):
    tool.main([*options, '--out', str(out), '--most', '10', '12'])
    return json.loads(out.read_text())


@pytest.mark.whole       # test_bundled_set runs the same tool
@pytest.mark.slow
def test_object_discovery_recipe(whole_archive, studies, tmp_path, monkeypatch, capsys):
    labels = {}
    kept = tool.class_maps
    def class_maps(net, images, y, size):
        labels.setdefault(net.name, []).append(set(y.tolist()))
        return kept(net, images, y, size)
    monkeypatch.setattr(tool, 'class_maps', class_maps)
    found = measured(tmp_path / 'r.json', '--no-bundled', '--object-discovery', str(whole_archive))
    assert studies == [('cifar10', m, 'cifar', 0) for m in tool.OF_PHOTOS]
    assert labels['vgg_gap'] == [{0}, {0}, {1}, {1}, {7}, {7}]                     # each at two sizes of the picture
    assert 'one seed only: vgg_gap (CIFAR-10) on Object Discovery Airplane100' in capsys.readouterr().out
    rows = found['rows']
    for subset in OBJECT_DISCOVERY:
        here = [r for r in rows if subset in r['data']]
        assert {'CAM', "PAN's gate", 'centre', 'the whole picture'} <= {r['way'] for r in here}
        for r in here:
            if r['way'] in ('CAM', 'centre', 'the whole picture'):
                assert all(r[k + '_with_noise'] < r[k] for k in ('pxap', 'otsu', 'fixed')), r
            if r['model']: assert (r['seeds'], r['splits']) == (1, 3)
    assert {r['data'] for r in rows if 'otsu' not in r} == {'ClutteredFashion', 'photographs'}     # not run, and said
    for record in found['sets']:
        assert set(record['weights']) == set(tool.OF_PHOTOS) and record['fingerprint'] and record['when']


def test_rows_of_other_sets_stay(pairs, studies, tmp_path):
    out = tmp_path / 'r.json'
    old = [dict(data='ClutteredFashion, 32 pixels', model='m', way='w', otsu=.5, seeds=1),
           dict(data='horses, 325 photographs, 32 pixels', model='h (CIFAR-10)', way=''),
           dict(data='horses, 325 photographs, 32 pixels', model='', way='centre', otsu=.4, splits=3),
           dict(data='photographs', model='', way='')]
    out.write_text(json.dumps(dict(title='', rows=old, provenance=dict(commit='abc', when='then'))))
    for again in range(2):
        found = measured(out, '--no-bundled', '--no-train', '--photos', str(pairs))
        names = [r['data'] for r in found['rows']]
        assert all(r in found['rows'] for r in old[:3]) and old[3] not in found['rows'] and 'Object Discovery' in names
        assert names[0].startswith('ClutteredFashion') and len(names) == len({str(r) for r in found['rows']})
        assert [r['commit'] for r in found['sets'] if r['data'] == old[1]['data']] == ['abc']
    assert studies == [] and {r['model'] for r in found['rows'] if r['data'].startswith(pairs.name) and r['model']} == {
        'vgg_gap (CIFAR-10)', 'vgg_pan (CIFAR-10)'}                                # not run, and said


def test_networks_are_trained_where_they_are_missing(studies, monkeypatch):
    assert len(tool.networks('cluttered_fashion', 'vgg_pan', (0, 2), True)) == 2
    assert len(tool.networks('cluttered_fashion', 'vgg_pan', (0, 1, 2), True)) == 3
    assert studies == [('cluttered_fashion', 'vgg_pan', 'small', k) for k in (0, 2, 1)]
    assert len(tool.networks('cifar10', 'vgg_pan', (0,), False)) == 0
    rows = [dict(data='a', model='m', otsu=1, seeds=1), dict(data='a', model='m', otsu=1, splits=3),
            dict(data='b', model='', otsu=1, seeds=1), dict(data='c', model='n', otsu=1, seeds=3),
            dict(data='c', model='o')]
    assert tool.one_seed(rows) == ['m on a']
    with refuses('nothing to measure', '--photos'): tool.main(['--no-bundled'])


def test_networks_of_several_seeds_meet_several_splits(studies, tmp_path, pairs):
    found = measured(tmp_path / 'r.json', '--no-bundled', '--photos', str(pairs), '--cifar-seeds', '0', '1', '2')
    rows = [r for r in found['rows'] if r['model'].startswith('vgg_gap')]
    assert len(rows) == 2 and all(r['seeds'] == r['splits'] == 3 for r in rows)
    with refuses('4 seeds', 'at most 3'):
        measured(tmp_path / 'r.json', '--photos', str(pairs), '--cifar-seeds', *'0123')


@pytest.mark.slow
def test_bundled_set(studies, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'MODELS', ('vgg_att3_concat_pc', 'vgg_pan'))
    found = measured(tmp_path / 'r.json')
    at32 = [r for r in found['rows'] if r['data'] == 'ClutteredFashion, 32 pixels']
    assert {r['model'] for r in at32} == {'', *tool.MODELS} and all(r['seeds'] == 3 for r in at32 if r['model'])
    assert len(found['sets'][0]['weights']['vgg_pan']) == 3 and len(found['sets']) == 4
    assert len(studies) == 3 * len(tool.MODELS)
