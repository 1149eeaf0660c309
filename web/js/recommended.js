/**
 * Train nodes with the preset "recommended for the base": the widgets that it sets (the server marks them) are gray, and
 * after a run they show the numbers that were used. The node's text says the same without this file.
 */
import { app } from "../../../scripts/app.js";

const PRESET = "recommended for the base";

function refresh(node) {
  const unread = node.widgets.find((widget) => widget.name === "preset").value === PRESET;
  for (const widget of node.widgets) {
    if (!widget.options?.finetune_preset) continue;
    widget.disabled = unread;
    widget.options.disabled = unread; // what the Vue renderer of older frontends reads
  }
  node.setDirtyCanvas(true, true);
}

function hasPreset(node) {
  return node.comfyClass?.startsWith("FineTune") && node.widgets?.some((widget) => widget.options?.finetune_preset);
}

app.registerExtension({
  name: "FineTune.Recommended",
  nodeCreated(node) {
    if (!hasPreset(node)) return;
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
      if (!used || preset.value !== PRESET) return;
      for (const widget of node.widgets) if (widget.name in used) widget.value = used[widget.name];
      refresh(node);
    };
    refresh(node);
  },
  loadedGraphNode(node) {
    if (hasPreset(node)) refresh(node);
  },
});
