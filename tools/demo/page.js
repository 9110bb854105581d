// What the page does: a picture becomes the bytes that the library would show the network, the network answers, and the
// maps are drawn. Numbers of the library (sides, limits, colors) come from `facts`; its names stand in the comments.
const $ = id => document.getElementById(id)
const facts = JSON.parse($('facts').textContent)
const LEVELS = Array.from({ length: facts.levels }, (_, k) => k + 1)
const STRIP = 2 ** 20                     // pixels of a picture that are read at a time
const STAGE = 768                         // longer side of what is drawn large
const pause = () => new Promise(go => setTimeout(go))

// ---- Pictures

class Picture {
  // Anything that a canvas can draw, with its name
  constructor(source, name) { Object.assign(this, { source, name, width: source.width, height: source.height }) }

  async* strips(left, top, width, height) {
    // Pixels of a part, some rows at a time: no second copy of a large picture is made. Transparent ones lie on white
    const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)))
    const pen = canvasOf(width, rows).getContext('2d', { willReadFrequently: true })
    for (let y = 0; y < height; y += rows) {
      const n = Math.min(rows, height - y)
      pen.fillStyle = 'white'
      pen.fillRect(0, 0, width, n)
      pen.drawImage(this.source, left, top + y, width, n, 0, 0, width, n)
      yield [y, n, pen.getImageData(0, 0, width, n).data]
      if (height > rows) await pause()
    }
  }

  close() { this.source.close?.() }
}

function canvasOf(width, height) {
  const canvas = document.createElement('canvas')
  return Object.assign(canvas, { width, height })
}

async function opened(blob, name) {
  // As `read_image`: the right way up, and without a color profile
  const how = { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none' }
  let bitmap
  try { bitmap = await createImageBitmap(blob, how) }
  catch { throw new Error(`${name} is no picture that this browser can read.`) }
  if (Math.min(bitmap.width, bitmap.height) >= 8) return new Picture(bitmap, name)
  throw new Error(`${name} has ${bitmap.width}×${bitmap.height} pixels; expected at least 8 on each side.`)
}

// ---- What the network is shown: `fit_side` and Pillow's bicubic `resize`, to the bit

function even(x) {
  // Python's round
  const low = Math.floor(x)
  return x - low === .5 ? low + low % 2 : Math.round(x)
}

function viewOf({ width: W, height: H }, side, square) {
  // Size [w, h] for the network, the window of whole pixels that may matter, and the part of it that is seen
  if (square) {
    const s = Math.min(W, H), left = (W - s) / 2, top = (H - s) / 2
    return { w: side, h: side, window: [0, 0, W, H], box: [left, top, left + s, top + s] }
  }
  const zoom = side / Math.min(W, H)
  const [w, h] = [W, H].map(n => Math.floor(Math.floor(n * zoom + 1e-6) / facts.stride) * facts.stride)
  const [cols, rows] = [[w, W], [h, H]].map(([n, N]) => Math.min(N, even(n / zoom)))
  const left = Math.floor((W - cols) / 2), top = Math.floor((H - rows) / 2)
  return { w, h, window: [left, top, cols, rows], box: [left, top, left + cols, top + rows] }
}

function bicubic(x) {
  x = Math.abs(x)
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -.5 : 0
}

const ONE = 2 ** 22                       // Pillow's weights are whole numbers of 22 binary places

function taps(size, low, high, out) {
  // Of each of `out` pixels between `low` and `high`: the first of the `size` pixels that it is made of, how many, their weights
  low = Math.fround(low)
  const scale = Math.fround(Math.fround(high) - low) / out, wide = Math.max(scale, 1), reach = 2 * wide
  const most = Math.ceil(reach) * 2 + 1
  const first = new Int32Array(out), count = new Int32Array(out), weights = new Float64Array(out * most)
  for (let k = 0; k < out; k++) {
    const center = low + (k + .5) * scale
    first[k] = Math.max(0, Math.trunc(center - reach + .5))
    count[k] = Math.min(size, Math.trunc(center + reach + .5)) - first[k]
    const own = weights.subarray(k * most, k * most + count[k])
    let sum = 0
    for (let i = 0; i < own.length; i++) sum += own[i] = bicubic((i + first[k] - center + .5) / wide)
    for (let i = 0; i < own.length; i++) {
      const share = own[i] / sum * ONE
      own[i] = Math.trunc(share + (share < 0 ? -.5 : .5))
    }
  }
  return { first, count, weights, most }
}

function byte(sum) {
  const v = Math.floor((sum + ONE / 2) / ONE)
  return v < 0 ? 0 : v > 255 ? 255 : v
}

function across(taps, data, from, step, out, to) {
  // A row of pixels, `step` values each, as bytes of as many pixels as there are taps
  for (let k = 0; k < taps.first.length; k++, to += 3) {
    let red = 0, green = 0, blue = 0, at = from + step * taps.first[k]
    for (let i = k * taps.most, last = i + taps.count[k]; i < last; i++, at += step) {
      const a = taps.weights[i]
      red += a * data[at]; green += a * data[at + 1]; blue += a * data[at + 2]
    }
    out[to] = byte(red); out[to + 1] = byte(green); out[to + 2] = byte(blue)
  }
}

async function scaled(picture, { w, h, window: [left, top, cols, rows], box }) {
  // RGB bytes [h, w, 3] of what is seen: first along the rows, then along the columns, rounded in between. Where that saves
  // work Pillow does it the other way round, since its version 13
  const wide = taps(cols, box[0] - left, box[2] - left, w), high = taps(rows, box[1] - top, box[3] - top, h)
  const begin = high.first[0], end = high.first[h - 1] + high.count[h - 1], bytes = new Uint8Array(h * w * 3)
  const strips = picture.strips(left, top + begin, cols, end - begin)
  if (facts.columns_first && rows > h && rows - h > 2 * (cols - w)) {
    const half = await down(strips, high, begin, cols)
    for (let k = 0; k < h; k++) across(wide, half, 3 * cols * k, 3, bytes, 3 * w * k)
    return { w, h, box, bytes }
  }
  const half = new Uint8Array((end - begin) * w * 3)
  for await (const [y, n, data] of strips) for (let r = 0; r < n; r++) across(wide, data, 4 * cols * r, 4, half, 3 * w * (y + r))
  for (let k = 0; k < h; k++) for (let x = 0; x < 3 * w; x++) {
    let sum = 0, from = 3 * w * (high.first[k] - begin) + x
    for (let i = k * high.most, last = i + high.count[k]; i < last; i++, from += 3 * w) sum += high.weights[i] * half[from]
    bytes[3 * w * k + x] = byte(sum)
  }
  return { w, h, box, bytes }
}

async function down(strips, { first, count, weights, most }, begin, cols) {
  // All columns, each as bytes of as many pixels as there are taps: [h, cols, 3]
  const h = first.length, sums = new Float64Array(h * cols * 3)
  let low = 0
  for await (const [y, n, data] of strips) for (let r = 0; r < n; r++) {
    const row = begin + y + r
    while (first[low] + count[low] <= row) low++
    for (let k = low; k < h && first[k] <= row; k++) {
      const a = weights[k * most + row - first[k]]
      for (let x = 0, to = 3 * cols * k, from = 4 * cols * r; x < cols; x++, to += 3, from += 4) {
        sums[to] += a * data[from]; sums[to + 1] += a * data[from + 1]; sums[to + 2] += a * data[from + 2]
      }
    }
  }
  return Uint8Array.from(sums, byte)
}

// ---- The network

let session

async function unpacked(id) {
  const text = $(id).textContent, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
  $(id).remove()
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer())
}

async function start() {
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: (await unpacked('wasm')).buffer })
  session = await ort.InferenceSession.create(await unpacked('net'), { executionProviders: ['wasm'] })
  await run({ w: facts.trained, h: facts.trained, bytes: new Uint8Array(3 * facts.trained ** 2) })       // the first is slow
}

async function run({ w, h, bytes }, temperature = 1, uniform = LEVELS.map(() => false)) {
  const planes = new Float32Array(3 * h * w)
  for (let c = 0; c < 3; c++) for (let i = 0; i < h * w; i++) planes[c * h * w + i] = bytes[3 * i + c] / 255
  const begin = performance.now()
  const out = await session.run({
    images: new ort.Tensor('float32', planes, [1, 3, h, w]), temperature: new ort.Tensor('float32', [temperature], [1]),
    uniform: new ort.Tensor('float32', uniform.map(Number), [LEVELS.length]) })
  const maps = LEVELS.map(k => ({ h: out[`map_${k}`].dims[1], w: out[`map_${k}`].dims[2], a: out[`map_${k}`].data }))
  return { logits: out.logits.data, probs: softmax(out.logits.data), maps, ms: performance.now() - begin }
}

function evidence(logits) {               // of `ltpa.foreign`
  const top = Math.max(...logits)
  return top + Math.log(logits.reduce((sum, v) => sum + Math.exp(v - top), 0))
}

function softmax(logits) {
  const all = evidence(logits)
  return Float64Array.from(logits, v => Math.exp(v - all))
}

function rankOf(logits) {                 // `foreign`: in which share of its own pictures it found even less
  const found = evidence(logits), q = facts.quantiles, more = q.findIndex(v => v > found)
  const above = more < 0 ? q.length - 1 : Math.max(1, more), low = q[above - 1]
  return (above - 1 + Math.min(1, Math.max(0, (found - low) / Math.max(q[above] - low, 1e-12)))) / 100
}

function effective({ a }) { return Math.exp(a.reduce((sum, v) => sum - (v > 0 ? v * Math.log(v) : 0), 0)) }

// ---- State, and the loop that answers it: one question at a time, the newest

const state = { picture: null, side: facts.usual, show: Math.floor((facts.levels + 1) / 2), temperature: 1,
                uniform: LEVELS.map(() => false), strength: .6, pixels: false, camera: null }
const demo = window.demo = { state, last: null, settled: Promise.resolve(), opened, viewOf, scaled }
let scene = null, asked = false, working = false

function ask() {
  asked = true
  if (!working) demo.settled = work()
}

async function work() {
  working = true
  try {
    while (asked) {
      asked = false
      if (session && state.picture) await answer()
    }
  } catch (e) {
    say(e.message, true)
    if (scene) mark(scene.picture)                        // what is still shown
  } finally { working = false }
}

async function answer() {
  const { picture, temperature, uniform } = state
  if (scene?.picture !== picture || scene.side !== state.side) {
    const fresh = await sceneOf(picture, state.side)
    if (scene && scene.picture !== picture) scene.picture.close()
    scene = fresh
  }
  const changed = temperature !== 1 || uniform.some(Boolean)
  const out = changed ? await run(scene.seen, temperature, uniform) : scene.plain
  demo.last = { ...out, name: picture.name, seen: scene.seen, plain: scene.plain, rank: scene.rank, scaling: scene.scaling, doubts: scene.doubts }
  tell(out, changed)
  draw()
}

async function sceneOf(picture, side) {
  // All that does not depend on sliders
  const { width: W, height: H } = picture
  const small = Math.min(W, H) < side                     // as in the explorer: it is not enlarged without a word
  const square = small || side === facts.trained
  const view = viewOf(picture, square ? facts.trained : side, square)
  if (view.w * view.h > facts.most) throw new Error(`${picture.name} is too long and narrow: ${W}×${H} pixels. Cut a part out of it first.`)
  if (W * H > 2 ** 23) say(`Reading ${picture.name}: ${W}×${H} pixels …`)
  const begin = performance.now()
  const seen = await scaled(picture, view)
  const scaling = performance.now() - begin
  const middle = square ? seen : await scaled(picture, viewOf(picture, facts.trained, true))
  const plain = await run(seen)
  const rank = rankOf((square ? plain : await run(middle)).logits)
  const part = (view.box[2] - view.box[0]) * (view.box[3] - view.box[1]) / (W * H)
  return { picture, side, seen, plain, rank, scaling, small, doubts: doubtsOf(plain, rank, part, view),
           images: imagesOf(picture, seen) }
}

function doubtsOf(plain, rank, part, view) {              // `warnings_of` and `DOUBTS`
  const said = [], zoom = view.h / (view.box[3] - view.box[1])
  if (rank < facts.few) said.push('Unlike what it was trained on: it finds less of its classes here than in ' +
    `${rank > 0 ? (100 * (1 - rank)).toFixed(1) + '%' : 'all'} of those pictures. Its answer may mean nothing.`)
  const shares = plain.maps.map(m => effective(m) / m.a.length)
  if (Math.min(...shares) > facts.even) said.push('Nearly even maps: they do not say where it looked.')
  if (part < .5) said.push(`Only ${Math.round(100 * part)}% of the picture is seen.`)
  if (zoom > 2) said.push(`Enlarged ${zoom.toFixed(1)} times: the network expects more detail than there is.`)
  return said
}

// ---- Words

function percent(p) { return p >= .9995 ? '100%' : p < .0005 ? '<0.1%' : `${(100 * p).toFixed(1)}%` }

function best(probs) { return probs.indexOf(Math.max(...probs)) }

let speech

function tell({ probs, ms }, changed) {
  const order = [...probs.keys()].sort((a, b) => probs[b] - probs[a]), top = order.slice(0, 5)
  $('verdict').textContent = `${facts.classes[order[0]]}, ${percent(probs[order[0]])}`
  $('bars').replaceChildren(...top.map(k => {
    const row = document.createElement('li')
    row.innerHTML = '<span class="name"></span><span class="track" aria-hidden="true"><span class="bar"></span></span><span class="share"></span>'
    const [name, track, share] = row.children
    name.textContent = facts.classes[k]
    share.textContent = percent(probs[k])
    track.firstChild.style.width = `${100 * probs[k]}%`
    return row
  }))
  $('rest').textContent = `The other ${probs.length - 5} share ${percent(order.slice(5).reduce((sum, k) => sum + probs[k], 0))}.`
  const k = best(scene.plain.probs)
  $('usually').textContent = changed ? `As it was trained it says ${facts.classes[k]}, ${percent(scene.plain.probs[k])}.` : ''
  $('doubts').replaceChildren(...scene.doubts.map(text => Object.assign(document.createElement('li'), { textContent: text })))
  $('time').textContent = `Answered in ${ms.toFixed(ms < 10 ? 1 : 0)} ms, after ${scene.scaling.toFixed(0)} ms of scaling.`
  $('crop').textContent = cropText()
  if (!state.camera && !$('status').classList.contains('bad')) say('')
  clearTimeout(speech)
  speech = setTimeout(() => { if (!state.camera) $('spoken').textContent = `It says ${$('verdict').textContent}` }, 700)
}

function cropText() {
  const { picture: { width, height }, seen: { w, h, box } } = scene, [cols, rows] = [box[2] - box[0], box[3] - box[1]]
  const part = cols === width && rows === height ? `All of the picture, ${width}×${height} pixels,` :
    `The middle ${cols}×${rows} of ${width}×${height} pixels`
  const why = scene.small ? ' The picture is too small for more.' : ''
  return `${part} ${cols === width && rows === height ? 'is' : 'are'} scaled to ${w}×${h}, as the library does it. That is what the network sees.${why}`
}

function say(text, bad = false) {
  $('status').textContent = text
  $('status').hidden = !text
  $('status').classList.toggle('bad', bad)
}

// ---- Drawing

const COLORS = Uint8Array.from(atob(facts.colors), c => c.charCodeAt(0))

function imagesOf(picture, { w, h, bytes, box }) {
  // The whole picture, the part that is seen, and the pixels that the network sees, each as a canvas of some hundred pixels
  const [left, top, right, bottom] = box
  const at = (x, y, cols, rows) => {
    const zoom = STAGE / Math.max(cols, rows), c = canvasOf(Math.max(1, Math.round(cols * zoom)), Math.max(1, Math.round(rows * zoom)))
    const pen = c.getContext('2d', { willReadFrequently: true })
    pen.fillStyle = 'white'
    pen.fillRect(0, 0, c.width, c.height)
    Object.assign(pen, { imageSmoothingQuality: 'high', imageSmoothingEnabled: zoom < 4 })
    pen.drawImage(picture.source, x, y, cols, rows, 0, 0, c.width, c.height)
    return c
  }
  const own = canvasOf(w, h), pixels = new ImageData(w, h)
  for (let i = 0; i < w * h; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = bytes[3 * i + c]
    pixels.data[4 * i + 3] = 255
  }
  own.getContext('2d').putImageData(pixels, 0, 0)
  const seen = at(left, top, right - left, bottom - top), coarse = canvasOf(seen.width, seen.height), pen = coarse.getContext('2d')
  pen.imageSmoothingEnabled = false
  pen.drawImage(own, 0, 0, coarse.width, coarse.height)
  return { whole: at(0, 0, picture.width, picture.height), seen, coarse }
}

function drawPicture(canvas, width) {
  // The whole picture; what is not seen is faint
  const { images: { whole, coarse }, picture, seen: { box } } = scene, zoom = width / whole.width
  const height = Math.max(1, Math.round(whole.height * zoom)), pen = Object.assign(canvas, { width, height }).getContext('2d')
  pen.imageSmoothingQuality = 'high'
  pen.drawImage(whole, 0, 0, width, height)
  const [left, top, right, bottom] = [box[0] / picture.width * width, box[1] / picture.height * height,
                                      box[2] / picture.width * width, box[3] / picture.height * height]
  if (state.pixels) pen.drawImage(coarse, left, top, right - left, bottom - top)
  if (right - left > width - 1 && bottom - top > height - 1) return
  pen.fillStyle = 'rgba(128, 128, 128, .72)'
  pen.beginPath()
  pen.rect(0, 0, width, height)
  pen.rect(left, top, right - left, bottom - top)
  pen.fill('evenodd')
  const inset = Math.max(1, width / 400)
  for (const [color, dash] of [['black', []], ['white', [4 * inset, 4 * inset]]]) {
    pen.setLineDash(dash)
    Object.assign(pen, { strokeStyle: color, lineWidth: 2 * inset })
    pen.strokeRect(left + inset, top + inset, right - left - 2 * inset, bottom - top - 2 * inset)
  }
}

function corners(cells, pixels) {
  // `upsample`, along one side: of each pixel the two cells around it, and how far it is from the first
  return Array.from({ length: pixels }, (_, p) => {
    const at = Math.max(0, (p + .5) * cells / pixels - .5), low = Math.min(cells - 1, Math.floor(at))
    return [low, Math.min(cells - 1, low + 1), at - low]
  })
}

function drawMap(canvas, { a, w, h }, width) {
  // `overlay(picture, shade(upsample(a)))`
  const base = state.pixels ? scene.images.coarse : scene.images.seen
  const height = Math.max(1, Math.round(base.height * width / base.width))
  const pen = Object.assign(canvas, { width, height }).getContext('2d', { willReadFrequently: true })
  Object.assign(pen, { imageSmoothingQuality: 'high', imageSmoothingEnabled: !state.pixels || width < base.width })
  pen.drawImage(base, 0, 0, width, height)
  const image = pen.getImageData(0, 0, width, height), data = image.data, big = new Float32Array(width * height)
  const xs = corners(w, width)
  let top = 0, sum = 0, i = 0
  for (const [r0, r1, v] of corners(h, height)) for (const [c0, c1, u] of xs) {
    const above = a[r0 * w + c0] * (1 - u) + a[r0 * w + c1] * u, below = a[r1 * w + c0] * (1 - u) + a[r1 * w + c1] * u
    const value = big[i++] = above * (1 - v) + below * v
    sum += value
    if (value > top) top = value
  }
  top = Math.max(top, 2 * sum / big.length, 1e-38)
  for (i = 0; i < big.length; i++) {
    const color = 3 * Math.min(255, Math.floor(256 * big[i] / top))
    const gray = (1 - state.strength) * (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3
    for (let c = 0; c < 3; c++) data[4 * i + c] = gray + state.strength * COLORS[color + c]
  }
  pen.putImageData(image, 0, 0)
}

function mapText(k) {
  const m = demo.last.maps[k - 1], n = m.a.length
  if (state.uniform[k - 1]) return `${m.w}×${m.h} cells, all alike`
  const share = effective(m)
  return `${share.toFixed(share < 100 ? 1 : 0)} of ${m.w}×${m.h} cells`
}

function whereText(k) {
  if (state.uniform[k - 1]) return 'All cells weigh the same.'
  const m = demo.last.maps[k - 1], at = m.a.indexOf(Math.max(...m.a))
  const [x, y] = [(at % m.w + .5) / m.w, (Math.floor(at / m.w) + .5) / m.h].map(v => Math.round(100 * v))
  return `The brightest cell is ${x}% from the left and ${y}% from the top.`
}

function draw() {
  if (!demo.last) return
  const { maps } = demo.last
  drawPicture($('tile-0'), 240)
  $('say-0').textContent = `${scene.picture.width}×${scene.picture.height} pixels`
  for (const k of LEVELS) {
    drawMap($(`tile-${k}`), maps[k - 1], 240)
    $(`say-${k}`).textContent = mapText(k)
  }
  const k = state.show, stage = $('stage')
  if (k) drawMap(stage, maps[k - 1], scene.images.seen.width)
  else drawPicture(stage, scene.images.whole.width)
  $('caption').textContent = k ? `Level ${k}: ${mapText(k)}${state.uniform[k - 1] ? '' : ' share the weight'}.` : `${scene.picture.name}, and the part that is seen.`
  $('scale').hidden = !k
  stage.setAttribute('aria-label', k ? `${scene.picture.name} in grey under the map of level ${k}: ${mapText(k)}. ${whereText(k)}` :
    `${scene.picture.name}, with a frame around what the network sees`)
}

// ---- Where pictures come from

async function take(blob, name) {
  stopCamera()
  try {
    const picture = await opened(blob, name)
    say('')
    show(picture)
  } catch (e) { say(e.message, true) }
}

function mark(picture) {
  for (const b of $('thumbs').querySelectorAll('button')) b.setAttribute('aria-pressed', String(b.dataset.name === picture.name))
  state.picture = picture
}

function show(picture) {
  mark(picture)
  ask()
}

function files(list) {
  const file = [...list ?? []][0]
  if (file) take(file, file.name || 'the pasted picture')
  return Boolean(file)
}

const REFUSED = {
  NotAllowedError: 'The camera was refused. Allow it in the browser, or choose a file.', NotFoundError: 'No camera was found.',
  NotReadableError: 'The camera is busy: close the program that uses it.' }

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) return say('This browser gives a page from a file no camera. Choose a file.', true)
  let stream
  try { stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } } }) }
  catch (e) { return say(REFUSED[e.name] ?? `The camera does not start: ${e.message}`, true) }
  const video = Object.assign(document.createElement('video'), { srcObject: stream, muted: true, playsInline: true })
  state.camera = { stream, video }
  await video.play()
  $('camera').textContent = 'stop the camera'
  say('The camera is on. Stop it to keep the picture that it shows.')
  while (state.camera?.video === video) {
    if (video.videoWidth) {
      const frame = canvasOf(video.videoWidth, video.videoHeight)
      frame.getContext('2d', { willReadFrequently: true }).drawImage(video, 0, 0)
      show(new Picture(frame, 'the camera'))
      await demo.settled
    }
    await new Promise(requestAnimationFrame)
  }
}

function stopCamera() {
  if (!state.camera) return
  for (const track of state.camera.stream.getTracks()) track.stop()
  state.camera = null
  $('camera').textContent = 'use the camera'
  say('')
}

// ---- The controls

function tile(k) {
  const label = Object.assign(document.createElement('label'), { className: 'tile' })
  label.innerHTML = `<canvas id="tile-${k}" aria-hidden="true" width="240" height="180"></canvas>` +
    `<input type="radio" name="show" value="${k}"${k === state.show ? ' checked' : ''}><b>${k ? `level ${k}` : 'picture'}</b><small id="say-${k}"></small>`
  label.querySelector('input').addEventListener('change', () => { state.show = k; draw() })
  return label
}

function thumb(photo) {
  const item = document.createElement('li'), url = URL.createObjectURL(photo.blob)
  item.innerHTML = '<button type="button" aria-pressed="false"><img alt=""><span></span></button>'
  const button = item.firstChild
  Object.assign(button, { title: `${photo.title}, ${photo.author}, ${photo.license}` }).dataset.name = photo.name
  button.querySelector('img').src = url
  button.querySelector('span').textContent = photo.name.replace('_', ' ')
  button.addEventListener('click', () => take(photo.blob, photo.name))
  return item
}

function credit({ name, title, author, license, source }) {
  return Object.assign(document.createElement('li'), { textContent: `${name.replace('_', ' ')}: “${title}”, ${author}, ${license}, ${source}` })
}

function number(t) { return t >= 10 ? t.toFixed(0) : t.toFixed(2).replace(/\.?0+$/, '') }

function sync() {
  // The controls show the state
  const t = $('temperature'), all = state.uniform.every(Boolean)
  t.value = Math.log2(state.temperature)
  $('temperature-value').textContent = number(state.temperature)
  t.setAttribute('aria-valuetext', number(state.temperature))
  LEVELS.forEach(k => { $(`uniform-${k}`).checked = state.uniform[k - 1] })
  Object.assign($('uniform-all'), { checked: all, indeterminate: !all && state.uniform.some(Boolean) })
  $('strength').value = 100 * state.strength
  $('strength-value').textContent = `${Math.round(100 * state.strength)}%`
  $('strength').setAttribute('aria-valuetext', `${Math.round(100 * state.strength)} percent`)
  $('pixels').checked = state.pixels
  $('seen').value = state.side
}

function change(what, redraw = ask) {
  Object.assign(state, what)
  sync()
  redraw()
}

function build() {
  for (const photo of facts.pictures) photo.blob = new Blob([Uint8Array.from(atob(photo.file), c => c.charCodeAt(0))], { type: 'image/jpeg' })
  $('thumbs').append(...facts.pictures.map(thumb))
  $('credits').append(...facts.pictures.map(credit))
  $('classes').textContent = facts.classes.join(', ')
  $('network').textContent = facts.network
  $('tiles').append(...[0, ...LEVELS].map(tile))
  const pen = $('ramp').getContext('2d'), ramp = new ImageData(256, 1)
  for (let i = 0; i < 256; i++) ramp.data.set([...COLORS.subarray(3 * i, 3 * i + 3), 255], 4 * i)
  pen.putImageData(ramp, 0, 0)
  for (const k of LEVELS) {
    const label = document.createElement('label')
    label.innerHTML = `<input type="checkbox" id="uniform-${k}"> level ${k}`
    label.firstChild.addEventListener('change', e => change({ uniform: state.uniform.map((u, i) => i === k - 1 ? e.target.checked : u) }))
    $('uniform').append(label)
  }
  $('uniform-all').addEventListener('change', e => change({ uniform: LEVELS.map(() => e.target.checked) }))
  for (const side of [facts.trained, ...facts.sides]) {
    const why = { [facts.trained]: ': the middle square, as in training', [facts.usual]: ': as in the course’s explorer' }[side] ?? ''
    $('seen').append(new Option(side + why, side))
  }
  const [least, most] = facts.heat
  Object.assign($('temperature'), { min: least, max: most })
  $('temperature').addEventListener('input', e => change({ temperature: 2 ** e.target.value }))
  $('strength').addEventListener('input', e => change({ strength: e.target.value / 100 }, draw))
  $('pixels').addEventListener('change', e => change({ pixels: e.target.checked }, draw))
  $('seen').addEventListener('change', e => change({ side: Number(e.target.value) }))
  $('reset').addEventListener('click', () => change({ temperature: 1, uniform: LEVELS.map(() => false) }))
  $('file').addEventListener('change', e => { files(e.target.files); e.target.value = '' })
  $('camera').addEventListener('click', () => state.camera ? stopCamera() : startCamera())
  addEventListener('paste', e => { if (files(e.clipboardData?.files)) e.preventDefault() })
  addEventListener('dragover', e => { e.preventDefault(); document.body.classList.add('over') })
  addEventListener('dragleave', e => { if (!e.relatedTarget) document.body.classList.remove('over') })
  addEventListener('drop', e => {
    e.preventDefault()
    document.body.classList.remove('over')
    if (!files(e.dataTransfer.files)) say('That was no file. Save the picture first, then drop it here.', true)
  })
  sync()
}

build()
demo.ready = start().then(() => take(facts.pictures[0].blob, facts.pictures[0].name)).then(() => demo.settled).catch(e => {
  $('verdict').textContent = 'The network could not start.'
  say(`The network could not start in this browser (${e.message}). Try a newer one: Firefox 113, Chrome 91, Safari 16.4 or later.`, true)
})
