/** LoRA Stack: the text widget `rows` gets an editor as its face. Without this file it is a field of JSON text. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { StackEditor } from "./lora_stack/editor.js";
import { baseFamily } from "./lora_stack/graph.js";
import { Library } from "./lora_stack/library.js";
import { addStyle } from "./lora_stack/style.js";

const OPEN = "open_blocks"; // the node's property: numbers of the rows whose block weights are shown
const TALLEST = 640; // pixels; higher stacks scroll, unless the node is made taller
const WIDEST_START = 460;

const library = new Library((path) => api.fetchApi(path), (path) => api.apiURL(path));
let kept = null; // the focus to restore after an undo has built the nodes anew

/** Two frames: by then the frontend has measured what changed. Hidden pages draw none. */
function layout() {
  const frames = new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  return Promise.race([frames, new Promise((resolve) => setTimeout(resolve, 200))]);
}

/** The node's size follows its rows a moment later, and belongs to the same step of undo. */
async function asOneChange(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
    await layout();
  } finally {
    app.canvas.emitAfterChange();
  }
}

function connect(node, widget) {
  return {
    text: () => widget.value ?? "",
    openRows: () => (Array.isArray(node.properties?.[OPEN]) ? node.properties[OPEN] : []),
    store(text, open) {
      asOneChange(() => {
        const fitted = node.size[1] <= node.computeSize()[1] + 1;
        if (open.length) node.properties[OPEN] = open;
        else delete node.properties[OPEN];
        widget.value = text;
        node.finetuneEditor.show();
        const height = node.computeSize()[1];
        if (fitted || node.size[1] < height) node.setSize([node.size[0], height]);
        app.canvas.setDirty(true, true);
      });
    },
    undo: () => app.extensionManager.command.execute("Comfy.Undo"),
    redo: () => app.extensionManager.command.execute("Comfy.Redo"),
    keepFocus(focused) {
      kept = focused && { id: node.id, focused, until: performance.now() + 2000 };
    },
    /** As the frontend's text fields do: what does not scroll here zooms the graph. */
    wheel(event) {
      event.preventDefault();
      event.stopPropagation();
      app.canvas.processMouseWheel(event);
    },
    family: () => baseFamily(node, library),
  };
}

async function restoreFocus(node) {
  if (!kept || kept.id !== node.id || performance.now() > kept.until) return;
  const { focused } = kept;
  for (let tries = 0; tries < 20; tries++) {
    await layout();
    if (!node.finetuneEditor.root.isConnected) continue;
    node.finetuneEditor.focus(...focused);
    if (node.finetuneEditor.focused) return;
  }
}

function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    after.apply(this, values);
    return result;
  };
}

/** Give the node's text widget the editor as its element. Its value stays what the graph saves and sends. */
function dress(node, widget) {
  const editor = new StackEditor(connect(node, widget), library);
  node.finetuneEditor = editor;
  widget.type = "FINETUNE_LORA_STACK"; // of a known type the Vue renderer would draw its own field
  widget.element = editor.root;
  Object.assign(widget.options, {
    hideOnZoom: true, selectOn: ["focusin", "click"],
    getMinHeight: () => Math.min(editor.height, TALLEST),
    getMaxHeight: undefined,
  });
  chain(widget, "callback", () => editor.show());
  const update = () => {
    editor.show();
    editor.root.inert = node.getSlotFromWidget?.(widget)?.link != null; // then the rows come from elsewhere
  };
  chain(node, "onConfigure", () => {
    update();
    restoreFocus(node);
  });
  chain(node, "onConnectionsChange", update);
  chain(node, "onRemoved", () => editor.end());
  editor.show();
  node.setSize([Math.max(node.size[0], WIDEST_START), node.computeSize()[1]]);
}

app.registerExtension({
  name: "FineTune.LoraStack",
  init: () => addStyle(),
  setup: () => library.refresh(),
  nodeCreated(node) {
    if (node.comfyClass !== "FineTuneLoraStack") return;
    const widget = node.widgets?.find((candidate) => candidate.name === "rows");
    if (widget?.element) dress(node, widget);
  },
});
