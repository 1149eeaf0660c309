/**
 * Train nodes with a preset: the widgets that it sets (the server marks them) are gray, and
 * after a run they show the numbers that were used. The node's text says the same without this file.
 */
import { app } from "../../../scripts/app.js";

const CUSTOM = "custom";

/** The widgets that the preset sets. Frontends keep such marks of the server in the node's definition only. */
function presetWidgets(node) {
  if (!node.comfyClass?.startsWith("FineTune")) return [];
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  const inputs = { ...required, ...optional };
  return (node.widgets ?? []).filter((widget) => inputs[widget.name]?.[1]?.finetune_preset);
}

function refresh(node) {
  const unread = node.widgets.find((widget) => widget.name === "preset").value !== CUSTOM;
  for (const widget of presetWidgets(node)) {
    widget.disabled = unread;
    if (widget.options) widget.options.disabled = unread; // what the Vue renderer of older frontends reads
  }
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "FineTune.Recommended",
  nodeCreated(node) {
    if (!presetWidgets(node).length) return;
    const preset = node.widgets.find((widget) => widget.name === "preset");
    const callback = preset.callback;
    preset.callback = function () {
      callback?.apply(this, arguments);
      refresh(node);
    };
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const used = output?.finetune_used?.[0];
      if (!used || preset.value === CUSTOM) return;
      for (const widget of node.widgets) if (widget.name in used) widget.value = used[widget.name];
      refresh(node);
    };
    refresh(node);
  },
  loadedGraphNode(node) {
    if (presetWidgets(node).length) refresh(node);
  },
});
