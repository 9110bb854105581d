"""Films the explorer for README: nbs/images/explorer.webp, from a real JupyterLab in a real browser.

    make film       # about a minute; needs chromium (on Debian: apt-get install chromium)

Each scene is what a hand could do, and a picture of the window after it.
"""
import io
import json
import sys
import tempfile
from pathlib import Path

from lab import ROOT, chromium, chromium_page, jupyterlab, open_notebook, until
from PIL import Image

OUT = ROOT / 'nbs' / 'images' / 'explorer.webp'
NOTEBOOK = 'film.ipynb'
WIDTH = 960              # Of the film, in pixels
SHORT, LONG = 500, 1400  # Milliseconds that a picture stays: while something moves, and to be looked at


def notebook():
    "A notebook of one cell."
    cell = dict(cell_type='code', id='film0001', metadata={}, outputs=[], execution_count=None,
                source='from ltpa import Explorer\nExplorer()')
    return dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')), nbformat=4,
                nbformat_minor=5)


class Camera:
    "Takes pictures of the explorer on a page, and waits until what moved is drawn."
    def __init__(self, page, explorer):
        self.page, self.explorer = page, explorer
        self.frames, self.times = [], []

    def image(self): return Image.open(io.BytesIO(self.explorer.screenshot(animations='disabled'))).convert('RGB')

    def settled(self):
        "The window, once two looks at it show the same."
        before, image = None, self.image()
        while before != image:
            self.page.wait_for_timeout(250)
            before, image = image, self.image()
        return image

    def take(self, milliseconds):
        self.frames.append(self.settled())
        self.times.append(milliseconds)

    def choose(self, what, option):
        self.explorer.locator('.widget-dropdown', has_text=what).locator('select').select_option(label=option)
        self.take(LONG)

    def slide(self, what, key, steps, by=1):
        handle = self.explorer.locator('.widget-hbox', has_text=what).last.locator('.noUi-handle')
        handle.focus()
        for k in range(1, steps + 1):
            handle.press(key)
            if k % by == 0 or k == steps: self.take(LONG if k == steps else SHORT)
        handle.blur()

    def click(self, row, column):
        cells = self.explorer.locator('.ltpa-stack:not(.ltpa-over)')
        cells.get_by_role('button', name=f'row {row}, column {column}', exact=True).click()
        self.page.mouse.move(0, 0)
        self.take(LONG)

    def save(self, path):
        "One file: all pictures as large as the largest, on white."
        height = max(frame.height for frame in self.frames)
        sheets = []
        for frame in self.frames:
            sheet = Image.new('RGB', (frame.width, height), 'white')
            sheet.paste(frame)
            sheets.append(sheet)
        first, *others = sheets
        first.save(path, save_all=True, append_images=others, duration=self.times, loop=0, quality=70, method=6)


def act(camera):
    "What is filmed."
    camera.take(LONG)
    for level in '1', '3', '2': camera.choose('level', level)
    camera.click(9, 16)
    camera.choose('picture', 'bird')
    camera.slide('temperature', 'ArrowRight', 8, by=2)
    camera.slide('temperature', 'ArrowLeft', 8, by=4)
    camera.choose('beside it', 'grad_cam')
    camera.slide('attack', 'ArrowRight', 8, by=2)


def main():
    from playwright.sync_api import sync_playwright
    if chromium() is None: sys.exit('No chromium here (on Debian: apt-get install chromium)')
    with tempfile.TemporaryDirectory() as folder, jupyterlab(folder) as address, sync_playwright() as p, \
            chromium_page(p, WIDTH + 460, 1100) as page:
        (Path(folder) / 'nbs' / NOTEBOOK).write_text(json.dumps(notebook()))
        open_notebook(page, address, NOTEBOOK)
        for item in 'Run', 'Run All Cells': page.get_by_role('menuitem', name=item, exact=True).click()
        explorer = page.locator('.ltpa-explorer')
        until(lambda: explorer.locator('img:visible').count() == 4, 'the explorer',
              sleep=lambda seconds: page.wait_for_timeout(1000 * seconds))
        camera = Camera(page, explorer)
        act(camera)
    camera.save(OUT)
    print(f'Wrote {OUT.relative_to(ROOT)}: {len(camera.frames)} pictures, {OUT.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__': main()
