"""Networks in the form of the hub: round trips, the card, what others have put there, and no network where none is needed."""
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time

import huggingface_hub
import pytest
import safetensors.torch
import torch
from fuzzing import forget_peak, peak
from helpers import Touch, differing, one_line, refuses, tiny_net, words_id

import ltpa.hub
from ltpa.export import export_network
from ltpa.files import save_result
from ltpa.hub import FILES, MOST_CONFIG, from_pretrained, hub_class, measured, model_card, push_to_hub, save_pretrained
from ltpa.models import create_model, list_pretrained, load_pretrained, load_weights, save_weights

FIRST = 'cluttered_fashion/vgg_gap'


def shared(folder, name='vgg_att1_pc', **kw):
    net = tiny_net(name, **kw)
    net.info = dict(classes=['cat', 'dog', 'bird'], source=dict(source='cluttered_fashion', size=32, scale=None), seed=3, note=dict(a=[1, 2.5]), foreign=dict(quantiles=[k / 100 for k in range(101)]))
    return save_pretrained(net, folder / 'shared'), net


@pytest.fixture
def no_network(monkeypatch):
    def nothing(*args, **kw): raise AssertionError('the network was touched')
    for name in 'socket', 'create_connection', 'getaddrinfo': monkeypatch.setattr(socket, name, nothing)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)


@pytest.mark.parametrize('name, kw', [('vgg_att3_indep_dp', {}), ('vgg_pan', dict(preset='official_code')), ('resnet164_att2_concat_pc', {}), ('vgg_gap', dict(layout='cub'))])
def test_round_trips_are_equal_in_every_bit(name, kw, tmp_path):
    folder, net = shared(tmp_path, name, **kw)
    again = from_pretrained(folder)
    assert not differing(net.state_dict(), again.state_dict())
    assert again.name == net.name and again.config == net.config and not again.training
    assert again.info['classes'] == net.info['classes'] and again.info['source']['size'] == 32 and again.info['seed'] == 3 and all(again.info[k] == net.info[k] for k in ('note', 'foreign'))
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_every_bundled_network_can_be_shared(tmp_path, no_network, monkeypatch):
    for k, name in enumerate(list_pretrained()):
        monkeypatch.setitem(sys.modules, 'huggingface_hub', huggingface_hub)
        folder = save_pretrained(name, tmp_path / str(k))
        monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
        assert not differing(load_pretrained(name).state_dict(), from_pretrained(folder).state_dict())


def test_a_network_on_a_backbone(tmp_path):
    timm = pytest.importorskip('timm')
    from ltpa.backbones import attach
    net = attach(timm.create_model('resnet10t'), num_classes=3, verbose=False)
    assert not differing(net.state_dict(), from_pretrained(save_pretrained(net, tmp_path / 'a')).state_dict())


def test_a_folder_needs_neither_network_nor_library(tmp_path, monkeypatch, request):
    folder, net = shared(tmp_path)
    request.getfixturevalue('no_network')
    monkeypatch.setenv('HF_HUB_OFFLINE', '0')
    monkeypatch.chdir(tmp_path)
    for name in (folder, str(folder), 'shared'): assert not differing(net.state_dict(), from_pretrained(name).state_dict())


def test_import_needs_no_library():
    done = subprocess.run([sys.executable, '-c', 'import sys, ltpa.hub, ltpa.export\nprint([n for n in ("huggingface_hub", "onnx", "onnxruntime", "onnxscript") if n in sys.modules])'],
                          capture_output=True, text=True, timeout=120)
    assert done.stdout == '[]\n', done.stderr


def test_other_tools_read_the_tensors(tmp_path):
    folder, net = shared(tmp_path)
    assert not differing(net.state_dict(), safetensors.torch.load_file(folder / 'model.safetensors'))


def test_commands_take_the_folder(tmp_path, ltpa, monkeypatch):
    folder, net = shared(tmp_path)
    assert not differing(net.state_dict(), load_weights(folder / 'model.safetensors').state_dict())
    assert export_network(folder, tmp_path / 'n.pt2').outputs == ['logits', 'map_1']
    monkeypatch.chdir(tmp_path)
    code, out, err = ltpa('export', 'shared', '--format', 'hub', '--license', 'cc-by-4.0')
    assert (code, err) == (0, '') and 'shared-hub' in out
    assert huggingface_hub.ModelCard.load('shared-hub/README.md').data.license == 'cc-by-4.0'
    assert not differing(net.state_dict(), from_pretrained('shared-hub').state_dict())


# ---- the card -----------------------------------------------------------------------------------------------------

def run_folder(folder, classes=('cat', 'dog', 'bird'), **row):
    "What `ltpa train` leaves."
    run = folder / 'run'
    source = dict(source='/home/ann/secret/photos', size=32, scale=None, groups_relative='../ann.csv', relative='../../ann', sample=['12ab'])
    save_weights(tiny_net('vgg_att1_pc'), run / 'weights.safetensors', source=source, classes=list(classes), recipe=dict(name='fast', epochs=6, flip=True), seed=3)
    record = dict(commit='0123456789ab+', when='2026-11-25T00:00:00Z', hardware='x86_64', target='/home/ann/secret/photos/vgg_att1_pc', seed=3,
                  recipe=dict(name='fast', epochs=6, flip=True), source=source, steps=120)
    save_result(run / 'result.json', 't', [dict(model='vgg_att1_pc', data='photos/test', images=40, accuracy=.875, seed=3, parameters=123456) | row], record)
    return run


def test_the_card_says_what_the_record_says(tmp_path):
    folder = save_pretrained(run_folder(tmp_path), tmp_path / 'shared', license='cc-by-4.0')
    card = huggingface_hub.ModelCard.load(folder / 'README.md')
    data = card.data.to_dict()
    assert data['license'] == 'cc-by-4.0' and data['library_name'] == 'ltpa' and data['pipeline_tag'] == 'image-classification' and 'attention' in data['tags']
    result, = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name, result.dataset_split) == ('accuracy', .875, 'photos', 'test')
    for said in ('0.875', '123,456', '0123456789ab+', '| seed | 3 |', 'recipe, epochs | 6', 'recipe, flip | True', 'photos/test', 'cat, dog, bird', '1 map,', 'License: cc-by-4.0',
                 'What it is for, and what not', "from_pretrained('FOLDER')", 'any multiple of 32'):
        assert said in card.text, said


def test_nothing_of_the_machine_is_handed_on(tmp_path):
    folder = save_pretrained(run_folder(tmp_path), tmp_path / 'shared')
    for path in folder.iterdir():
        for word in (b'secret', b'/home', b'ann.csv', b'12ab', str(tmp_path).encode()): assert word not in path.read_bytes(), (path, word)
    assert from_pretrained(folder).info['source'] == dict(source='photos', size=32, scale=None, fit=None, bits=None)


def test_without_a_record_the_card_says_so(tmp_path):
    folder, _ = shared(tmp_path)
    card = huggingface_hub.ModelCard.load(folder / 'README.md')
    assert 'there is no record' in card.text and card.data.eval_results is None and card.data.license == 'unknown' and 'has named none' in card.text


def test_bundled_scores_stand_in_the_card():
    net, record = load_pretrained(FIRST), measured(FIRST)
    card = huggingface_hub.ModelCard(model_card(net, record))
    assert card.data.eval_results[0].metric_value == record['rows'][0]['accuracy'] and card.data.license == 'apache-2.0'
    assert record['provenance']['commit'] in card.text and 'it has no attention' in card.text


NAMES = ['<script>alert(1)</script>', '**bold**', '[x](http://a.b)', '`c`', 'two\nlines', '| a | b |', '# h', '&amp;', '$x$', '\x1b[31m', '---', '![i](j)', ':smile:', '_u_', '~~s~~', '\\', '猫']


def test_names_are_drawn_letter_by_letter(tmp_path):
    mistune = pytest.importorskip('mistune')
    net = create_model('vgg_gap', len(NAMES), width=1/32, early_pools=2)
    net.info = dict(classes=NAMES)
    text = model_card(net, dict(rows=[dict(data='a|b<i>/test', accuracy=.5, note='<b>|x|</b>\n---')], provenance=dict(commit='<u>c</u>', recipe={'a|b': 'c\nd'})))
    card = huggingface_hub.ModelCard(text)
    html = mistune.create_markdown(plugins=['table', 'strikethrough', 'url'])(card.text)
    for tag in ('<script', '<strong', '<a ', '<img', '<del', '<b>', '<i>', '<u>', '<em>bold', '<hr'): assert tag not in html, tag
    assert html.count('<h1>') == 1 and '&lt;script&gt;alert(1)&lt;/script&gt;' in html and '**bold**' in html and 'two\\nlines' in html and '~~s~~' in html and '\\x1b' in html
    assert text.isprintable() or all(c.isprintable() or c == '\n' for c in text)


@pytest.mark.parametrize('odd', ['Apache', 'a b', 'x' * 99, 'a\nb', 5])
def test_odd_licenses(odd, tmp_path):
    with refuses('license', 'apache-2.0'): save_pretrained(tiny_net(), tmp_path / 'a', license=odd)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('record', [{}, dict(rows=None), dict(rows=[]), dict(rows=[5]), dict(rows=[{}]), dict(rows=[dict(accuracy=float('nan'), data='x')]), dict(rows=[dict(accuracy='x', data=[])]),
                                    dict(rows=[dict(accuracy=True, data='x')]), dict(rows=[dict(accuracy=.5, data='')]), dict(provenance=dict(recipe=5, commit=[], target=7, seed={})), dict(rows=[dict(accuracy=10**400)]), dict(rows=5, provenance=5), dict(rows={'a': 1}), dict(license=None)])
def test_odd_records_make_a_card_or_a_line(record):
    huggingface_hub.ModelCard(model_card(tiny_net(), record))
    with refuses('record 5', 'result.json'): model_card(tiny_net(), 5)


def test_a_missing_library_gives_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    for call in (lambda: save_pretrained(tiny_net(), tmp_path / 'a'), lambda: push_to_hub(tiny_net(), 'a/b'), lambda: from_pretrained('a/b')):
        with refuses('huggingface_hub is missing', "pip install 'ltpa[hub]'"): call()
    assert not [*tmp_path.iterdir()]


# ---- the hub ------------------------------------------------------------------------------------------------------

def test_a_repository_is_fetched_by_the_library(tmp_path, monkeypatch):
    folder, net = shared(tmp_path)
    asked = []
    def fetched(name, **kw):
        asked.append((name, kw))
        return str(folder)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetched)
    assert not differing(net.state_dict(), from_pretrained('ann/net', revision='v1').state_dict())
    assert asked == [('ann/net', dict(revision='v1', token=None, allow_patterns=['model.safetensors', 'config.json']))]


def test_a_hub_that_gives_nothing_is_said_in_a_line(monkeypatch):
    for error in (OSError('two\nlines'), ValueError(), RuntimeError('x' * 5000), TimeoutError('late')):
        def fail(*args, **kw): raise error
        monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
        with refuses('ann/net', 'the hub gave nothing', 'check name and connection') as e: from_pretrained('ann/net')


@pytest.mark.slow
def test_without_a_connection():
    code = 'import ltpa\nfor f in (lambda: ltpa.from_pretrained("ann/net"), lambda: ltpa.push_to_hub("cluttered_fashion/vgg_gap", "ann/net")):\n    try: f()\n    except ltpa.LtpaError as e: print(e)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': os.devnull})
    one, two = done.stdout.splitlines()
    one_line(one, 'ann/net', 'the hub gave nothing'); one_line(two, 'ann/net', 'the hub did not take it')


@pytest.mark.parametrize('name', ['nowhere', './nowhere', 'a/b/c', '', '../x', 'a b/c', '/nowhere/x', 'x\ny/z', 'ü/x', 'a' * 97 + '/b', 'file.txt'])
def test_what_is_no_folder_and_no_repository(name, tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file.txt').write_text('x')
    if name == '': (tmp_path / 'shared').mkdir(); name = 'shared/..//nowhere/x'
    with refuses('is no folder', 'OWNER/NAME'): from_pretrained(name)


class Api:
    "What of the hub `push_to_hub` needs; keeps what was sent."
    sent: dict = {}
    def __init__(self, token=None): Api.sent = dict(token=token)
    def create_repo(self, repo_id, private=None, exist_ok=False):
        Api.sent |= dict(made=repo_id, private=private, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl(f'https://huggingface.co/{repo_id}')
    def upload_folder(self, repo_id, folder_path, **kw):
        Api.sent |= dict(to=repo_id, files={p.name: p.read_bytes() for p in folder_path.iterdir()})
        return 'https://huggingface.co/ann/net/commit/1'


def test_what_is_sent_is_what_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    folder = save_pretrained(FIRST, tmp_path / 'a')
    assert push_to_hub(FIRST, 'ann/net', private=True, token='t') == 'https://huggingface.co/ann/net/commit/1'
    assert (Api.sent['made'], Api.sent['to'], Api.sent['private'], Api.sent['token']) == ('ann/net', 'ann/net', True, 't')
    own = {p.name: p.read_bytes() for p in folder.iterdir()}
    own['README.md'] = own['README.md'].replace(b"('FOLDER')", b"('ann/net')")
    assert Api.sent['files'] == own


def test_nothing_is_made_on_the_hub_for_what_cannot_be_saved(monkeypatch):
    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Api)
    Api.sent = {}
    with refuses('license'): push_to_hub(FIRST, 'ann/net', license='NO')
    with refuses("repository 'net'", 'OWNER/NAME'): push_to_hub(FIRST, 'net')
    with refuses('unknown network'): push_to_hub('nobody', 'ann/net')
    assert Api.sent == {}


def test_the_librarys_own_class(tmp_path):
    net, Hub = tiny_net('vgg_att1_dp').eval(), hub_class()
    assert issubclass(Hub, huggingface_hub.PyTorchModelHubMixin) and hub_class() is Hub
    wrapped = Hub(net, license='mit')
    wrapped.save_pretrained(tmp_path / 'a')
    again = Hub.from_pretrained(tmp_path / 'a')
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert again(x).logits.equal(net(x).logits) and wrapped(x).maps[0].equal(net(x).maps[0])
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == sorted(FILES)
    assert wrapped.generate_model_card().data.license == 'mit'


# ---- what others have put there -----------------------------------------------------------------------------------

def config_of(folder): return json.loads((folder / 'config.json').read_text())


def put(folder, config=None, state=None):
    if config is not None: (folder / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    if state is not None: (folder / 'model.safetensors').write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))


@pytest.mark.parametrize('change, words', [
    (dict(num_classes=100_000), ('does not fit', 'shape')), (dict(num_classes=10**9), ('num_classes 1000000000', 'at most 100,000')), (dict(width=8.), ('does not fit', 'shape')),
    (dict(width=1e300), ('width', 'at most 8')), (dict(width=float('nan')), ('width nan',)), (dict(depth=1001), ("unknown switch 'depth'",)), (dict(num_classes=-1), ('num_classes -1',)),
    (dict(temperature=float('inf')), ('temperature inf',)), (dict(width='x'), ("width 'x'",)), (dict(pretrained=True), ('expected a model and its settings',)),
    (dict(name='vgg'), ('expected a model and its settings',)), (dict(backbone='timm/nobody'), ()), (dict(levels=9), ('levels',))], ids=words_id)
def test_settings_that_ask_for_much_or_for_nonsense(change, words, tmp_path):
    folder, _ = shared(tmp_path)
    config = config_of(folder)
    put(folder, config | dict(config=config['config'] | change, classes=None))
    forget_peak()
    before, start = peak(), time.monotonic()
    with refuses(folder / 'config.json', *words): from_pretrained(folder)
    assert peak() - before < 2**26 and time.monotonic() - start < 20


def test_a_deep_network_costs_no_memory(tmp_path):
    folder, _ = shared(tmp_path, 'resnet164')
    config = config_of(folder)
    put(folder, config | dict(config=config['config'] | dict(depth=1001, width=8.)))
    forget_peak()
    before = peak()
    with refuses('does not fit resnet164'): from_pretrained(folder)
    assert peak() - before < 2**27                               # its weights would have 40 GB


@pytest.mark.parametrize('text', ['', '{', '[]', '5', 'null', '"x"', '[' * 100_000, '{"a":' * 50_000, 'NaN', '\x00', '{"format": 99}', '{"model": 5}', '{"kind": "weights"}', '{"kind": "x", "model": "vgg"}',
                                  '{"kind": "weights", "model": "vgg", "config": []}', '{"kind": "weights", "model": "vgg", "config": {}, "classes": 5}',
                                  '{"kind": "weights", "model": "vgg", "config": {}, "source": {"size": 1e999}}'], ids=lambda t: t[:24])
def test_settings_that_are_none(text, tmp_path):
    folder, _ = shared(tmp_path)
    put(folder, text)
    with refuses(folder / 'config.json'): from_pretrained(folder)


@pytest.mark.parametrize('odd, words', [
    (lambda s: {k: v for k, v in s.items() if k != 'mean'}, ('lacks mean',)), (lambda s: s | dict(x=torch.zeros(3)), ('has x',)), (lambda s: s | {'two\nlines': torch.zeros(3)}, ('two\\nlines',)),
    (lambda s: s | dict(mean=torch.zeros(3)), ('mean of shape (3,)',)), (lambda s: s | dict(mean=s['mean'].long()), ('mean of torch.int64',)), (lambda s: s | dict(mean=s['mean'] * float('nan')), ('mean holds NaN',)),
    (lambda s: s | dict(mean=s['mean'].to(torch.float8_e4m3fn)), ('F8_E4M3', 'F16')), (lambda s: s | dict(mean=s['mean'].double() + 1e300), ('mean holds NaN or infinite',)), (lambda s: {}, ('lacks',)), (lambda s: s | dict(mean=s['mean'][..., :0]), ('shape',))])
def test_tensors_that_do_not_fit(odd, words, tmp_path):
    folder, net = shared(tmp_path)
    put(folder, state=odd(net.state_dict()))
    with refuses(folder, *words): from_pretrained(folder)


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_kinds_are_taken(kind, tmp_path):
    "Written by another tool, without our description; the network computes in float32."
    folder, net = shared(tmp_path)
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    put(folder, state=state)
    want = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    assert not differing(from_pretrained(folder).state_dict(), want)


def test_damage_is_found_where_there_is_a_digest(tmp_path):
    folder, _ = shared(tmp_path)
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-3] ^= 4
    (folder / 'model.safetensors').write_bytes(data)
    with refuses('model.safetensors is damaged'): from_pretrained(folder)


@pytest.mark.parametrize('name', FILES[:2])
@pytest.mark.parametrize('kind', ['missing', 'folder', 'pipe', 'loop', 'device', 'empty', 'nowhere', 'pickle'])
def test_what_is_no_file(kind, name, tmp_path):
    folder, _ = shared(tmp_path)
    path = folder / name
    path.unlink()
    if kind == 'folder': path.mkdir()
    if kind == 'pipe': os.mkfifo(path)
    if kind == 'loop': path.symlink_to(path)
    if kind == 'device': path.symlink_to('/dev/zero')
    if kind == 'nowhere': path.symlink_to('nowhere')
    if kind == 'empty': path.write_bytes(b'')
    if kind == 'pickle': path.write_bytes(pickle.dumps(Touch(tmp_path / 'touched')))
    (folder / 'pytorch_model.bin').write_bytes(pickle.dumps(Touch(tmp_path / 'touched')))
    with refuses(name): from_pretrained(folder)
    assert not (tmp_path / 'touched').exists()


def test_links_to_files_are_followed(tmp_path):
    "The hub's library keeps its files so."
    folder, net = shared(tmp_path)
    for name in FILES[:2]:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert not differing(net.state_dict(), from_pretrained(folder).state_dict())


def test_a_huge_settings_file_is_not_read(tmp_path):
    folder, _ = shared(tmp_path)
    with open(folder / 'config.json', 'wb') as f: f.truncate(10**10)
    forget_peak()
    before = peak()
    with refuses('config.json', f'{MOST_CONFIG:,}'): from_pretrained(folder)
    assert peak() - before < 4 * MOST_CONFIG


@pytest.mark.whole
def test_a_header_of_a_hundred_megabytes(tmp_path):
    "Ten million spaces, many names, a length that is none: memory is a few times the file."
    folder, _ = shared(tmp_path)
    path = folder / 'model.safetensors'
    names = ','.join(f'"{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for k in range(400_000))
    for header in (b'{}' + b' ' * 10**8, f'{{{names}}}'.encode(), b'{"__metadata__":{"a":"' + b'x' * 10**8 + b'"}}', b'[' * 10**7):
        path.write_bytes(struct.pack('<Q', len(header)) + header)
        forget_peak()
        before = peak()
        with refuses('safetensors' if header[:1] == b'[' else ''): from_pretrained(folder)
        assert peak() - before < 25 * path.stat().st_size
    for length in (2**63, 2**40, 0, len(header) + 1):
        path.write_bytes(struct.pack('<Q', length) + b'{}')
        with refuses('model.safetensors'): from_pretrained(folder)


def test_a_saving_that_breaks_off_leaves_no_mixture(tmp_path, monkeypatch):
    folder, _ = shared(tmp_path)
    real = ltpa.hub.write_atomic
    def full(path, data):
        if path.name == 'README.md': raise ltpa.hub.LtpaError('the disk is full')
        return real(path, data)
    monkeypatch.setattr(ltpa.hub, 'write_atomic', full)
    with refuses('the disk is full'): save_pretrained(tiny_net('vgg_att1_dp'), folder)
    with refuses('config.json', 'no such file'): from_pretrained(folder)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    net = tiny_net('vgg_att1_pc')
    net.head = torch.nn.Linear(3, 3)
    with refuses('does not fit vgg_att1_pc'): save_pretrained(net, tmp_path / 'a')
    assert not [*tmp_path.iterdir()]
    (tmp_path / 'file').write_text('x')
    with refuses('cannot write'): save_pretrained(tiny_net(), tmp_path / 'file')
