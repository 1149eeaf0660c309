/** LoRA Stack: the text widget `rows` gets an editor as its face. Without this file it is a field of JSON text. */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { StackEditor } from "./lora_stack/editor.js";
import { baseFamily } from "./lora_stack/graph.js";
import { Library } from "./lora_stack/library.js";
import { addStyle } from "./lora_stack/style.js";

const OPEN = "open_blocks"; // the node's property: numbers of the rows whose block weights are shown
const LOWEST = 120; // pixels; a person may make the node this low, then the rows scroll
const TALLEST = 640; // a stack makes its node this high by itself; longer ones scroll, unless the node is made higher
const WIDTH = 460;

const library = new Library((path) => api.fetchApi(path), (path) => api.apiURL(path));
let kept = null; // the focus to restore after an undo has built the nodes anew

/** A frame; hidden pages draw none. */
function frame() {
  return Promise.race([new Promise(requestAnimationFrame), new Promise((resolve) => setTimeout(resolve, 100))]);
}

/** Until the frontend has measured what changed: the Vue renderer tells the node its size some frames later. */
async function layout(node) {
  for (let still = 0, tries = 0; still < 6 && tries < 30; tries++) {
    const [, height] = node.size;
    await frame();
    still = node.size[1] === height ? still + 1 : 0;
  }
}

/** The node's size follows its rows a moment later, and belongs to the same step of undo. */
async function asOneChange(node, change) {
  app.canvas.emitBeforeChange();
  try {
    change();
    await layout(node);
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** Height in pixels at which a node shows its whole stack. */
function fitting(node) {
  return node.computeSize()[1] - LOWEST + Math.min(node.finetuneEditor.height, TALLEST);
}

/**
 * Make the node high enough; with `exactly` also lower. The Vue renderer does that by itself. Not while an undo restores the
 * node: a size that differs from the restored one would end the redo.
 */
function fit(node, exactly = false) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (globalThis.LiteGraph?.vueNodesMode || tracker?._restoringState) return;
  const height = fitting(node);
  if (node.size[1] < height || exactly) node.setSize([node.size[0], height]);
}

function connect(node, widget) {
  return {
    text: () => widget.value ?? "",
    openRows: () => (Array.isArray(node.properties?.[OPEN]) ? node.properties[OPEN] : []),
    store(text, open) {
      asOneChange(node, () => {
        const shrinks = Math.abs(node.size[1] - fitting(node)) < 2; // nobody has made it higher
        if (open.length) node.properties[OPEN] = open;
        else delete node.properties[OPEN];
        widget.value = text;
        node.finetuneEditor.show();
        fit(node, shrinks);
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
    await frame();
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
    hideOnZoom: true,
    // The frontend would also bring the node to the front, which renumbers the graph: an undone state would then never be
    // equal to the graph, and its redo be lost at the next click.
    selectOn: [],
    getMinHeight: () => LOWEST,
    getMaxHeight: undefined,
  });
  editor.root.addEventListener("pointerdown", () => {
    if (!globalThis.LiteGraph?.vueNodesMode && !node.is_selected) app.canvas.selectNode(node);
  }, true);
  const update = () => {
    editor.show();
    fit(node);
    editor.root.inert = node.getSlotFromWidget?.(widget)?.link != null; // then the rows come from elsewhere
  };
  chain(widget, "callback", update);
  chain(node, "onConfigure", () => {
    update();
    restoreFocus(node);
  });
  chain(node, "onConnectionsChange", update);
  chain(node, "onRemoved", () => editor.end());
  editor.show();
  node.setSize([Math.max(node.size[0], WIDTH), fitting(node)]);
}

app.registerExtension({
  name: "FineTune.LoraStack",
  init: () => addStyle(),
  setup: () => library.refresh(),
  refreshComboInNodes: () => library.refresh(),
  nodeCreated(node) {
    if (node.comfyClass !== "FineTuneLoraStack") return;
    const widget = node.widgets?.find((candidate) => candidate.name === "rows");
    if (widget?.element) dress(node, widget);
  },
});
