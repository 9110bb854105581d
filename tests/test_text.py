"""Names that people give: printed on one line, drawn letter by letter, whatever the terminal can show."""
import io
import os
import sys
import time

import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from ltpa import LtpaError, create_model, list_models, save_weights, show_attention
from ltpa.cli import main
from ltpa.explorer import Explorer, State
from ltpa.maps import class_names, save_figure
from ltpa.names import unknown
from ltpa.text import LABEL, MOST, forgiving, literal, message, printable, row
from ltpa.widgets import bars

LATIN = b'\xe4pfel'.decode('utf-8', 'surrogateescape')          # a name on a disk that is no UTF-8
ODD = ['$$', '$$$$', 'Ba$$in', '$5_$10', r'$\frac', '50%_off', 'two\nlines', '\x1b[31mred\x1b[0m', 'a\rb', 'tab\t', LATIN,
       'abc\u202ecba', '\x00', '\u2028', '<b>&amp;', '猫', 'x' * 10**6, '']


def net_of(names, model='vgg_att2_concat_pc'):
    torch.manual_seed(0)
    net = create_model(model, len(names), width=1/16, early_pools=1).eval()
    net.info = dict(classes=names)
    return net


@pytest.mark.parametrize('name', ODD, ids=lambda n: ascii(n[:12]))
def test_one_line_that_any_terminal_obeys_not(name):
    shown = printable(name)
    assert len(shown.splitlines()) <= 1 and '\x1b' not in shown and '\r' not in shown
    shown.encode('utf-8')                                        # no lone surrogate is left
    assert str(LtpaError(f'class {name}')).splitlines() == [message(f'class {name}')]


def test_letters_of_every_script_stay():
    for name in ('Ärger', '猫', 'नमस्ते', 'می\u200cخواهم', '👩\u200d👧', "l'été", 'a b'): assert printable(name) == name


def test_a_message_keeps_its_beginning_and_its_way_out():
    text = str(LtpaError(f'class {"x" * 10**6}; expected a shorter one: rename it'))
    assert text.startswith('class xxx') and text.endswith(': rename it') and len(text) < MOST + 10
    assert str(LtpaError('short; expected long: write more')) == 'short; expected long: write more'


def test_a_name_that_never_ends_is_compared_at_once():
    start = time.monotonic()
    assert 'known' in str(unknown('model', 'vgg' * 10**6, list_models()))
    assert time.monotonic() - start < 5


PAIRS = [ODD[k:k + 2] for k in range(0, len(ODD) - 1, 2)]


@pytest.mark.parametrize('names, kind', [*((pair, 'png') for pair in PAIRS), (PAIRS[1], 'svg'), (PAIRS[5], 'svg'), (PAIRS[5], 'pdf')],
                         ids=lambda v: v if isinstance(v, str) else ascii(v[0][:12]))
def test_figures_draw_names_letter_by_letter(names, kind, tmp_path):
    start = time.monotonic()
    fig = show_attention(net_of(names), torch.rand(1, 3, 32, 32), labels=[0])
    assert not any(t.get_parse_math() or t.get_usetex() for t in fig.findobj(Text))
    saved = save_figure(fig, tmp_path / f'a.{kind}').read_bytes()
    assert len(saved) > 1000 and time.monotonic() - start < 20
    says = next(ax.get_xlabel() for ax in fig.axes)
    assert len(says.splitlines()) <= 2 and all(len(line) < LABEL + 12 for line in says.splitlines())


def test_dollars_are_dollars():
    fig = show_attention(net_of(['$5_$10', '$5_$10']), torch.rand(1, 3, 32, 32))
    assert fig.axes[0].get_xlabel().startswith('$5_$10, ')
    import matplotlib.pyplot as plt
    plain, ax = plt.subplots()
    title = ax.set_title('$5_$10')
    assert title.get_parse_math() and literal(plain) is plain and not title.get_parse_math()
    plt.close(plain)


def test_literal_is_asked_for_by_name_not_by_a_setting(tmp_path):
    import matplotlib
    with matplotlib.rc_context({'text.usetex': True}):           # somebody's own setting; there may be no TeX here
        fig = show_attention(net_of(['a_b', 'c%d']), torch.rand(1, 3, 32, 32))
        save_figure(fig, tmp_path / 'a.png')


def test_the_explorer_shows_odd_names(monkeypatch):
    names = ['<b>$5_$10', 'two\nlines']
    pictures = {'$a$\n': torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), LATIN: torch.zeros(3, 40, 30, dtype=torch.uint8)}
    explorer = Explorer(pictures, {'net\x1b[0m': net_of(names)})
    assert explorer.show(State(LATIN, 'net\x1b[0m', method='gradient'))
    labels = [label for w in ('image', 'query', 'model') for label in explorer.widgets[w]._options_labels]
    for text in (*labels, explorer.panes.bars.value, *(p.value for ps in explorer.panes.panels.values() for p in ps[::2])):
        assert text.isprintable() and '<b>$5' not in text
    assert '&lt;b&gt;$5_$10' in bars(torch.tensor([.9, .1]), names)


class Terminal(io.TextIOWrapper):
    "A terminal of some code page; what was written to it is in `bytes`"
    def __init__(self, page): super().__init__(io.BytesIO(), encoding=page, errors='strict', write_through=True)
    @property
    def bytes(self): return self.buffer.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    def at(page):
        out, err = Terminal(page), Terminal(page)
        monkeypatch.setattr(sys, 'stdout', out); monkeypatch.setattr(sys, 'stderr', err)
        return out, err
    yield at


@pytest.mark.parametrize('page', ['ascii', 'shift_jis', *(pytest.param(p, marks=pytest.mark.whole) for p in ('cp1252', 'cp1251', 'cp437', 'utf-8'))])
def test_no_code_page_ends_a_command(page, terminal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 60), 50).save('猫.png')
    for args in (['recipes', 'cifar10/'], ['explain', '猫.png', '--device', 'cpu'], ['download'], ['explain', 'ж×.png'],
                 ['train', 'ж/猫'], ['recipes', LATIN]):
        out, err = terminal(page)
        code = main(args)
        assert code in (0, 2), (args, err.bytes)
        assert code == 0 or len(err.bytes.splitlines()) == 1
    out, err = terminal(page)
    with pytest.raises(SystemExit) as e: main(['--help'])
    assert e.value.code == 0 and b'ltpa' in out.bytes
    out, err = terminal(page)
    with pytest.raises(SystemExit) as e: main(['recipes', 'a', '猫\x1b[2J\n'])
    assert e.value.code == 2 and b'\x1b' not in err.bytes and len(err.bytes.splitlines()) == 1


def test_plain_letters_stand_for_ours(terminal):
    out, err = terminal('ascii')
    forgiving()
    print('3×4 ± …', '猫')
    assert out.bytes == rb'3x4 +- ... \u732b' + os.linesep.encode()


def test_what_explain_prints_has_the_same_lines_whatever_the_names(terminal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = set()
    for k, names in enumerate((['a', 'b'], ['$$', 'x\ny'], ['\x1b[2Jcat', '\rdog'], ['x' * 1000, LATIN])):
        save_weights(net_of(names), 'w.safetensors', classes=names)
        picture = ('p', 'b\nc', LATIN, '$$')[k] + '.png'
        Image.effect_noise((40, 60), 50).save(picture)
        out, err = terminal('utf-8')
        assert main(['explain', picture, '--model', 'w.safetensors', '--out', f'{k}.png', '--device', 'cpu']) == 0, err.bytes
        counts.add(len(out.bytes.decode().splitlines()))
        assert max(map(len, out.bytes.decode().splitlines())) < 200
        assert not set(out.bytes) & {0x1b, 0x0d}
    assert len(counts) == 1


def test_class_names_stay_the_users_own():
    assert class_names(net_of(['$5_$10', 'two\nlines'])) == ['$5_$10', 'two\nlines']
    assert row('share', .81).endswith('  0.8100') and row('a', 'b\nc') == f'{"a":>16}  b\\nc'
