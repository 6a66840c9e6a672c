// One file, every width, no Python: node switch_widths.mjs EXPORT IMAGES.npy
// EXPORT: what `ptmq export DIR --form multi` wrote. IMAGES.npy: preprocessed images, float32 (N, C, H, W).
import {readFileSync} from "node:fs"
import {InferenceSession, Tensor} from "onnxruntime-node"

const [folder, file] = process.argv.slice(2)
const {choice, image_shape: shape} = JSON.parse(readFileSync(`${folder}/export.json`, "utf8"))
const npy = Uint8Array.from(readFileSync(file)), data = new Float32Array(npy.slice(10 + npy[8] + 256 * npy[9]).buffer)
const images = new Tensor("float32", data, [data.length / shape.reduce((a, b) => a * b), ...shape])
const session = await InferenceSession.create(`${folder}/model.onnx`, {intraOpNumThreads: 1})
for (const [name, value] of Object.entries(choice.values)) {
  const {logits} = await session.run({images, [choice.input]: new Tensor("int64", [BigInt(value)], [])})
  const rows = Array.from({length: logits.dims[0]}, (_, row) => logits.data.subarray(row * logits.dims[1], (row + 1) * logits.dims[1]))
  console.log(`${name}: ${rows.map(own => own.indexOf(Math.max(...own))).join(" ")}`)
}
