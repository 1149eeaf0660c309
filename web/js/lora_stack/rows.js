/**
 * The widget's text and what it says. trainers/stacking/rows.py describes the format; fields that this editor does not
 * know stay as they are.
 */

export const LIMIT = 100;
export const KINDS = [
  ["attention", "Attention"], ["feed_forward", "Feed-forward"], ["convolution", "Convolution"],
];

/** {rows, rest} of a text, where `rest` is what stands beside the rows; {problem} when it cannot be read. */
export function read(text) {
  if (!String(text ?? "").trim()) return { rows: [], rest: {} };
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    return { problem: "The rows are not JSON text. Mend them here, or clear the field to begin anew." };
  }
  const listed = Array.isArray(content);
  if (!listed && content?.version !== undefined && content.version !== 1) {
    return { problem: `The rows are of version ${content.version}, which this pack does not know. Update the pack.` };
  }
  const rows = listed ? content : content?.rows;
  const sound = Array.isArray(rows) && rows.every((row) => row && typeof row === "object" && !Array.isArray(row));
  if (!sound) return { problem: 'The rows must be a list such as [{"lora": "name.safetensors", "model": 0.8}].' };
  return { rows, rest: listed ? {} : content };
}

export function write(rows, rest) {
  return JSON.stringify({ ...rest, version: 1, rows });
}

function number(value, otherwise) {
  return typeof value === "number" && Number.isFinite(value) ? value : otherwise;
}

/** A row's meaning, with every default filled in. Without `text` the text strength follows the model strength. */
export function meaning(row) {
  const model = number(row.model, 1);
  return {
    on: row.on !== false,
    lora: typeof row.lora === "string" && row.lora !== "None" ? row.lora.replaceAll("\\", "/") : "",
    hash: typeof row.hash === "string" ? row.hash : "",
    bytes: number(row.bytes, 0),
    model,
    text: number(row.text, model),
    linked: row.text === undefined || row.text === null,
    blocks: typeof row.blocks === "string" ? row.blocks : "",
    attention: number(row.attention, 1),
    feed_forward: number(row.feed_forward, 1),
    convolution: number(row.convolution, 1),
  };
}

/** Folder and name of a file, for people. */
export function parts(lora) {
  const cut = lora.lastIndexOf("/");
  return { folder: lora.slice(0, cut + 1), name: lora.slice(cut + 1).replace(/\.(safetensors|sft|ckpt|pt|bin)$/i, "") };
}

/**
 * The shortest text for weights per block: a preset and what differs from it.
 * `values` holds each preset's weights for the family, `blocks` the family's blocks in order.
 */
export function blockText(weights, blocks, values) {
  let best = null;
  for (const [preset, preset_weights] of Object.entries(values)) {
    const other = blocks.filter((block) => Math.abs(weights[block] - preset_weights[block]) > 1e-9);
    const cost = other.length + (preset === "ALL" ? 0 : 0.5);
    if (!best || cost < best.cost) best = { preset, other, cost };
  }
  const changes = best.other.map((block) => `${block}=${Number(weights[block].toFixed(4))}`);
  return [...(best.preset === "ALL" ? [] : [best.preset]), ...changes].join(", ");
}
