"""Trainings that repeat, stop, resume, diverge and are refused, all on one tiny set."""
import ast
import json
import math
import pickle
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Touch, differing, pictures, random, refuses, tiny_net, words_id

from ltpa.names import PRECISIONS, LtpaError
from ltpa.core import pick_precision
from ltpa.data import ClutteredFashion
from ltpa.grids import Grid
from ltpa.models import gmac, load_weights, save_weights
from ltpa.names import RECIPES, get_recipe
from ltpa.weights import read_tensors, write_tensors
from ltpa import training
from ltpa.training import (
    Callback, Learner, Progress, Stop, accuracy, evaluate, make_optimizer, pointing_hits, predict)
from ltpa.checkpoints import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint

SHORT = dict(epochs=2, batch_size=8, lr=.01)                  # on 28 pictures: 2 passes of 3 steps


def learner(*callbacks, name='vgg_gap', seed=0, size=16, net=(), n=28, classes=3, **changes):
    return Learner(tiny_net(name, classes, seed, **dict(net)), pictures(n, size, classes),
                   get_recipe('fast', **SHORT | changes), seed, callbacks=callbacks)


def everything(learn):
    "All that the rest of a training depends on, as one dict of tensors."
    opt = {f'{k}.{n}': v for n, p in learn.net.named_parameters() for k, v in learn.opt.state[p].items()}
    return dict(learn.net.state_dict()) | opt | dict(losses=torch.stack(learn.losses), **learn.rng)


class Do(Callback):
    "Calls `what(learn)` after step `step`."
    def __init__(self, step, what): self.step, self.what = step, what
    def after_step(self, learn):
        if learn.step == self.step: self.what(learn)


def stop(learn): raise Stop


class Kill(BaseException): "Stands for a process that is killed: nothing in the library may catch it."


def kill(learn): raise Kill


# The same again, to the bit

ATT = dict(name='vgg_att2_concat_dp', size=32, net=dict(dropout=True), crop=3, optimizer='adamw')
SGD = dict(net=dict(dropout=True), crop=2, optimizer='sgd', schedule='halve', clip=.5, precision='fp32')
HALF = ATT | dict(precision='fp16', clip=1.)
HOW = dict(sgd=SGD, adamw=ATT, muon=ATT | dict(optimizer='muon'), half=HALF, half_sgd=HALF | dict(optimizer='sgd'))


@pytest.mark.parametrize('how', [SGD, ATT, HOW['muon'], ATT | dict(name='vgg_pan'),
                                 dict(optimizer='sgd', momentum=0.)],
                         ids=['sgd', 'adamw', 'muon', 'pan', 'no momentum'])
def test_same_seed_same_bits(how):
    first = everything(learner(**how).fit())
    torch.rand(7)
    assert not differing(first, everything(learner(**how).fit()))
    assert len(differing(first, everything(learner(**how, seed=1).fit()))) > len(first) / 2


@pytest.fixture(scope='module')
def wholes(): return {name: everything(learner(**how).fit()) for name, how in HOW.items()}


@pytest.mark.parametrize('name', HOW)
@pytest.mark.parametrize('at', range(1, 7))
def test_stopped_anywhere_and_resumed(name, at, wholes, tmp_path):
    how = HOW[name]
    path = tmp_path / 'c.safetensors'
    stopped = learner(Do(at, stop), Checkpoint(path), **how).fit()
    assert stopped.step == at and not stopped.net.training
    torch.manual_seed(99)
    resumed = load_checkpoint(learner(**how), path)
    assert resumed.step == at and len(resumed.losses) == at
    assert not differing(wholes[name], everything(resumed.fit()))


def test_stopped_twice_and_resumed_by_the_same_learner(wholes):
    learn = learner(Do(2, stop), Do(5, stop), **ATT)
    for step in 2, 5, 6:
        torch.rand(3)
        assert learn.fit().step == step
    assert not differing(wholes['adamw'], everything(learn))


class Shown(Progress):
    "Draws as in a notebook, and keeps the pictures."
    def __init__(self, watch):
        super().__init__(every=0, watch=watch)
        self.figures = []

    def before_fit(self, learn):
        super().before_fit(learn)
        self.show = training._Live.__new__(training._Live)
        self.show.progress, self.show.handle = self, SimpleNamespace(update=self.figures.append)


def test_watching_changes_no_bit_and_no_mode(wholes, capfd):
    others = pictures(12, 32, name='others')
    progress = Shown(others)
    learn = learner(progress, Do(2, lambda learn: modes.append(learn.net.training)), Do(3, stop), **ATT)
    modes = []
    assert learn.fit().step == 3 and learn.fit().step == 6
    assert not differing(wholes['adamw'], everything(learn)) and modes == [True]
    assert [s['step'] for s in progress.seen] == list(range(7)), 'each moment once, however often it was stopped'
    assert progress.seen[-1]['accuracy'] == evaluate(learn.net, others)['accuracy']
    assert [m.shape for m in progress.seen[0]['maps']] == [m[:8].shape for m in predict(learn.net, others.images)[1]]
    said = [fig.get_suptitle() for fig in progress.figures]
    assert all('of 12 held-out pictures right' in text for text in said)
    assert 'minutes left' in said[0] and 'minutes left' not in said[-1]
    assert not ''.join(capfd.readouterr()), 'a log file stays quiet'


@pytest.mark.parametrize('name, data', [('vgg_gap', 'plain'), ('vgg_att1_pc', 'plain'), ('vgg_att1_pc', 'masks'), ('vgg_gap', None)])
def test_what_is_drawn_fits_what_is_watched(name, data):
    watch = dict(plain=pictures(12, 32), masks=ClutteredFashion('test', n=9)).get(data)
    classes = 10 if data == 'masks' else 3
    progress = Shown(watch)
    Learner(tiny_net(name, classes), pictures(28, 32, classes), get_recipe('fast', **SHORT), callbacks=[progress]).fit()
    axes = progress.figures[-1].axes
    assert len(axes) == 1 + (watch is not None) + (watch is not None and 'att' in name)
    if len(axes) < 3: return
    assert axes[2].texts[0].get_text() == 'the picture' and axes[2].texts[-1].get_text().startswith('epoch 2\n')
    assert bool(axes[2].collections) == (data == 'masks'), 'an outline where it is known'


def test_time_left_is_that_of_the_steps_to_come(monkeypatch):
    progress = Progress()
    progress.began = 100., 20                              # seconds on the clock, and the step it began at
    monkeypatch.setattr(training.time, 'monotonic', lambda: 130.)
    assert progress.left(SimpleNamespace(step=30, steps=50)) == 60


@pytest.mark.parametrize('every, at, left', [(2, 3, 2), (2, 5, 4), (1, 4, 4), (None, 4, 3), (None, 5, 3)])
def test_killed_and_resumed_from_the_last_checkpoint(every, at, left, wholes, tmp_path):
    path = tmp_path / 'c.safetensors'
    with pytest.raises(Kill): learner(Checkpoint(path, every), Do(at, kill), **ATT).fit()
    resumed = load_checkpoint(learner(**ATT), path)
    assert resumed.step == left
    assert not differing(wholes['adamw'], everything(resumed.fit()))


def test_checkpoint_before_the_first_step(wholes, tmp_path):
    "It holds the learner's own random state, whatever was drawn since the learner was made."
    learn = learner(**ATT)
    torch.rand(5)
    save_checkpoint(learn, tmp_path / 'c.safetensors')
    resumed = load_checkpoint(learner(**ATT), tmp_path / 'c.safetensors')
    assert not differing(wholes['adamw'], everything(resumed.fit()))


def test_files_from_when_the_switch_was_spelled_colour(tmp_path):
    "`load_weights` and `load_checkpoint` read them; what comes out is called `color`."
    how, path = dict(net=dict(color='yuv_lcn')), tmp_path / 'c.safetensors'
    learner(Do(2, stop), Checkpoint(path), **how).fit()
    whole = learner(**how).fit()
    weights = save_weights(whole.net, tmp_path / 'w.safetensors')
    want = load_weights(weights).state_dict()
    for file in path, weights:
        state, meta = read_tensors(file)
        old = {'colour' if k == 'color' else k: v for k, v in meta['config'].items()}
        assert old != meta['config']
        write_tensors(file, state, meta | dict(config=old))
        assert b'colour' in file.read_bytes() and read_tensors(file)[1] == meta
    net = load_weights(weights)
    assert net.color == 'yuv_lcn' and not differing(net.state_dict(), want)
    assert not differing(everything(load_checkpoint(learner(**how), path).fit()), everything(whole))
    with refuses('another settings', 'yuv_lcn'): load_checkpoint(learner(), path)


def test_checkpoint_without_momentum(tmp_path):
    plain, path = dict(optimizer='sgd', momentum=0.), tmp_path / 'c.safetensors'
    learner(Do(2, stop), Checkpoint(path), **plain).fit()
    resumed = load_checkpoint(learner(**plain), path).fit()
    assert not differing(everything(learner(**plain).fit()), everything(resumed))


def test_rendered_set_resumes_too(tmp_path):
    def learn(*callbacks):
        data = ClutteredFashion('train', 16, n=24)
        return Learner(tiny_net(classes=10), data, get_recipe('fast', **SHORT), callbacks=callbacks)
    whole, path = everything(learn().fit()), tmp_path / 'c.safetensors'
    learn(Do(4, stop), Checkpoint(path)).fit()
    assert not differing(whole, everything(load_checkpoint(learn(), path).fit()))


def test_resuming_a_finished_training_changes_nothing(tmp_path):
    done = learner(Checkpoint(tmp_path / 'c.safetensors')).fit()
    again = load_checkpoint(learner(), tmp_path / 'c.safetensors').fit()
    assert not differing(everything(done), everything(again))


def test_checkpoint_serves_as_weights(tmp_path):
    done = learner(Checkpoint(tmp_path / 'c.safetensors', source=dict(source='here'))).fit()
    net = load_weights(tmp_path / 'c.safetensors')
    assert not differing(done.net.state_dict(), net.state_dict()) and net.info['source']['source'] == 'here'


# Speed changes nothing

def test_scaler_leaves_out_steps_that_overflow_and_resumes_with_its_factor(tmp_path):
    how, path, factors = HALF | dict(epochs=4), tmp_path / 'c.safetensors', []
    def learn(*callbacks):
        learn = learner(*callbacks, **how)
        learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**20, growth_interval=3)
        return learn
    class Watch(Callback):
        def after_step(self, learn): factors.append(learn.scaler.get_scale())
    whole = everything(learn(Watch()).fit())
    changes = [b / a for a, b in zip([2.**20, *factors], factors)]
    assert {.5, 1., 2.} <= set(changes), 'it should have shrunk, stayed and grown'
    assert not factors[4] == factors[11]
    learn(Do(5, stop), Checkpoint(path)).fit()
    assert read_checkpoint(path)[1]['scaler']['scale'] == factors[4]
    resumed = load_checkpoint(learn(), path)
    assert not differing(whole, everything(resumed.fit())) and resumed.scaler.get_scale() == factors[11]


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'muon'])
def test_score_vectors_have_their_own_rate_and_decay(optimizer):
    "After one step u has gone ten times as far, without decay from elsewhere; all else has gone where it goes."
    def moved(**how):
        learn = learner(name='vgg_att2_concat_pc', size=32, optimizer=optimizer, weight_decay=.5, epochs=1, batch_size=28, warmup=0., **how)
        before = {k: p.detach().clone() for k, p in learn.net.named_parameters()}
        learn.fit()
        return {k: p.detach() - before[k] for k, p in learn.net.named_parameters()}, before
    usual, before = moved()
    fast, still = moved(u_lr=10.)[0], moved(u_decay=False)[0]
    assert learner(name='vgg_att2_concat_pc', size=32, epochs=1, batch_size=28, warmup=0.).recipe.lr_at(0, 1) == .005, 'of one step'
    for k, d in usual.items():
        if k.endswith('.u.weight'):
            torch.testing.assert_close(fast[k], 10 * d, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(still[k] - d, .005 * .5 * before[k], rtol=1e-3, atol=1e-7)
        else: assert fast[k].equal(d) and still[k].equal(d), k


@pytest.mark.parametrize('side', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_muon_sees_a_convolution_as_a_matrix(layout, side):
    "Equal to PyTorch's Muon on the flattened kernel and to AdamW on the rest, whatever the memory layout."
    kernel, bias = torch.nn.Parameter(random(6, 4, side, side).to(memory_format=layout)), torch.nn.Parameter(random(6))
    matrix, vector = torch.nn.Parameter(kernel.detach().flatten(1)), torch.nn.Parameter(bias.detach().clone())
    ours = make_optimizer(get_recipe('fast', optimizer='muon', weight_decay=.1), [kernel, bias])
    theirs = (torch.optim.Muon([matrix], .1, weight_decay=.1, adjust_lr_fn='match_rms_adamw'),
              torch.optim.AdamW([vector], .1, (.9, .98), weight_decay=.1, fused=True))
    for step in range(3):
        grads = random(6, 4, side, side, seed=step), random(6, seed=10 + step)
        kernel.grad, bias.grad = grads[0].to(memory_format=layout), grads[1].clone()
        matrix.grad, vector.grad = grads[0].flatten(1), grads[1].clone()
        for opt in (ours, *theirs):
            for group in opt.param_groups: group['lr'] = .1 / (step + 1)
            opt.step()
    assert kernel.detach().flatten(1).equal(matrix) and bias.equal(vector)
    assert kernel.is_contiguous(memory_format=layout)
    ours.zero_grad()
    assert kernel.grad is None and bias.grad is None


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'muon'])
def test_first_step_that_overflows_leaves_no_trace(optimizer):
    learn = learner(optimizer=optimizer, precision='fp16', net=dict(dropout=False), epochs=1)
    before = {k: v.clone() for k, v in learn.net.named_parameters()}
    learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**100)
    junk = [torch.full_like(p, 1e9) for p in learn.net.parameters() for _ in range(9)]      # what lies in memory
    del junk
    learn.fit()
    assert not differing(before, dict(learn.net.named_parameters()))
    assert all(not v.any() for state in learn.opt.state.values() for v in state.values())


@pytest.mark.parametrize('bf16, kind, want', [
    (True, 'cuda', 'bf16'), (False, 'cuda', 'fp16'), (True, 'cpu', 'bf16'), (False, 'cpu', 'fp32'),
    (False, 'mps', 'fp32')])
def test_auto_precision(bf16, kind, want, monkeypatch):
    monkeypatch.setattr('ltpa.core.has_bf16', lambda device: bf16)
    assert pick_precision(kind) == pick_precision(torch.device(kind), 'auto') == want
    assert [pick_precision(kind, name) for name in PRECISIONS] == list(PRECISIONS)


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_fused_optimizer_is_the_plain_one(optimizer, monkeypatch):
    fused = learner(optimizer=optimizer)
    assert fused.opt.defaults['fused']
    plain = learner(optimizer=optimizer)
    for group in plain.opt.param_groups: group['fused'] = False
    fused.fit(), plain.fit()
    torch.testing.assert_close(dict(fused.net.named_parameters()), dict(plain.net.named_parameters()))


def test_loaded_means_lie_in_memory_as_their_weights_do(tmp_path):
    path = tmp_path / 'c.safetensors'
    learner(Do(2, stop), Checkpoint(path), **ATT).fit()
    learn = load_checkpoint(learner(**ATT), path)
    assert any(not p.is_contiguous() for p in learn.net.parameters()), 'nothing is channels_last'
    for p in learn.net.parameters():
        assert {v.stride() for v in learn.opt.state[p].values() if v.ndim} == {p.stride()}


@pytest.fixture
def quick_compiler(monkeypatch):
    "Everything that torch.compile does except writing kernels, which takes a minute."
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))


@pytest.mark.whole
def test_compiled_training_changes_neither_maps_nor_names_nor_resuming(quick_compiler, tmp_path):
    how, path = ATT | dict(compile=True, precision='fp32'), tmp_path / 'c.safetensors'
    runs = CompileCounter()
    whole = learner(runs, **how).fit()
    assert runs.graphs and not runs.breaks, 'the step is one graph'
    plain = learner(**how | dict(compile=False)).fit()
    assert plain.losses[0] == pytest.approx(whole.losses[0].item(), rel=1e-4)
    assert list(whole.net.state_dict()) == list(plain.net.state_dict())
    x = pictures(5, 32).images / 255
    maps = whole.net(x).maps
    copy = tiny_net(ATT['name'], **ATT['net']).eval()
    copy.load_state_dict(whole.net.state_dict())
    assert [tuple(m.shape) for m in maps] == [(5, 4, 4), (5, 2, 2)]
    for a, b in zip(maps, copy(x).maps): torch.testing.assert_close(a, b)
    learner(Do(4, stop), Checkpoint(path), **how).fit()
    assert not differing(everything(whole), everything(load_checkpoint(learner(**how), path).fit()))
    with refuses('another recipe: compile=True, not False'):
        load_checkpoint(learner(**how | dict(compile=False)), path)


class CompileCounter(Callback):
    "How many graphs dynamo made of the step, and how often it gave up in between."
    def before_fit(self, learn): torch._dynamo.reset(); torch._dynamo.utils.counters.clear()
    def after_fit(self, learn):
        counters = torch._dynamo.utils.counters
        self.graphs, self.breaks = counters['stats']['unique_graphs'], dict(counters['graph_break'])


def test_nothing_to_compile_with(monkeypatch):
    def no_compiler(f): raise RuntimeError('No working C++ compiler found in g++\nand a long explanation')
    monkeypatch.setattr(torch, 'compile', no_compiler)
    with refuses('compile=True', 'No working C++ compiler', 'install', 'leave compile off'): learner(compile=True)


# Learning

def test_learns_sixteen_pictures_by_heart():
    how = dict(name='vgg_att1_pc', size=32, net=dict(width=1 / 16), flip=False)
    learn = learner(n=16, batch_size=16, epochs=40, **how).fit()
    assert learn.losses[0] > .8 and learn.losses[-1] < .05
    assert evaluate(learn.net, learn.loader.data) == dict(images=16, accuracy=1.)


@pytest.mark.parametrize('optimizer, make', [
    ('sgd', partial(torch.optim.SGD, momentum=.9, weight_decay=5e-4, fused=True)),
    ('adamw', partial(torch.optim.AdamW, betas=(.9, .98), weight_decay=5e-4, fused=True))], ids=['sgd', 'adamw'])
def test_matches_a_loop_written_by_hand(optimizer, make):
    learn = learner(optimizer=optimizer, clip=.7, label_smoothing=.1, weight_decay=5e-4, precision='fp32')
    net, norms = tiny_net().train().to(memory_format=torch.channels_last), []
    opt = make(net.parameters())
    for step, (x, y) in enumerate(batch for epoch in range(2) for batch in learn.loader.epoch(epoch)):
        opt.param_groups[0]['lr'] = learn.recipe.lr_at(step, 3)
        logits = net(x.contiguous(memory_format=torch.channels_last)).logits
        opt.zero_grad()
        torch.nn.functional.cross_entropy(logits, y, label_smoothing=.1).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), .7).item())
        opt.step()
    assert max(norms) > .7, 'the limit was never reached'
    assert not differing(net.state_dict(), learn.fit().net.state_dict())


@pytest.mark.parametrize('clip', [0., .05])
def test_clip_limits_the_norm(clip):
    learn, norms = learner(clip=clip), []
    class Measure(Callback):
        def after_step(self, learn):
            norms.append(torch.stack([p.grad.norm() for p in learn.net.parameters()]).norm().item())
    learn.callbacks.append(Measure())
    learn.fit()
    assert len(norms) == 6 and (max(norms) <= .0501 if clip else max(norms) > .1)


@pytest.mark.parametrize('name, changes', [
    ('paper', {}), ('fast', {}), ('fast', dict(warmup=0.)), ('fast', dict(warmup=.9))])
def test_learning_rates(name, changes):
    r = get_recipe(name, **changes)
    rates = [r.lr_at(s, 10) for s in range(10 * r.epochs)]
    assert all(0 < rate <= r.lr for rate in rates)
    if r.schedule == 'halve':
        assert rates == [r.lr * .5 ** (epoch // 25) for epoch in range(r.epochs) for _ in range(10)]
        assert rates[0] == .1 and rates[249] == .1 and rates[250] == .05 and rates[-1] == .1 / 2**11
    else:
        top = rates.index(max(rates))
        assert abs(top - r.warmup * len(rates)) <= 1 and max(rates) > .8 * r.lr
        assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
        assert rates[-1] < .15 * r.lr and (r.warmup == 0 or rates[0] < .15 * r.lr)


def test_one_cycle_is_a_line_up_and_half_a_cosine_down():
    r = get_recipe('fast', epochs=199, warmup=.2, lr=8.)            # 200 parts: a step ends each but the last
    got = [r.lr_at(part - 1, 1) for part in (20, 40, 80, 120, 160)]
    assert got == pytest.approx([4, 8, 4 + 8**.5, 4, 4 - 8**.5])


def test_fast_climbs_for_a_quarter():
    r = get_recipe('fast', epochs=99)
    rates = [r.lr_at(step, 1) for step in range(99)]
    assert rates.index(max(rates)) == 24 and max(rates) == r.lr


def test_fast_is_the_best_of_the_recipes_that_were_compared():
    path = Path(__file__).parent.parent / 'results' / 'choose_cluttered_fashion.json'
    best = max(json.loads(path.read_text())['rows'], key=lambda row: row['accuracy'])
    r = get_recipe('fast')
    assert (r.optimizer, r.lr, r.epochs) == (best['optimizer'], best['lr'], best['passes'])


def test_paper_recipe():
    r = get_recipe('paper')
    assert (r.optimizer, r.epochs, r.batch_size, r.momentum, r.weight_decay) == ('sgd', 300, 128, .9, 5e-4)
    assert (r.lr, r.flip, r.crop, r.label_smoothing, r.clip) == (.1, True, 0, 0, 0)


def test_openings_in_order():
    heard = []
    class Ear(Callback):
        def __init__(self, name): self.name = name
        def before_fit(self, learn): heard.append((self.name, 'begin', learn.step, learn.net.training))
        def after_step(self, learn): heard.append((self.name, 'step', learn.step, learn.net.training))
        def after_epoch(self, learn): heard.append((self.name, 'epoch', learn.step, learn.net.training))
        def after_fit(self, learn): heard.append((self.name, 'end', learn.step, learn.net.training))
    learner(Ear('a'), Ear('b'), epochs=2, batch_size=14).fit()
    epochs = [('step', 1), ('step', 2), ('epoch', 2), ('step', 3), ('step', 4), ('epoch', 4)]
    moments = [('begin', 0), *epochs, ('end', 4)]
    assert heard == [(name, what, step, what != 'end') for what, step in moments for name in 'ab']


# What goes wrong

@pytest.mark.parametrize('every', [None, 1, 2])
@pytest.mark.parametrize('how', [
    dict(lr=1e25), dict(optimizer='sgd', lr=1e25), dict(optimizer='sgd', lr=3e38)],
    ids=['adamw', 'sgd', 'sgd, weights first'])
def test_divergence_keeps_the_last_good_checkpoint(how, every, tmp_path):
    "With the largest rate the weights are infinite while the last loss was still finite."
    path, how = tmp_path / 'c.safetensors', dict(how, warmup=0.)
    learn = learner(Checkpoint(path, every), **how)
    save_checkpoint(learn, path)
    words = 'at step', f'now at most {how["lr"]:g}', 'clip=1', f'last good checkpoint is {path}'
    with refuses(*words): learn.fit()
    assert all(v.isfinite().all() for v in load_weights(path).state_dict().values())
    assert load_checkpoint(learner(**how), path).step == len(read_checkpoint(path)[0]['losses']) < learn.step


def test_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    def spoil(learn): learn.net.linear.bias.data[0] = torch.nan
    learn = learner(Do(4, spoil), epochs=4)
    with refuses('the loss became nan at step 4 (epoch 1.3)', 'lower the learning rate'): learn.fit()
    assert not learn.net.training


def test_checkpoint_is_refused_when_weights_are_not_finite(tmp_path):
    path = tmp_path / 'c.safetensors'
    learn = learner(Checkpoint(path)).fit()
    before = path.read_bytes()
    learn.net.linear.bias.data[0] = torch.inf
    with refuses('linear.bias', str(path)): save_checkpoint(learn, path)
    assert path.read_bytes() == before


def resumed(tmp_path, made=(), **now):
    path = tmp_path / 'c.safetensors'
    save_checkpoint(learner(Do(2, stop), **dict(made)).fit(), path)
    return load_checkpoint(learner(**now), path)


@pytest.mark.parametrize('now, words', [
    (dict(name='vgg_trunk', size=32), ("another model: 'vgg_gap', not 'vgg_trunk'",)),
    (dict(net=dict(width=1 / 16)), ('another settings: width=0.03125, not 0.0625',)),
    (dict(net=dict(dropout=True)), ('another settings: dropout=False, not True',)),
    (dict(seed=1), ('another seed: 0, not 1',)),
    (dict(epochs=3), ('another recipe: epochs=2, not 3',)),
    (dict(lr=.06), ('another recipe: lr=0.01, not 0.06',)),
    (dict(n=29), ('another data',)),
    (dict(size=32), ('another data',)),
], ids=words_id)
def test_checkpoint_of_something_else(now, words, tmp_path):
    with refuses('c.safetensors was made with', *words, 'resume with the same, or start a new run'):
        resumed(tmp_path, **now)


def test_refused_checkpoint_leaves_the_learner_alone(tmp_path):
    path = tmp_path / 'c.safetensors'
    save_checkpoint(learner(Do(2, stop), seed=1).fit(), path)
    learn = learner()
    with refuses('another seed'): load_checkpoint(learn, path)
    assert not differing(everything(learner().fit()), everything(learn.fit()))


def test_checkpoint_changed_in_any_byte(tmp_path):
    path = tmp_path / 'c.safetensors'
    save_checkpoint(learner(Do(2, stop)).fit(), path)
    whole, want = path.read_bytes(), read_checkpoint(path)
    header = 8 + int.from_bytes(whole[:8], 'little')
    silent = 0
    for at in [*range(0, header, 97), *range(header, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        try: state, meta = read_checkpoint(path)
        except LtpaError as e: assert str(path) in str(e)
        else:                                      # a blank between the header and the numbers says nothing
            silent += 1
            assert not differing(state, want[0]) and meta == want[1] and at < header
    assert silent < 5


@pytest.mark.parametrize('write, words', [
    (lambda path, trap: path.write_bytes(path.read_bytes()[:-9]), ('truncated', 'make or fetch it again')),
    (lambda path, trap: path.write_bytes(b''), ('truncated', 'make or fetch it again')),
    (lambda path, trap: path.write_bytes(pickle.dumps(Touch(trap))), ('pickles are never loaded',)),
    (lambda path, trap: torch.save({'net': Touch(trap)}, path), ('pickles are never loaded',)),
    (lambda path, trap: save_weights(tiny_net(), path), ('holds weights, not a checkpoint', 'only go on')),
    (lambda path, trap: path.unlink(), ('no such file',)),
], ids=words_id)
def test_refused_files(write, words, tmp_path):
    path, trap = tmp_path / 'c.safetensors', tmp_path / 'executed'
    save_checkpoint(learner(), path)
    write(path, trap)
    with refuses(path, *words): load_checkpoint(learner(), path)
    assert not trap.exists()


def test_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with refuses('cannot write', str(tmp_path / 'file'), 'another folder'):
        learner(Checkpoint(tmp_path / 'file' / 'c.safetensors', every=1)).fit()


def test_description_of_a_checkpoint_is_plain_text(tmp_path):
    source = dict(source='here', size=None, scale=None)
    learn = learner(Do(2, stop), Checkpoint(tmp_path / 'c.safetensors', source=source)).fit()
    meta = read_checkpoint(tmp_path / 'c.safetensors')[1]
    want = dict(kind='checkpoint', model='vgg_gap', config=learn.net.config, recipe=asdict(learn.recipe),
                seed=0, step=2, scaler={}, data='noise', fingerprint=learn.loader.data.fingerprint,
                classes=['class0', 'class1', 'class2'], source=source, format=2, threads=1)
    assert meta == json.loads(json.dumps(want))


@pytest.mark.parametrize('changes, words', [
    (dict(epochs=0), ('epochs=0', 'whole number, at least 1')),
    (dict(epochs=1.5), ('epochs=1.5', 'whole number')),
    (dict(batch_size=0), ('batch_size=0', 'at least 1')),
    (dict(lr=0), ('lr=0', 'above 0')),
    (dict(lr=-1.), ('lr=-1.0', 'above 0')),
    (dict(lr=math.nan), ('lr=nan', 'above 0')),
    (dict(lr=math.inf), ('lr=inf', 'above 0')),
    (dict(lr='fast'), ("lr='fast'", 'above 0')),
    (dict(momentum=1.), ('momentum=1.0', 'below 1')),
    (dict(warmup=1.), ('warmup=1.0', 'below 1')),
    (dict(label_smoothing=-.1), ('label_smoothing=-0.1', 'from 0')),
    (dict(weight_decay=-1e-4), ('weight_decay=-0.0001', 'at least 0')),
    (dict(clip=-1.), ('clip=-1.0', 'at least 0')),
    (dict(clip=math.nan), ('clip=nan', 'at least 0')),
    (dict(crop=-1), ('crop=-1', 'at least 0')),
    (dict(u_lr=0), ('u_lr=0', 'above 0')), (dict(u_decay='no'), ("u_decay='no'", 'True or False')),
    (dict(crop=.5), ('crop=0.5', 'whole number')),
    (dict(optimizer='adam'), ("optimizer 'adam'", "'adamw'")),
    (dict(schedule='cosine'), ("schedule 'cosine'", 'onecycle')),
    (dict(precision='bf61'), ("precision 'bf61'", "'bf16'")),
    (dict(nesterov=True, dampening=.5), ('nesterov=True', 'momentum=0.9', 'dampening=0.5', 'no dampening')),
    (dict(nesterov=True, momentum=0.), ('nesterov=True', 'momentum above 0', 'momentum=0.0')),
    (dict(epoch=3), ("field of a recipe 'epoch'", "'epochs'")),
], ids=words_id)
def test_refused_recipes(changes, words):
    with refuses(*words): get_recipe('fast', **changes)


def test_unknown_recipe():
    with refuses("unknown recipe 'papers'", "did you mean 'paper'"): get_recipe('papers')
    with refuses("unknown recipe 'fats'", "did you mean 'fast'"): Learner(tiny_net(), pictures(9), 'fats')
    assert get_recipe('fast', epochs=9) == replace(RECIPES['fast'], epochs=9)


@pytest.mark.parametrize('make, words', [
    (lambda: learner(batch_size=29), ('noise has 28 images', 'one batch of 29', 'smaller batch size')),
    (lambda: Learner(tiny_net(classes=4), pictures(9)), ('vgg_gap has 4 outputs', 'num_classes=3')),
    (lambda: learner(seed=-1), ('seed -1', 'whole number from 0')),
    (lambda: learner(name='vgg_att1_pc', size=16).fit(), ('16x16 pixels', 'multiples of 32')),
    (lambda: learner(name='vgg_trunk', size=32, batch_size=1).fit(), ('batch of one', 'larger batch')),
    (lambda: evaluate(tiny_net(classes=4), pictures(9)), ('knows 4 classes', 'noise has 3')),
    (lambda: predict(tiny_net(), 255 * torch.rand(2, 3, 16, 16)), ('pixels', 'floats in 0..1', 'uint8')),
    (lambda: predict(tiny_net(), pictures(9).images[:, :2]), ('(9, 2, 16, 16)', 'expected')),
    (lambda: predict(tiny_net(), pictures(9).images[:0]), ('(0, 3, 16, 16)', 'no pixels', 'at least one')),
    (lambda: pointing_hits(torch.zeros(2, 4, 4), torch.ones(3, 8, 8) > 0), ('2 maps but 3 masks', 'one')),
], ids=words_id)
def test_refusals(make, words):
    with refuses(*words): make()


# Measuring

def test_predict_leaves_the_mode_and_does_not_depend_on_the_batch():
    net = tiny_net('vgg_att2_concat_pc').train()
    images = pictures(7, 32).images
    before = {k: v.clone() for k, v in net.state_dict().items()}
    logits, maps = predict(net, images, batch_size=3)
    assert net.training and not differing(before, net.state_dict()) and not logits.requires_grad
    assert logits.shape == (7, 3) and logits.dtype == torch.float32
    assert [tuple(m.shape) for m in maps] == [(7, 4, 4), (7, 2, 2)]
    torch.testing.assert_close(predict(net, images)[0], logits, rtol=.02, atol=.02)


def test_predict_leaves_each_module_in_its_mode():
    net = tiny_net('vgg_att2_concat_pc').train()
    net.trunk.eval()
    was = [m.training for m in net.modules()]
    predict(net, pictures(2, 32).images)
    assert [m.training for m in net.modules()] == was, 'what was frozen has woken'
    with refuses('multiples of 32'): predict(net, pictures(2, 20).images)
    assert [m.training for m in net.modules()] == was, 'after an error'
    gmac(net)
    assert [m.training for m in net.modules()] == was


def test_evaluate_by_hand():
    data, net = ClutteredFashion('test', 32, n=30), tiny_net('vgg_att2_concat_dp', 10)
    (images, masks), row = data.render(), evaluate(net, data)
    logits, maps = predict(net, images)
    assert row['images'] == 30 and row['accuracy'] == accuracy(logits, data.labels)
    right = [int(k) == int(y) for k, y in zip(logits.argmax(1), data.labels)]
    assert row['accuracy'] == pytest.approx(sum(right) / 30)
    for level in 0, 1:
        big = torch.nn.functional.interpolate(maps[level][:, None], (32, 32), mode='bilinear')[:, 0]
        hits = [m[b >= b.max() * (1 - 1e-5)].float().mean().item() for b, m in zip(big, masks)]
        assert row[f'pointing_{level + 1}'] == pytest.approx(sum(hits) / 30)
    assert set(row) == {'images', 'accuracy', 'pointing_1', 'pointing_2'}


def test_only_what_rounding_parts_is_a_tie():
    "Of two nearly equal pixels only the larger counts, unless they are equal in single precision but for rounding."
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, 1, 1] = True
    maps = torch.zeros(2, 4, 4)
    maps[:, 1, 1], maps[:, 2, 2] = 1., torch.tensor([1 - 1e-4, 1 - 1e-6])
    assert pointing_hits(maps, masks).tolist() == [1, .5]


def test_pointing_at_everything_hits_by_its_share():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, 7, 7] = True
    assert pointing_hits(torch.full((2, 4, 4), 1 / 16), masks).tolist() == [1 / 4, 1 / 64]
    corner = torch.zeros(2, 4, 4)
    corner[:, 3, 3] = 1
    hits = pointing_hits(corner, masks)
    assert hits[0] == 0 < hits[1], 'enlarged, the last cell is as high as its middle as far as the edge'


# Tables of lessons

@pytest.mark.parametrize('lesson, cells', [('05_training', ['f13fe0ea']), ('05_training', ['f13fe0ea', '0fa74602']),
                                           ('05_training', ['f13fe0ea', '7f80c484']), ('06_recipes', ['90be2e25'])])
def test_a_table_without_its_file_says_not_run(lesson, cells, tmp_path, monkeypatch):
    nbs = Path(__file__).resolve().parent.parent / 'nbs'
    sources = {c['id']: ''.join(c['source']) for c in json.loads((nbs / f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']}
    for folder, missing in ((tmp_path / 'nbs', True), (nbs, False)):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        space = dict(json=json, Path=Path, Grid=Grid)
        for cell in cells:
            *body, last = ast.parse(sources[cell]).body
            exec(compile(ast.Module(body, []), cell, 'exec'), space)
            _, _, *rows = str(eval(compile(ast.Expression(last.value), cell, 'eval'), space)).splitlines()
        assert ('not run' in rows[0]) == missing and any(d.isdigit() for d in ''.join(rows)) != missing
