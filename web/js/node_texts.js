/**
 * Texts of our nodes after the page was loaded anew, and for answers out of the host's caches. The server says a text only
 * once, while a node runs; here it is said again, by the event with which the frontend hears it, so that it looks the same.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const WIDGET = "$$node-text-preview"; // the frontend's own
// The classic renderer scrolls by itself. The Vue renderer would make a node as high as its text, over its neighbors.
const STYLE = ".comfy-markdown-content .finetune-text { max-height: 120px; overflow-y: auto; }";
const ROOM = 96; // pixels: five lines; the frontend gives two

/** A frontend's text on a node of ours: part of no workflow (frontends before 1.4x saved it), and room for a sentence. */
function dress(node) {
  const widget = node.widgets?.find((candidate) => candidate.name === WIDGET);
  if (!widget || widget.serialize === false && widget.options.getMinHeight === room) return;
  widget.serialize = false;
  widget.options.getMinHeight = room;
  node.setDirtyCanvas(true, true);
}

function room() {
  return ROOM;
}

function ours(id) {
  const node = app.canvas?.graph?.getNodeById(String(id).split(":").at(-1));
  return node?.comfyClass?.startsWith("FineTune") ? node : undefined;
}

/** `id` as the server knows the node: "3", or "1:3" in a subgraph; the frontend shows that text only while it is open. */
function say(id, text, type = "") {
  if (typeof text !== "string" || !text) return;
  const node = ours(id);
  if (!node || (type && node.comfyClass !== type)) return;
  api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: String(id), text } }));
}

/** What the server knows of nodes: of those that this page's client ran, or of those that a prompt took from the caches. */
async function restore(prompt, cached) {
  const workflow = app.graph?.id;
  if (!workflow) return;
  const query = new URLSearchParams(prompt ? { prompt } : { workflow, client: api.clientId ?? api.initialClientId ?? "" });
  const answer = await api.fetchApi(`/finetune/texts?${query}`);
  if (!answer.ok || app.graph.id !== workflow) return;
  for (const [id, { type, text }] of Object.entries((await answer.json()).texts)) {
    if (!cached || cached.includes(id)) say(id, text, type);
  }
}

app.registerExtension({
  name: "FineTune.NodeTexts",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    api.addEventListener("progress_text", ({ detail }) => {
      const node = ours(detail.nodeId);
      if (node) setTimeout(() => dress(node)); // the frontend may hear it after us
    });
    api.addEventListener("executed", ({ detail }) => {
      say(detail.display_node || detail.node, detail.output?.finetune_text?.at(-1));
    });
    api.addEventListener("execution_cached", ({ detail }) => {
      if (detail.nodes?.length) restore(detail.prompt_id, detail.nodes);
    });
  },
  afterConfigureGraph: () => restore(),
  /** A workflow out of the history, or one that comes back from another tab. */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      if (!id.includes(":")) say(id, output?.finetune_text?.at(-1));
    }
  },
});
