"""Installs `ltpa` from settings.ini, the one place where names, versions and dependencies stand."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser()
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib, tail = Path(cfg['lib_path']), '_requirements'
extras = {key[:-len(tail)]: value.split() for key, value in cfg.items() if key.endswith(tail)}
# Expanded here because older setuptools do not read `**` in package_data.
assets = [p.relative_to(lib).as_posix() for pattern in cfg['package_data'].split() for p in lib.glob(pattern)
          if p.is_file() and not p.name.startswith('.')]

# The oldest version that is supported, and the newest that continuous integration tries.
pythons = [f'Programming Language :: Python :: 3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 15)]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'] or None, url=cfg['git_url'] or None, license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', f'Intended Audience :: {cfg["audience"]}', *pythons,
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires=f'>={cfg["min_python"]}', install_requires=cfg['requirements'].split(),
    extras_require=extras, packages=find_packages(include=[lib.name, f'{lib.name}.*']),
    package_data={lib.name: assets}, zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{cfg["lib_name"]} = {lib.name}._modidx:d']},
)
