/**
 * Train LoRA with the preset "recommended for the base": the widgets that it does not read are gray, and after a run they
 * show the numbers that were used. The node's text says the same without this file.
 */
import { app } from "../../../scripts/app.js";

const PRESET = "recommended for the base";
const FIELDS = ["steps", "learning_rate", "rank", "alpha", "targets", "batch_size", "resolution",
  "text_encoder_learning_rate", "preview_every"];

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function refresh(node) {
  const unread = widgetOf(node, "preset")?.value === PRESET;
  for (const widget of FIELDS.map((name) => widgetOf(node, name)).filter(Boolean)) {
    widget.disabled = unread;
    if (widget.options) widget.options.disabled = unread; // what the Vue renderer of older frontends reads
  }
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "FineTune.Recommended",
  nodeCreated(node) {
    if (node.comfyClass !== "FineTuneTrainLora") return;
    const preset = widgetOf(node, "preset");
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
      for (const name of FIELDS) {
        const widget = widgetOf(node, name);
        if (widget && name in used) widget.value = used[name];
      }
      refresh(node);
    };
    refresh(node);
  },
  loadedGraphNode(node) {
    if (node.comfyClass === "FineTuneTrainLora") refresh(node);
  },
});
