"""The state of the tree: notebooks, library, README and package agree. No test writes to the tree."""
import difflib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from check_notebooks import notebooks

import ltpa

ROOT = Path(__file__).resolve().parent.parent
MB = 2**20
config = ConfigParser()
config.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
MODULES = sorted(p.stem for p in (ROOT / cfg['lib_path']).glob('*.py') if not p.name.startswith('_'))
ASSETS = ROOT / cfg['lib_path'] / 'assets'


def sh(*command, cwd):
    "Run `command` in `cwd`; its output, or a failure that shows it."
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.fail(f'{" ".join(map(str, command))}\n{done.stdout}{done.stderr}', pytrace=False)
    return done.stdout


def tool(name): return shutil.which(name, path=sysconfig.get_path('scripts'))


@pytest.fixture
def tree(tmp_path):
    "A copy of what git tracks or would add, so that a check may write."
    if not (ROOT / '.git').exists(): pytest.skip('not a git checkout: clone the repository to run this check')
    names = sh('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=ROOT).split('\0')
    for name in names:
        if not (ROOT / name).is_file(): continue
        target = tmp_path / 'tree' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return tmp_path / 'tree'


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*')
            if p.is_file() and '__pycache__' not in p.parts}


def difference(name, old, new):
    "What changed in one file, in at most 20 lines."
    if old is None or new is None: return f'{name}: {"appeared" if old is None else "vanished"}'
    lines = [data.decode('utf-8', 'replace').splitlines() for data in (old, new)]
    return '\n'.join(list(difflib.unified_diff(*lines, name, name, n=1, lineterm=''))[:20])


@pytest.mark.parametrize('command', ['nbdev_clean', 'nbdev_export'])
def test_leaves_no_diff(command, tree):
    before = contents(tree)
    sh(tool(command), cwd=tree)
    after = contents(tree)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        shown = '\n'.join(difference(name, before.get(name), after.get(name)) for name in changed)
        pytest.fail(f'{command} changes files. Run make export and commit:\n{shown}', pytrace=False)


def test_notebooks_keep_the_rules():
    sh(sys.executable, 'tools/check_notebooks.py', cwd=ROOT)


def test_readme_is_the_index_notebook():
    sh(sys.executable, 'tools/readme.py', '--check', cwd=ROOT)


def test_sidebar_lists_every_notebook():
    listed = re.findall(r'- (\S+\.ipynb)', (ROOT / 'nbs' / 'sidebar.yml').read_text(encoding='utf-8'))
    nbs = ROOT / 'nbs'
    lessons = sorted(p.name for p in nbs.glob('[0-9]*.ipynb'))
    assert listed[:len(lessons) + 1] == ['index.ipynb', *lessons], 'list the lessons in order in nbs/sidebar.yml'
    assert sorted(listed) == sorted(p.relative_to(nbs).as_posix() for p in notebooks(nbs)), 'list every notebook there'


def test_version():
    assert ltpa.__version__ == cfg['version']


def test_constraints_pin_every_requirement():
    lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
    form = r'[\w.-]+==[\w.]+( ; python_version >= "3\.\d+")?'
    bad = [line for line in lines if not re.fullmatch(form, line)]
    assert not bad, f'constraints.txt: not of the form name==version: {bad}. Run make constraints'
    pinned = {line.split('==')[0] for line in lines}
    wanted = ' '.join(cfg[key] for key in cfg if key.endswith('requirements')).lower().split()
    missing = {re.split('[<>=]', requirement)[0] for requirement in wanted} - pinned
    assert not missing, f'constraints.txt does not pin {sorted(missing)}. Run make constraints'


def test_workflows_try_every_python_and_the_oldest_torch():
    workflows = ROOT / '.github' / 'workflows'
    oldest = int(cfg['min_python'].split('.')[1])
    wanted = ', '.join(f'"3.{minor}"' for minor in range(oldest, 15))
    assert f'python: [{wanted}]' in (workflows / 'test.yaml').read_text(encoding='utf-8')
    nightly = (workflows / 'nightly.yaml').read_text(encoding='utf-8')
    for name, version in re.findall(r'(torch\w*)>=([\d.]+)', cfg['requirements']):
        assert f'{name}=={version}.0/' in nightly, f'nightly.yaml does not try {name} {version}'


def test_asset_sizes():
    size = sum(p.stat().st_size for p in (ASSETS / 'cluttered_fashion').rglob('*') if p.is_file())
    assert size <= 10 * MB, f'the bundled set takes {size / MB:.1f} MB of the 10 that a clone may carry'
    big = {p.name: p.stat().st_size for p in ASSETS.rglob('*.safetensors') if p.stat().st_size > 3 * MB}
    assert not big, f'bundled weights over 3 MB: {big}. Store them as bfloat16, or bundle a narrower net'


@pytest.mark.slow
def test_wheel_installs_and_imports(tree, tmp_path):
    sh(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path / 'dist', cwd=tree)
    wheel, = (tmp_path / 'dist').glob('*.whl')
    lib = cfg['lib_path']
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f'{lib}/')}
    assert packed == {f'{lib}/{name}' for name in contents(tree / lib)}
    target, elsewhere = tmp_path / 'target', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    sh(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', target, wheel, cwd=elsewhere)
    # A fresh interpreter that finds the unpacked wheel before the editable install.
    code = (f'import sys; sys.path.insert(0, {str(target)!r}); import importlib\n'
            f'for name in {MODULES!r}: print(importlib.import_module("{lib}." + name).__file__)')
    for file in sh(sys.executable, '-c', code, cwd=elsewhere).splitlines():
        assert Path(file).is_relative_to(target), f'imported from {file}, not from the installed wheel'


VISITOR = '''
import doctest, importlib, importlib.util, pkgutil, sys
from pathlib import Path
import ltpa
from ltpa.cli import main
home = Path(ltpa.__file__).parent
assert home.is_relative_to(sys.prefix), home
extras = [m for m in ('fastcore', 'nbdev', 'pytest', 'timm', 'cv2', 'onnx', 'tensorboard', 'huggingface_hub') if importlib.util.find_spec(m)]
assert not extras, f'the environment is not empty: {extras}'
runner, missing = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), []
for found in pkgutil.iter_modules(ltpa.__path__, 'ltpa.'):
    if found.name == 'ltpa.__main__': continue
    for test in doctest.DocTestFinder().find(importlib.import_module(found.name), globs={}):
        said = []
        if not runner.run(test, out=said.append).failed: continue
        assert "run: pip install 'ltpa[" in ''.join(said), ''.join(said)
        missing.append(test.name.split('.')[1])
photo = str(home / 'assets' / 'photographs' / 'cat.jpg')
net = ltpa.load_pretrained('cluttered_fashion/vgg_att3_concat_pc')
assert len(ltpa.inspect_image(net, photo).maps) == 3 and ltpa.show_attention(net, photo).axes
for argv in (['explain', photo], ['predict', photo], ['recipes', 'cifar10'], ['download']): assert main(argv) == 0, argv
for argv in (['export', 'cluttered_fashion/vgg_gap', '--out', 'n.onnx'], ['train', 'cluttered_fashion/vgg_gap', '--tensorboard'],
             ['train', '--data', 'photos', '--backbone', 'timm/resnet18']):
    print('wanting', *argv[:1], file=sys.stderr)
    assert main(argv) == 2, argv
print('missing', *sorted({*missing}))
'''
# What pip says where nothing can be fetched
OFFLINE = 'No matching distribution|Could not fetch|connection broken|Failed to establish'


@pytest.mark.slow
@pytest.mark.whole
def test_wheel_in_an_empty_environment(tree, tmp_path):
    "As a visitor has it: only what the wheel requires, another folder, no repository."
    sh(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', tmp_path / 'dist', cwd=tree)
    wheel, = (tmp_path / 'dist').glob('*.whl')
    home = tmp_path / 'home'
    home.mkdir()
    sh(sys.executable, '-m', 'venv', 'env', cwd=home)
    python = home / 'env' / 'bin' / 'python'
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    def run(*command): return subprocess.run([python, *command], cwd=home, env=env, capture_output=True, text=True, timeout=1200)
    done = run('-m', 'pip', 'install', '-q', '-c', ROOT / 'constraints.txt', wheel)
    if done.returncode and re.search(OFFLINE, done.stderr): pytest.skip(f'pip fetched nothing: {done.stderr[-200:]}')
    assert done.returncode == 0, done.stderr
    done = run('-c', VISITOR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'missing hub', 'examples that need more say what to install'
    errors = [line for line in done.stderr.splitlines() if line.startswith(('wanting', 'ltpa: '))]
    assert len(errors) == 6 and all('pip install' in line for line in errors[1::2]), errors
    assert 'COMMAND' in run('-m', 'ltpa', '--help').stdout


@pytest.mark.slow
@pytest.mark.whole
def test_source_distribution_holds_its_tests(tree, tmp_path):
    sh(sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', tmp_path / 'dist', cwd=tree)
    archive, = (tmp_path / 'dist').glob('*.tar.gz')
    shutil.unpack_archive(archive, tmp_path)
    unpacked = tmp_path / archive.name.removesuffix('.tar.gz')
    # `python -m` finds the library here before the installed one
    where = sh(sys.executable, '-c', 'import ltpa; print(ltpa.__file__)', cwd=unpacked).strip()
    assert Path(where).is_relative_to(unpacked)
    files = [f'tests/test_{name}.py' for name in ('repo', 'attention', 'core', 'tools', 'results')]
    said = sh(sys.executable, '-m', 'pytest', '-m', 'not slow and not whole', *files, cwd=unpacked)
    assert 'not a git checkout: clone the repository to run this check' in said
